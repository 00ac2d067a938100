"""Write any readable checkpoint as an archive of ``torch.save``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint import Checkpoint, StateDict, join_path
from ckpt_surgery.choosing import choose_state_dicts
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.formats import read
from ckpt_surgery.ops.editing import (
    OUTPUT_FORMAT,
    Output,
    as_archive,
    destination,
    left_out,
    named_by_content,
    write,
)
from ckpt_surgery.reports.edits import EditReport


def convert(
    source: PathLike | SourceFile,
    output: Output | PathLike,
    *,
    at: str | None = None,
    state_dict_only: bool = False,
) -> EditReport:
    """Write `source`, of whatever format, as an archive that every torch since 1.6 loads.

    A pickled module becomes its state dict, its class not being needed; of TorchScript and
    safetensors the state dict is all that is written, which the report's `dropped` says.
    `state_dict_only` writes the state dict alone, without what lies beside it; `at` says which if
    there are several.

    Raises `UsageError` if there is no state dict, or several to choose from, `ReadError` for a bad
    input and `WriteError` for a bad output.
    """
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    with read(source) as checkpoint:
        converted = as_archive(checkpoint)
        if state_dict_only or at is not None:
            converted = alone(converted, the_state_dict(checkpoint, [at] if at is not None else []))
        target = named_by_content(converted, target)
        nbytes = write(converted, target)
        return _report(checkpoint, converted, target, nbytes)


def the_state_dict(checkpoint: Checkpoint, at: Sequence[str]) -> StateDict:
    """The state dict at `at`, or the only one. Raises `UsageError` if there are several."""
    found = choose_state_dicts(checkpoint, at)
    if len(found) > 1:
        paths = ", ".join(f"'{state_dict.path}' ({state_dict.kind})" for state_dict in found)
        raise UsageError(
            f"there are {len(found)} state dicts: {paths}",
            path=checkpoint.file.name,
            hint=f"choose one, for example with --at {found[0].path}",
        )
    return found[0]


def alone(checkpoint: Checkpoint, state_dict: StateDict) -> Checkpoint:
    """A checkpoint of that state dict and nothing beside it."""
    return replace(
        checkpoint,
        dropped=(),
        root=state_dict.node,
        state_dicts=(replace(state_dict, path=""),),
        others=(),
        unwritable="",
    )


def _report(before: Checkpoint, after: Checkpoint, output: Output, nbytes: int) -> EditReport:
    return EditReport(
        command="convert",
        inputs=(before.file.name,),
        output=destination(before, output),
        format=OUTPUT_FORMAT,
        plan=({"edit": "convert", "from": before.format, "to": OUTPUT_FORMAT},),
        rules=(),
        kept=tuple(join_path(s.path, entry.name) for s in after.state_dicts for entry in s.entries),
        removed=(),
        renamed=(),
        carried=tuple(other.path for other in after.others),
        dropped=left_out(before, after),
        warnings=before.notes,
        nbytes_before=before.file.size,
        nbytes_after=nbytes,
    )
