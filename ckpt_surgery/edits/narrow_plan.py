"""Planning to write one state dict alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.follow import with_those_inside
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Planned, followed_by
from ckpt_surgery.torch_objects.averages import swapped_pairs, usual_models

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
    chosen, warnings = the_one(planned.plan.apply(checkpoint), at)
    planned = replace(planned, warnings=(*planned.warnings, *warnings))
    return followed_by(planned, [OnlyStateDict(chosen.path)])


def the_one(checkpoint: Checkpoint, at: Sequence[str]) -> tuple[StateDict, tuple[str, ...]]:
    """Return the state dict that is meant where one is to be written alone, and what to warn of.

    Where saving has swapped a model's weights and their average that is what lies in the model's
    place, and what its framework loads. Raises `UsageError` as `the_state_dict` does.
    """
    pairs = [] if at else swapped_pairs(checkpoint.state_dicts)
    usual = usual_models(checkpoint.state_dicts)
    if len(pairs) != 1 or [each.path for each in usual] != [pairs[0].average]:
        return the_state_dict(checkpoint, at), ()
    (pair,) = pairs
    said = (
        f"the weights in '{pair.average}' are the average, as {pair.title} saves it; those in "
        f"training are taken by --at {pair.trained}"
    )
    return usual[0], (said,)
