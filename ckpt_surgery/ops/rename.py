"""Rename the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.follow import with_optimizers, with_those_inside
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename_plan import plan_rename
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.names.rewrite import RewriteRule
from ckpt_surgery.ops.run import edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import OptimizerChoice


def rename(
    source: PathLike | Source,
    output: Output | PathLike,
    rules: Sequence[RewriteRule],
    *,
    at: Sequence[str] = (),
    optimizer: OptimizerChoice = "auto",
    state_dict_only: bool = False,
) -> EditReport:
    """Write `source` with its entries renamed by `rules`, one after the other.

    Every state dict in the file is renamed, or those at the paths `at`; ``_metadata`` follows, and
    so do the names that an optimizer stores. `optimizer` and `state_dict_only` are as for `strip`.

    Raises `UsageError` for a rule that changes nothing or makes an empty name,
    `NameCollisionError` if two entries would get one name, and what `strip` raises.
    """

    def build(checkpoint: Checkpoint) -> Planned:
        planned = plan_rename(checkpoint, rules, at=at)
        if not state_dict_only:
            return with_optimizers(checkpoint, planned, optimizer)
        # what lies beside weights that are written alone goes with all else
        planned = with_those_inside(checkpoint, planned, optimizer)
        alone = OnlyStateDict(the_state_dict(planned.plan.apply(checkpoint), at).path)
        return replace(planned, plan=Plan((*planned.plan.edits, alone)))

    target = output if isinstance(output, Output) else Output(output)
    return edit("rename", source, target, build)
