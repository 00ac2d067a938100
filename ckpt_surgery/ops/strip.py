"""Remove entries from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint import Checkpoint
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.formats import holds_optimizer, is_training_state
from ckpt_surgery.ops.editing import Output, edit
from ckpt_surgery.plan import Drop, DropOther, Planned, plan_strip
from ckpt_surgery.report import EditReport
from ckpt_surgery.rules import Selection


def strip(
    source: PathLike | SourceFile,
    output: Output | PathLike,
    selection: Selection | None = None,
    *,
    at: Sequence[str] = (),
    training_state: bool = False,
    compact: bool = False,
) -> EditReport:
    """Write `source` without the entries that `selection` takes.

    The same entries go from every state dict in the file (a model's and its moving average), or
    from those at the paths `at`; their modules' ``_metadata`` goes with them. `training_state`
    removes optimizers, schedulers and the like, `compact` the bytes of storages that no remaining
    tensor uses. Everything else is carried over as it is; tied weights stay tied.

    Raises `UsageError` for a rule that matches nothing, `ReadError` for a bad input,
    `LossyEditError` for a format that cannot be edited and `WriteError` for a bad output.
    """

    def build(checkpoint: Checkpoint) -> Planned:
        planned = plan_strip(
            checkpoint,
            selection or Selection(),
            at=at,
            training_state=is_training_state if training_state else None,
            compact=compact,
        )
        return replace(planned, warnings=(*planned.warnings, *_left_behind(checkpoint, planned)))

    return edit("strip", source, output if isinstance(output, Output) else Output(output), build)


def _left_behind(checkpoint: Checkpoint, planned: Planned) -> Iterator[str]:
    """Optimizers that stay although parameters they know are removed."""
    if not any(isinstance(each, Drop) for each in planned.plan.edits):
        return
    dropped = {each.path for each in planned.plan.edits if isinstance(each, DropOther)}
    for other in checkpoint.others:
        if other.path not in dropped and holds_optimizer(other.node):
            yield (
                f"the optimizer in '{other.path}' still holds the state of removed parameters; "
                "--training-state removes the optimizer"
            )
