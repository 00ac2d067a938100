"""Remove entries from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.averages import plan_averages
from ckpt_surgery.edits.follow import with_optimizers
from ckpt_surgery.edits.narrow_plan import narrowed
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


@dataclass(frozen=True, slots=True)
class StripRequest:
    """What is to be removed.

    The entries that `selection` takes go from every state dict in the file (a model's and its
    moving average), or from those at the paths `at`; their modules' ``_metadata`` goes with them.
    An optimizer loses the state of removed parameters, and the others are renumbered; `optimizer`
    ``"keep"`` leaves it as it is, ``"drop"`` leaves it out. `training_state` removes optimizers,
    schedulers and the like, and moving averages, or with `ema` puts these in the model's place.
    `compact` removes the bytes of storages that no remaining tensor uses. Everything else is
    carried over as it is, or with `state_dict_only` left out: the one state dict that remains, or
    that at `at`, is then the whole file. Tied weights stay tied.

    Raises `UsageError` for choices that contradict each other.
    """

    selection: Selection = field(default_factory=Selection)
    at: Sequence[str] = ()
    training_state: bool = False
    ema: bool = False
    compact: bool = False
    optimizer: OptimizerChoice = "auto"
    state_dict_only: bool = False

    def __post_init__(self) -> None:
        if self.ema and not self.training_state:
            raise UsageError(
                "'ema' says what 'training_state' leaves",
                hint="add 'training_state'",
                fields=("ema", "training_state"),
            )
        if self.training_state and self.optimizer != "auto":
            raise UsageError(
                f"'training_state' and 'optimizer {self.optimizer}' contradict each other",
                fields=("training_state", "optimizer"),
            )

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it. Raises `UsageError` for a rule that matches nothing, and `PlanError`."""
        averages = Plan()
        if self.training_state:
            averages = plan_averages(checkpoint, publish=self.ema)
        planned = plan_strip(
            averages.apply(checkpoint),
            self.selection,
            at=self.at,
            training_state=TrainingStates().kind if self.training_state else None,
            compact=self.compact,
        )
        planned = replace(planned, plan=Plan((*averages.edits, *planned.plan.edits)))
        if not self.state_dict_only:
            return with_optimizers(checkpoint, planned, self.optimizer)
        return narrowed(checkpoint, planned, self.at, self.optimizer)


def strip(
    source: PathLike | Source,
    output: Output | PathLike,
    request: StripRequest | Selection | None = None,
    **choices: Any,
) -> EditReport:
    """Write `source` without what `request` says.

    ``strip(file, output, selection(prefix="fc"), compact=True)`` is short for
    ``strip(file, output, StripRequest(selection(prefix="fc"), compact=True))``.

    Raises `UsageError` for a rule that matches nothing, `PlanError` if an optimizer's state cannot
    be told apart, `ReadError` for a bad input, `LossyEditError` for a format that cannot be edited
    and `WriteError` for a bad output.
    """
    if not isinstance(request, StripRequest):
        request = StripRequest(request or Selection(), **choices)
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    return edit("strip", source, output, request.plan)
