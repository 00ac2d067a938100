"""Planning to write one state dict alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.follow import with_those_inside
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Planned, followed_by

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import OptimizerChoice


def narrowed(
    checkpoint: Checkpoint, planned: Planned, at: Sequence[str], choice: OptimizerChoice
) -> Planned:
    """Return the plan, after which the one state dict that is left, or at `at`, is written alone.

    What lies beside it goes with all else, so that no optimizer there has to follow. Raises
    `UsageError` if several are left.
    """
    planned = with_those_inside(checkpoint, planned, choice)
    alone = OnlyStateDict(the_state_dict(planned.plan.apply(checkpoint), at).path)
    return followed_by(planned, [alone])
