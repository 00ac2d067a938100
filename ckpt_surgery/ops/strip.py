"""Remove entries from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.compact import with_true_numbers
from ckpt_surgery.edits.entry_plan import plan_entry_drops, split_by_depth, unwrapping
from ckpt_surgery.edits.follow import with_all_in_step
from ckpt_surgery.edits.narrow_plan import narrowed
from ckpt_surgery.edits.plan import Plan, Planned, followed_by
from ckpt_surgery.edits.strip_plan import NO_TRAINING_STATE, plan_strip
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.names import Selection
from ckpt_surgery.names.entries import EntryRule
from ckpt_surgery.ops.run import edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
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
    `compact` removes the bytes of storages that no remaining tensor uses, and with `break_views`
    gives each of several overlapping tensors its own bytes. Everything else is
    carried over as it is, or with `state_dict_only` left out: the one state dict that remains, or
    that at `at`, is then the whole file. Tied weights stay tied.

    `entries` are paths, or globs of paths, of what lies beside the weights and is to go; with
    `keep_entries` all others go. `unwrap` makes the only entry of the dictionary around everything
    the whole file. With `allow_nothing` it is no error if nothing is to be removed.

    Raises `UsageError` for choices that contradict each other.
    """

    selection: Selection = field(default_factory=Selection)
    at: Sequence[str] = ()
    training_state: bool = False
    ema: bool = False
    compact: bool = False
    break_views: bool = False
    optimizer: OptimizerChoice = "auto"
    state_dict_only: bool = False
    entries: Sequence[str] = ()
    keep_entries: bool = False
    unwrap: bool = False
    allow_nothing: bool = False

    def __post_init__(self) -> None:
        if self.ema and not self.training_state:
            raise UsageError(
                "'ema' says what 'training_state' leaves",
                hint="add 'training_state'",
                fields=("ema", "training_state"),
            )
        if self.break_views and not self.compact:
            raise UsageError(
                "'break_views' says how 'compact' cuts",
                hint="add 'compact'",
                fields=("break_views", "compact"),
            )
        if self.training_state and self.optimizer != "auto":
            raise UsageError(
                f"'training_state' and 'optimizer {self.optimizer}' contradict each other",
                fields=("training_state", "optimizer"),
            )
        if self.state_dict_only and self.unwrap:
            raise UsageError(
                "'unwrap' and 'state_dict_only' contradict each other",
                fields=("unwrap", "state_dict_only"),
            )

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it. Raises `UsageError` for a rule that matches nothing, and `PlanError`."""
        return with_true_numbers(checkpoint, self._planned(checkpoint))

    def _planned(self, checkpoint: Checkpoint) -> Planned:
        drops, counts = plan_entry_drops(
            checkpoint,
            [EntryRule(text) for text in self.entries],
            keep=self.keep_entries,
            allow_unmatched=self.selection.allow_unmatched,
        )
        drops, parts = split_by_depth(checkpoint, drops)
        beside = Plan(tuple(drops)).apply(checkpoint)
        averages = Planned(Plan())
        if self.training_state:
            from ckpt_surgery.edits.averages_plan import plan_averages

            averages = plan_averages(beside, publish=self.ema)
        planned = plan_strip(
            averages.plan.apply(beside),
            self.selection,
            at=self.at,
            training_state=TrainingStates().kind if self.training_state else None,
            compact=self.compact,
            break_views=self.break_views,
            or_nothing=bool(self.entries)
            or self.unwrap
            or self.state_dict_only
            or self.allow_nothing,
        )
        planned = replace(
            planned,
            plan=Plan((*drops, *averages.plan.edits, *planned.plan.edits)),
            rules=(*planned.rules, *counts),
            warnings=(*averages.warnings, *_true_still(planned.warnings, averages.plan)),
        )
        if self.state_dict_only:
            return narrowed(checkpoint, planned, self.at, self.optimizer)
        planned = followed_by(with_all_in_step(checkpoint, planned, self.optimizer), parts)
        return followed_by(planned, unwrapping(checkpoint, planned) if self.unwrap else ())


def _true_still(warnings: Iterable[str], averages: Plan) -> Iterator[str]:
    """Yield the warnings that are true where averages go as well."""
    return (text for text in warnings if text != NO_TRAINING_STATE or not averages.edits)


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
