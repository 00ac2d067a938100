"""What every edit does around its plan: read, plan, apply, lay out, write, report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ckpt_surgery.checkpoint import Checkpoint, join_path
from ckpt_surgery.errors import CkptError, LossyEditError, PathLike, UsageError
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.fileio.outputs import Digest, Progress, Sink, atomic_output, stream_output
from ckpt_surgery.formats import read
from ckpt_surgery.formats.torch_zip_layout import lay_out_torch_zip
from ckpt_surgery.plan import Drop, DropOther, DropStateDict, Planned, Rename, apply
from ckpt_surgery.reports.edits import EditReport

OUTPUT_FORMAT = "torch-zip"
# Formats whose state dict is computed from something else, which an edit could not put back.
_READ_ONLY = {
    "torch-module": "a pickled module",
    "torchscript": "a TorchScript archive",
    "safetensors": "a safetensors file",
}
_WITHOUT_OTHERS = frozenset({"torchscript", "safetensors"})
_FOREIGN_SUFFIXES = frozenset({".safetensors", ".json"})

HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]*)\.")
"""Where `torch.hub.load_state_dict_from_url` looks for the hash in a name: the first match."""
_HASH_DIGITS: Final = 8

ProgressBar = Callable[[int], AbstractContextManager[Progress]]
"""Called with the bytes that will be written; gives what is called with those that were."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where an edited checkpoint goes: to the file `path`, the descriptor `stream`, or `in_place`.

    `force` replaces an existing file; `fsync` None forces the bytes to the disk only where a file
    is replaced; `dry_run` writes nothing. `format` None lets the suffix of `path` speak. With
    `hash_name` the first eight digits of the file's SHA-256 go into its name, as torch.hub expects:
    ``resnet18.pth`` becomes ``resnet18-f37072fd.pth``.
    """

    path: PathLike | None = None
    stream: int | None = None
    in_place: bool = False
    force: bool = False
    fsync: bool | None = None
    dry_run: bool = False
    format: str | None = None
    progress: ProgressBar | None = None
    hash_name: bool = False

    def check(self) -> None:
        """Raise `UsageError` if it says nothing, too much, or a format that cannot be written."""
        ways = (self.path is not None) + (self.stream is not None) + self.in_place
        if ways > 1:
            raise UsageError("an output and '--in-place' contradict each other")
        if ways == 0 and not self.dry_run:
            raise UsageError(
                "there is no output", hint="give -o FILE, or --in-place to replace the input"
            )
        if self.hash_name:
            self._check_hash_name()
        suffix = Path(self.path).suffix.lower() if self.path is not None else ""
        if suffix in _FOREIGN_SUFFIXES and self.format is None:
            raise UsageError(
                f"'{suffix}' files cannot be written, only archives of torch.save",
                path=self.path,
                hint="call the output .pth, or give --format torch-zip to use this name anyway",
            )

    def _check_hash_name(self) -> None:
        if self.path is None:
            raise UsageError("'--hash-name' needs a name to put the hash into", hint="give -o FILE")
        name = Path(self.path).name
        if HASH_IN_NAME.search(Path(self.path).stem + "."):
            raise UsageError(
                f"'--hash-name': torch.hub would take a part of '{name}' for the hash",
                hint="use a name without a dash before hexadecimal digits and a dot",
            )


def edit(
    command: str,
    source: PathLike | SourceFile,
    output: Output,
    build: Callable[[Checkpoint], Planned],
    *,
    narrow: Callable[[Checkpoint], Checkpoint] | None = None,
) -> EditReport:
    """Carry out the plan that `build` makes for the checkpoint in `source`; `narrow` the result."""
    output.check()
    with read(source) as checkpoint:
        require_editable(checkpoint)
        try:
            planned = build(checkpoint)
        except CkptError as error:
            if error.path is None:
                error.name_file(checkpoint.file.name)
            raise
        edited = apply(planned.plan, checkpoint)
        if narrow is not None:
            edited = narrow(edited)
        output = named_by_content(edited, output)
        nbytes = write(edited, output)
        return _report(command, checkpoint, edited, planned, output, nbytes)


def require_editable(checkpoint: Checkpoint) -> None:
    """Raise `LossyEditError` for formats whose edit could not be written back."""
    what = _READ_ONLY.get(checkpoint.format)
    if what is not None:
        name = checkpoint.file.name
        raise LossyEditError(
            f"{what} cannot be edited",
            path=name,
            hint=f"extract its weights first: ckpt convert {name} -o weights.pth",
        )


def named_by_content(checkpoint: Checkpoint, output: Output) -> Output:
    """`output` with the hash in its name, if that is wanted; everything is read once for it."""
    if not output.hash_name or output.dry_run or output.path is None:
        return output
    digest = Digest()
    lay_out_torch_zip(checkpoint).write(digest)
    path = Path(output.path)
    name = f"{path.stem}-{digest.hexdigest()[:_HASH_DIGITS]}{path.suffix}"
    return replace(output, path=path.with_name(name), hash_name=False)


def write(
    checkpoint: Checkpoint,
    output: Output,
    *,
    inputs: Sequence[SourceFile] = (),
    prepare: Callable[[Sequence[object]], object] | None = None,
) -> int:
    """Write `checkpoint`; the number of bytes that it takes, also if nothing is written.

    `inputs` are the files that bytes come from beside its own. `prepare` is given the sources of
    all bytes in the order in which they will be read, before the first is.
    """
    if checkpoint.unwritable:
        name = checkpoint.file.name
        raise LossyEditError(
            f"writing it again would lose something: {checkpoint.unwritable}",
            path=name,
            hint=f"take the weights alone: ckpt convert --state-dict-only {name} -o weights.pth",
        )
    layout = lay_out_torch_zip(checkpoint)
    if not output.dry_run:
        bar = output.progress
        if prepare is not None:
            prepare([record.source for record in layout.records])
        with (
            nullcontext(None) if bar is None else bar(layout.nbytes) as progress,
            _opened(checkpoint.file, output, [checkpoint.file, *inputs], progress) as sink,
        ):
            layout.write(sink)
    return layout.nbytes


@contextmanager
def _opened(
    file: SourceFile, output: Output, inputs: Sequence[SourceFile], progress: Progress | None
) -> Iterator[Sink]:
    if output.stream is not None:
        with stream_output(output.stream, inputs=inputs, progress=progress) as sink:
            yield sink
        return
    path = file.path if output.in_place else output.path
    if path is None:
        raise UsageError("standard input cannot be edited in place", hint="give -o FILE")
    with atomic_output(
        path,
        force=output.force,
        replacing=file if output.in_place else None,
        inputs=inputs,
        fsync=output.fsync,
        progress=progress,
    ) as sink:
        yield sink


def _report(
    command: str,
    before: Checkpoint,
    after: Checkpoint,
    planned: Planned,
    output: Output,
    nbytes: int,
) -> EditReport:
    edits = planned.plan.edits
    renames = [edit for edit in edits if isinstance(edit, Rename)]
    moved = {(edit.state_dict, edit.new) for edit in renames}
    return EditReport(
        command=command,
        inputs=(before.file.name,),
        output=destination(before, output),
        format=OUTPUT_FORMAT,
        plan=(*planned.plan.to_dict(), *conversion(before)),
        rules=tuple(each.rule.to_dict() | {"matched": each.matched} for each in planned.rules),
        kept=tuple(
            join_path(state_dict.path, entry.name)
            for state_dict in after.state_dicts
            for entry in state_dict.entries
            if (state_dict.path, entry.name) not in moved
        ),
        removed=tuple(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop)),
        renamed=tuple(
            (join_path(e.state_dict, e.old), join_path(e.state_dict, e.new)) for e in renames
        ),
        carried=tuple(other.path for other in after.others),
        dropped=tuple(
            dict.fromkeys(
                (
                    *(e.path for e in edits if isinstance(e, DropOther | DropStateDict)),
                    *left_out(before, after),
                )
            )
        ),
        optimizers=planned.optimizers,
        warnings=(*before.notes, *planned.warnings),
        nbytes_before=before.file.size,
        nbytes_after=nbytes,
    )


def as_archive(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as what `write` makes of it, from whatever format it was read.

    A pickled module is then its state dict. Of TorchScript and safetensors only the state dict
    is left: what lies beside it has no place in a pickle.
    """
    others = () if checkpoint.format in _WITHOUT_OTHERS else checkpoint.others
    return replace(checkpoint, format=OUTPUT_FORMAT, others=others)


def left_out(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """The paths of the other entries that `after` does not have."""
    kept = {other.path for other in after.others}
    return tuple(other.path for other in before.others if other.path not in kept)


def conversion(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """The change of format that writing a checkpoint brings about, as an edit of a plan."""
    if checkpoint.format == OUTPUT_FORMAT:
        return []
    return [{"edit": "convert", "from": checkpoint.format, "to": OUTPUT_FORMAT}]


def destination(checkpoint: Checkpoint, output: Output) -> str | None:
    """The output's name for a report; None if nothing is written."""
    if output.dry_run:
        return None
    if output.stream is not None:
        return "<stdout>"
    return checkpoint.file.name if output.in_place else str(output.path)
