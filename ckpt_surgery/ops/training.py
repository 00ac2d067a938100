"""What an edit of a training checkpoint does beside its weights: optimizers, moving averages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint import Checkpoint
from ckpt_surgery.errors import UsageError
from ckpt_surgery.plan import (
    Compact,
    DropOther,
    DropStateDict,
    Edit,
    Plan,
    Planned,
    TakeWeights,
    UpdateOptimizer,
    apply,
)

if TYPE_CHECKING:
    from ckpt_surgery.optimizers import OptimizerChoice


def with_optimizers(
    checkpoint: Checkpoint, planned: Planned, choice: OptimizerChoice = "auto"
) -> Planned:
    """The plan, extended so that optimizers stay in step with the models that it edits.

    Raises PlanError where it is not certain which state belongs to which parameter.
    """
    if not checkpoint.others:  # bare weights: nothing that could be an optimizer
        return planned
    from ckpt_surgery.optimizers import keep_in_step

    result = keep_in_step(checkpoint, apply(planned.plan, checkpoint), choice)
    known = {other.path for other in checkpoint.others}
    edits: list[Edit] = [
        UpdateOptimizer(change.path) for change in result.changes if change.action == "updated"
    ]
    present = {other.path for other in result.checkpoint.others}
    already = {edit.path for edit in planned.plan.edits if isinstance(edit, DropOther)}
    edits += (DropOther(path) for path in sorted(known - present - already))
    last = [edit for edit in planned.plan.edits if isinstance(edit, Compact)]
    first = [edit for edit in planned.plan.edits if not isinstance(edit, Compact)]
    return replace(
        planned,
        plan=Plan((*first, *edits, *last)),
        warnings=(*planned.warnings, *result.warnings),
        optimizers=result.changes,
    )


def plan_averages(checkpoint: Checkpoint, *, publish: bool) -> Plan:
    """Leave out the moving averages of models that are there too; `publish` them in their place.

    Raises UsageError if there is none to publish, or if one model has several.
    """
    from ckpt_surgery.averages import find_averages

    pairs = find_averages(checkpoint)
    edits: list[Edit] = []
    if publish:
        if not pairs:
            raise UsageError(
                "'--ema': there is no moving average of a model's weights",
                path=checkpoint.file.name,
                hint="'ckpt inspect' shows the state dicts of a file and their kinds",
            )
        models = [model.path for model, _ in pairs]
        twice = next((path for path in models if models.count(path) > 1), None)
        if twice is not None:
            averages = ", ".join(f"'{a.path}'" for m, a in pairs if m.path == twice)
            raise UsageError(
                f"'--ema': the model in '{twice}' has several averages: {averages}",
                path=checkpoint.file.name,
                hint="ckpt convert --at PATH writes one of them alone",
            )
        edits += (TakeWeights(model.path, average.path) for model, average in pairs)
    edits += (DropStateDict(path) for path in dict.fromkeys(a.path for _, a in pairs))
    return Plan(tuple(edits))
