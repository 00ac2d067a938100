"""Planning what becomes of optimizers whose model is edited."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.compact import Compact
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.inline_optimizer import HINT, inside, out_of_step, refusal, same, without
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename import Rename
from ckpt_surgery.errors import about_file

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange
    from ckpt_surgery.training.optimizers import InStep, OptimizerChoice


def with_all_in_step(
    checkpoint: Checkpoint, planned: Planned, choice: OptimizerChoice = "auto"
) -> Planned:
    """Return the plan, extended so that averages and optimizers stay in step with the models it
    edits.

    Raises PlanError as `_with_optimizers` does.
    """
    if checkpoint.others:  # otherwise bare weights
        from ckpt_surgery.edits.averages_plan import with_averages
        from ckpt_surgery.edits.names_elsewhere import names_left_behind, names_that_go

        edits = planned.plan.edits
        left = tuple(names_left_behind(checkpoint, names_that_go(edits), edits))
        planned = with_averages(checkpoint, planned)
        planned = replace(planned, warnings=(*planned.warnings, *left))
    return _with_optimizers(checkpoint, planned, choice)


def _with_optimizers(
    checkpoint: Checkpoint, planned: Planned, choice: OptimizerChoice = "auto"
) -> Planned:
    """Return the plan, extended so that optimizers stay in step with the models that it edits.

    Raises PlanError where it is not certain which state belongs to which parameter.
    """
    planned = with_those_inside(checkpoint, planned, choice)
    if not checkpoint.others:  # bare weights: nothing that could be an optimizer
        return planned
    from ckpt_surgery.training.optimizers import keep_in_step

    result = keep_in_step(checkpoint, planned.plan.apply(checkpoint), choice)
    last = [edit for edit in planned.plan.edits if isinstance(edit, Compact)]
    first = [edit for edit in planned.plan.edits if not isinstance(edit, Compact)]
    return replace(
        planned,
        plan=Plan((*first, *following(result), *last)),
        warnings=(*planned.warnings, *result.warnings),
        optimizers=(*planned.optimizers, *result.changes),
    )


def following(step: InStep) -> list[Edit]:
    """Return the edits that bring optimizers in step, as `keep_in_step` found them."""
    if not (step.updates or step.dropped):
        return []
    from ckpt_surgery.edits.optimizer import UpdateOptimizer

    updates = (UpdateOptimizer(path, groups) for path, groups in step.updates.items())
    return [*updates, *map(DropOther, step.dropped)]


def with_those_inside(checkpoint: Checkpoint, planned: Planned, choice: OptimizerChoice) -> Planned:
    """Return the plan, which also drops optimizers among the weights,
    or must not touch their weights.

    Raises PlanError if it does touch them and the choice is neither to drop nor to keep them.
    """
    if choice == "keep" or not inside(checkpoint.state_dicts):
        return planned
    found = out_of_step(checkpoint.state_dicts, planned.plan.apply(checkpoint).state_dicts)
    if not found:
        return planned
    if choice != "drop":
        raise refusal(found, checkpoint, HINT)
    gone = {(state_dict.path, entry.name) for state_dict, entry in found}
    edits = [
        edit
        for edit in planned.plan.edits
        if not (isinstance(edit, Rename) and (edit.state_dict, edit.old) in gone)
    ]
    drops = [Drop(*place) for place in sorted(gone)]
    changes = _dropped(join_path(*place) for place in sorted(gone))
    return replace(
        planned,
        plan=Plan((*drops, *edits)),
        optimizers=(*planned.optimizers, *changes),
    )


def follow_base(
    original: Checkpoint, renamed: Checkpoint, merged: Checkpoint, choice: OptimizerChoice
) -> tuple[list[Edit], tuple[OptimizerChange, ...]]:
    """Return the edits that let the base's optimizers follow a merge, and what they change.

    `original` is the base before any edit, `renamed` what the other edits apply to, `merged` what
    they give. Raises PlanError as `_with_optimizers` does.
    """
    held = out_of_step(original.state_dicts, merged.state_dicts) if choice != "keep" else []
    if held and choice != "drop":
        raise refusal(held, original, HINT)
    changes = _dropped(join_path(s.path, entry.name) for s, entry in held)
    merged = without(merged, held)
    edits: list[Edit] = [Drop(s.path, entry.name) for s, entry in same(held, renamed)]
    if not merged.others:  # bare weights
        return edits, changes
    from ckpt_surgery.training.optimizers import keep_in_step

    with about_file(original.file.name):
        step = keep_in_step(original, merged, choice)
    return [*edits, *following(step)], changes + step.changes


def _dropped(paths: Iterable[str]) -> tuple[OptimizerChange, ...]:
    found = list(paths)
    if not found:
        return ()
    from ckpt_surgery.training.documents import OptimizerChange

    return tuple(OptimizerChange(path, "dropped") for path in found)
