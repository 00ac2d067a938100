"""Write a checkpoint to its output: lay out, then copy or compute each byte once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import SAVE_STATE_DICT, missing_of, missing_said
from ckpt_surgery.compute.ahead import scheduled
from ckpt_surgery.compute.casts import Cast, CastCount, tallies_of
from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.errors import LossyEditError, PathLike, UsageError
from ckpt_surgery.fileio import PartSource, Source
from ckpt_surgery.fileio.atomic import atomic_output, stream_output
from ckpt_surgery.fileio.member import MemberSource, require_whole_members
from ckpt_surgery.fileio.sink import Progress, Sink
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.base import Layout, Loss
from ckpt_surgery.formats.torch_module import TorchModule
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.rebuild import stays_module
from ckpt_surgery.writing.output import HASH_DIGITS, Output, without_hash
from ckpt_surgery.writing.target import (
    output_format,
    require_held,
    require_honoured,
    require_modules,
    without,
)
from ckpt_surgery.writing.verifying import has_checksums, read_through, unchecked_nbytes, verified


@dataclass(frozen=True, slots=True)
class Written:
    """What an output holds: `checkpoint`, in `nbytes` bytes. Under a dry run it would.

    `output` is its name, None of a dry run; `losses` are what its format could not hold, and
    `sidecar` the paths of those among them that were written beside it. `metadata` was set.
    `computed` is what became of numbers that were rounded to an element type. `unchanged` says
    that the output held the same before. `unchecked_nbytes` are those bytes that should have been
    compared with a checksum and have none. `loses_checksums` says that bytes were not compared
    with theirs, and that its format has none that would show damage later.
    """

    checkpoint: Checkpoint
    output: str | None
    nbytes: int
    losses: tuple[Loss, ...] = ()
    sidecar: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    computed: tuple[Cast, ...] = ()
    unchanged: bool = False
    unchecked_nbytes: int = 0
    loses_checksums: bool = False

    @property
    def casts(self) -> tuple[Cast, ...]:
        """What was converted to another element type."""
        return tuple(cast for cast in self.computed if cast.changes_type)

    @property
    def format(self) -> str:
        """The name of the output's format."""
        return self.checkpoint.format

    @property
    def removed(self) -> tuple[str, ...]:
        """The entries of state dicts (``path/name``) that were left out."""
        return tuple(loss.path for loss in self.losses if loss.part == "entry")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What else was left out or lost, as sentences for a report."""
        stays = self.format == TorchModule.name  # the module of another place does
        said = {"file": "is left out"} | ({} if stays else {"module": "becomes its state dict"})
        left_out = (f"{e.what} {said[e.part]}: {e.why}" for e in self.losses if e.part in said)
        alone = (
            f"the module in '{e.path}' becomes its state dict, beside one that stays a module"
            for e in self.losses
            if e.part == "module" and stays
        )
        beside = f"in the sidecar: {', '.join(self.sidecar)}"
        counts = (c.count for c in self.computed if c.count is not None and not c.changes_type)
        lost = sum(counts, CastCount())
        rounded = f"of numbers rounded to their type {lost.words}"
        bare = f"{self.unchecked_nbytes} bytes were copied that have no checksum to compare with"
        unseen = f"checksums are left out: {self.format} has none; --verify compares them first"
        same = f"'{self.output}' holds this already"
        missing = _missing(self.checkpoint)
        return (
            *left_out,
            *alone,
            *([missing_said(missing, "is left out")] if missing else []),
            *([beside] if self.sidecar else []),
            *([rounded] if lost else []),
            *([bare] if self.unchecked_nbytes else []),
            *([unseen] if self.loses_checksums else []),
            *([same] if self.unchanged else []),
        )


def write(
    checkpoint: Checkpoint,
    output: Output,
    *,
    inputs: Sequence[Source] = (),
    computing: Computing | None = None,
) -> Written:
    """Write `checkpoint` in the format of `output`, and return what was written.

    `inputs` are the files that bytes come from beside its own; `computing` is what those tensors
    may use that are computed.

    Raises `LossyEditError` if the format cannot hold something, or an element type a number, and
    `output` does not allow that, `WriteError` if the output is an input, `ReadError` if an input
    changed while it was read, and `DamagedFileError` if bytes are not those of their checksum and
    `output` verifies.
    """
    sources = [*checkpoint.sources, *inputs]
    output.refuse_inputs(sources)
    held, layout, losses, beside = laid_out(checkpoint, output)
    if output.in_place:
        _require_like(checkpoint, layout)
    require_whole_members(sources)
    tallies = tallies_of(layout.sources)
    for tally in tallies:
        tally.allow_loss, tally.path = output.allow_loss, checkpoint.file.name
    checking = verified(layout) if output.verifies else layout
    named = _named_by_content(checking, output)
    # what was read for the name was compared then
    layout, output = (checking if named is output else layout), named
    output.refuse_inputs(sources)
    same = _holds_already(layout, checkpoint.file, output, computing)
    if not output.dry_run:
        bar = output.progress
        with (
            _sidecar(beside, output, sources),
            nullcontext() if same else scheduled(layout.sources, computing or Computing()),
            nullcontext(None) if bar is None or same else bar(layout.nbytes) as progress,
        ):
            if same:
                _require_unchanged(sources)
            else:
                _write(layout, checkpoint.file, output, sources, progress)
    elif output.verify and not same:
        with scheduled(layout.sources, computing or Computing()):
            read_through(layout)
    return Written(
        held,
        _destination(checkpoint, output),
        layout.nbytes,
        tuple(losses),
        tuple(beside),
        output.options.metadata,
        tuple(tally.cast for tally in tallies),
        same,
        unchecked_nbytes(layout) if output.verify else 0,
        not output.verifies
        and not registry.get(held.format).keeps_checksums
        and has_checksums(layout),
    )


def _holds_already(
    layout: Layout, file: Source, output: Output, computing: Computing | None
) -> bool:
    """Return whether the output holds the same already, so that it need not be written.

    Its time is made new then, as if it had been, unless it is to be left alone.
    """
    path = file.path if output.in_place else output.path
    asked = output.if_changed or not (output.force or output.in_place)
    if path is None or output.dry_run or not asked or not Path(path).exists():
        return False
    from ckpt_surgery.writing.same import holds_layout  # only where there is something to compare

    with scheduled(layout.sources, computing or Computing()):
        same = holds_layout(path, layout)
    if same and not output.if_changed:
        os.utime(path)
    return same


def _require_like(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raise `UsageError` if the output cannot take the place of the input: one file of several."""
    file = checkpoint.file
    if not layout.is_directory and len(checkpoint.sources) > 1:
        raise UsageError(
            "it is made of several files, which one file cannot take the place of",
            path=file.name,
            hint="give -o FILE",
        )
    if layout.is_directory and (file.path is None or not Path(file.path).is_dir()):
        raise UsageError(
            "a sharded checkpoint is not replaced in place: other files lie beside its shards",
            path=file.name,
            hint="give -o DIRECTORY, which is not to exist yet",
        )


def laid_out(
    checkpoint: Checkpoint, output: Output
) -> tuple[Checkpoint, Layout, list[Loss], dict[str, Any]]:
    """Return what will be written and where, what that does not hold, and what goes beside it."""
    if checkpoint.unwritable:
        name = checkpoint.file.name
        raise LossyEditError(
            f"writing it again would lose something: {checkpoint.unwritable}",
            path=name,
            hint=f"take the weights alone: ckpt convert --state-dict-only {name} -o weights.pth",
        )
    if not output.allow_loss:
        _require_whole(checkpoint)
    target = output_format(checkpoint, output)
    require_honoured(target, output.options)
    if checkpoint.provenance and not target.keeps_provenance:
        raise UsageError(
            f"'provenance': {target.title} cannot keep it",
            fields=("provenance",),
            hint="--record keeps the report beside the output",
        )
    losses = list(target.losses(checkpoint))
    require_modules(checkpoint, output, target, losses)
    beside = _beside(checkpoint, output, losses)
    if not output.allow_loss:
        refused = [loss for loss in losses if loss.refused and loss.path not in beside]
        has_sidecar = output.sidecar is not None
        require_held(checkpoint, target, refused, has_sidecar=has_sidecar)
    held = replace(without(checkpoint, losses), format=target.name)
    require_held(checkpoint, target, [loss for loss in target.losses(held) if loss.refused])
    options = replace(output.options, nameless=output.hash_name)
    layout = target.lay_out(held, options)
    if any(stays_module(held, state_dict) for state_dict in held.state_dicts):
        held = replace(held, format=TorchModule.name)  # what reading it will call it
    return held, layout, losses, beside


def _require_whole(checkpoint: Checkpoint) -> None:
    """Raise `LossyEditError` for a model whose state dict was not read in full."""
    missing = _missing(checkpoint)
    if missing:
        raise LossyEditError(
            missing_said(missing, "would be lost"),
            path=checkpoint.file.name,
            hint=f"{SAVE_STATE_DICT}; --allow-loss leaves it out",
        )


def _missing(checkpoint: Checkpoint) -> list[str]:
    """Return what no state dict of those that are written has, as its module stays no module."""
    return missing_of(s for s in checkpoint.state_dicts if not stays_module(checkpoint, s))


def _beside(checkpoint: Checkpoint, output: Output, losses: Sequence[Loss]) -> dict[str, Any]:
    """Return the plain values among `losses` by their paths, if there is a file for them."""
    if output.sidecar is None:
        return {}
    from ckpt_surgery.torch_objects.plain import NotPlainError, as_json

    lost = {loss.path for loss in losses if loss.part in {"other", "entry"} and loss.refused}
    places = [(other.path, other.node) for other in checkpoint.others]
    for state_dict in checkpoint.state_dicts:  # a step count may stand among the weights
        places += (
            (join_path(state_dict.path, entry.name), entry.node)
            for entry in state_dict.entries
            if entry.tensor is None
        )
    values: dict[str, Any] = {}
    for path, node in places:
        if path in lost:
            with suppress(NotPlainError):
                values[path] = as_json(node)
    if not values:
        raise UsageError("'--sidecar': there is nothing plain that it could hold")
    return values


@contextmanager
def _sidecar(values: Mapping[str, Any], output: Output, inputs: Sequence[Source]) -> Iterator[None]:
    """Write the values beside the weights, which appear right after those, or not at all."""
    if output.sidecar is None:
        yield
        return
    import json

    from ckpt_surgery.fileio.unchanged import holds

    data = json.dumps(values, indent=2, allow_nan=False).encode() + b"\n"
    if not output.force and holds(output.sidecar, len(data), lambda sink: sink.write(data)):
        yield
        return
    with atomic_output(output.sidecar, force=output.replaces, inputs=inputs) as sink:
        sink.write(data)
        yield


def _named_by_content(layout: Layout, output: Output) -> Output:
    """Return `output` with the hash in its name, if wanted; everything is read once for it."""
    if not output.hash_name or output.dry_run or output.path is None:
        return output
    if layout.is_directory:
        raise UsageError(
            "'hash_name' is for a single file, and the output is a directory",
            fields=("hash_name",),
        )
    from ckpt_surgery.fileio.digest_sink import DigestSink  # hashlib takes long to import

    digest = DigestSink()
    with scheduled(layout.sources, Computing()):
        layout.files[0].write(digest)
    path = Path(output.path)
    name = f"{without_hash(path.stem)}-{digest.hexdigest()[:HASH_DIGITS]}{path.suffix}"
    return replace(output, path=path.with_name(name), hash_name=False)


def _write(
    layout: Layout,
    file: Source,
    output: Output,
    inputs: Sequence[Source],
    progress: Progress | None,
) -> None:
    if layout.is_directory:
        from ckpt_surgery.writing.directory import write_directory

        write_directory(layout, file, output, inputs, progress)
        return
    with _opened(file, output, inputs, progress) as sink:
        layout.files[0].write(sink)
        _require_unchanged(inputs)


def _require_unchanged(inputs: Sequence[Source]) -> None:
    for source in inputs:
        source.require_unchanged()


@contextmanager
def _opened(
    file: Source, output: Output, inputs: Sequence[Source], progress: Progress | None
) -> Iterator[Sink]:
    if output.stream is not None:
        with stream_output(output.stream, inputs=inputs, progress=progress) as sink:
            yield sink
        return
    if output.in_place and isinstance(file, MemberSource) and file.can_be_put_back:
        with file.put_back(inputs, output.fsync, progress) as sink:
            yield sink
        return
    with atomic_output(
        _path_of(file, output),
        force=output.replaces,
        replacing=file if output.in_place else None,
        inputs=inputs,
        fsync=output.fsync,
        progress=progress,
    ) as sink:
        yield sink


def _path_of(file: Source, output: Output) -> PathLike:
    """Return where the output goes. Raises `UsageError` if the input cannot be replaced."""
    path = file.path if output.in_place else output.path
    if path is None and isinstance(file, PartSource) and not isinstance(file, MemberSource):
        raise UsageError(
            f"'{file.name}' is a part of a file and cannot be edited in place",
            hint="give -o FILE: the rest of that file is not written again",
        )
    if path is None:
        raise UsageError(
            f"'{file.name}' is no file of its own and cannot be edited in place",
            hint="give -o FILE",
        )
    return path


def left_out(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """Return the paths of the other entries that `after` does not have."""
    kept = {other.path for other in after.others}
    return tuple(other.path for other in before.others if other.path not in kept)


def _destination(checkpoint: Checkpoint, output: Output) -> str | None:
    """Return the output's name for a report; None if nothing is written."""
    if output.dry_run:
        return None
    if output.stream is not None:
        return "<stdout>"
    return checkpoint.file.name if output.in_place else str(output.path)
