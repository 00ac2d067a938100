"""Remove entries from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.averages import plan_averages
from ckpt_surgery.edits.follow import with_optimizers, with_those_inside
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.strip_plan import plan_strip
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.names import Selection
from ckpt_surgery.ops.run import edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.torch_objects.training_state import TrainingStates
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import OptimizerChoice


def strip(
    source: PathLike | Source,
    output: Output | PathLike,
    selection: Selection | None = None,
    *,
    at: Sequence[str] = (),
    training_state: bool = False,
    ema: bool = False,
    compact: bool = False,
    optimizer: OptimizerChoice = "auto",
    state_dict_only: bool = False,
) -> EditReport:
    """Write `source` without the entries that `selection` takes.

    The same entries go from every state dict in the file (a model's and its moving average), or
    from those at the paths `at`; their modules' ``_metadata`` goes with them. An optimizer loses
    the state of removed parameters, and the others are renumbered; `optimizer` ``"keep"`` leaves
    it as it is, ``"drop"`` leaves it out. `training_state` removes optimizers, schedulers and the
    like, and moving averages, or with `ema` puts these in the model's place. `compact` removes the
    bytes of storages that no remaining tensor uses. Everything else is carried over as it is, or
    with `state_dict_only` left out: the one state dict that remains, or that at `at`, is then the
    whole file. Tied weights stay tied.

    Raises `UsageError` for a rule that matches nothing, `PlanError` if an optimizer's state cannot
    be told apart, `ReadError` for a bad input, `LossyEditError` for a format that cannot be edited
    and `WriteError` for a bad output.
    """
    if ema and not training_state:
        raise UsageError(
            "'ema' says what 'training_state' leaves",
            hint="add 'training_state'",
            fields=("ema", "training_state"),
        )
    if training_state and optimizer != "auto":
        raise UsageError(
            f"'training_state' and 'optimizer {optimizer}' contradict each other",
            fields=("training_state", "optimizer"),
        )

    def build(checkpoint: Checkpoint) -> Planned:
        averages = plan_averages(checkpoint, publish=ema) if training_state else Plan()
        planned = plan_strip(
            averages.apply(checkpoint),
            selection or Selection(),
            at=at,
            training_state=TrainingStates().kind if training_state else None,
            compact=compact,
        )
        whole = Plan((*averages.edits, *planned.plan.edits))
        if not state_dict_only:
            return with_optimizers(checkpoint, replace(planned, plan=whole), optimizer)
        # what lies beside weights that are written alone goes with all else
        planned = with_those_inside(checkpoint, replace(planned, plan=whole), optimizer)
        alone = OnlyStateDict(the_state_dict(planned.plan.apply(checkpoint), at).path)
        return replace(planned, plan=Plan((*planned.plan.edits, alone)))

    target = output if isinstance(output, Output) else Output(output)
    return edit("strip", source, target, build)
