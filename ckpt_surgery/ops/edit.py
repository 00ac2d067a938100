"""Edit what the tensors of a checkpoint hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import RuleCount, all_names, choose_state_dicts
from ckpt_surgery.compute.elements import require_torch
from ckpt_surgery.edits.averages_plan import averages_left_behind
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.follow import following, with_those_inside
from ckpt_surgery.edits.lineage import Lineage
from ckpt_surgery.edits.names_elsewhere import names_left_behind_by
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.remarks import remarks
from ckpt_surgery.edits.rename import RenameModule
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import PathLike, PlanError, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.names.metadata import strip_metadata
from ckpt_surgery.ops.run import edit as run_edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange

_EditOptimizer: TypeAlias = Literal["auto", "reset", "keep", "drop"]
_MOVING: Final = frozenset({"copy", "tie", "untie", "clone", "layers", "renumber"})
"""Rules that take entries as they are: numbers are copied, and torch is not needed."""
_HINT = (
    "--optimizer reset lets the state of these parameters begin anew, keep leaves it, drop drops it"
)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """How tensors are edited: by `rules`, one after the other.

    Every state dict in the file is edited, or those at the paths `at`. An optimizer's moments
    follow where elements are only put elsewhere, also into other tensors; where numbers change,
    `optimizer` says what becomes of their state.

    Raises `UsageError` without rules, but with `allow_nothing`, for what is asked of the output.
    """

    rules: Sequence[ValueRule]
    at: Sequence[str] = ()
    optimizer: _EditOptimizer = "auto"
    allow_nothing: bool = False

    def __post_init__(self) -> None:
        if not self.rules and not self.allow_nothing:
            raise UsageError("no rule says what to edit", hint="see 'ckpt edit --help'")

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it.

        Raises `UsageError` for a rule that matches nothing, and `PlanError` for a shape that does
        not fit and for an optimizer that cannot follow.
        """
        if any(rule.option not in _MOVING for rule in self.rules):
            require_torch()
        planned, lineage = _planned(checkpoint, self.rules, self.at)
        after = planned.plan.apply(checkpoint)
        behind = averages_left_behind(checkpoint, after)
        names = names_left_behind_by(checkpoint, after)
        planned = replace(planned, warnings=(*planned.warnings, *behind, *names))
        return _with_optimizers(checkpoint, planned, lineage, self.optimizer)


def edit(
    source: PathLike | Source,
    output: Output | PathLike,
    request: EditRequest | Sequence[ValueRule],
    **choices: Any,
) -> EditReport:
    """Write `source` with its tensors edited as `request` says.

    ``edit(file, output, rules, at=["model"])`` is short for
    ``edit(file, output, EditRequest(rules, at=["model"]))``. Raises what planning and `strip`
    raise.
    """
    if not isinstance(request, EditRequest):
        request = EditRequest(request, **choices)
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    return run_edit("edit", source, output, request.plan)


def _planned(
    checkpoint: Checkpoint, rules: Sequence[ValueRule], at: Sequence[str]
) -> tuple[Planned, Mapping[str, Lineage]]:
    paths = [state_dict.path for state_dict in choose_state_dicts(checkpoint, at)]
    lineage = {s.path: Lineage(s) for s in checkpoint.state_dicts if s.path in paths}
    current, plan, counts = checkpoint, list[Edit](), []
    warnings: list[str] = []
    for rule in rules:
        chosen = [s for s in current.state_dicts if s.path in lineage]
        edits = {s.path: rule.edits(s) for s in chosen}
        found = [each for listed in edits.values() for each in listed]
        if not found:
            raise rule.unmatched(all_names(chosen))
        for state_dict in chosen:
            warnings += remarks(state_dict, edits[state_dict.path])
            for each in edits[state_dict.path]:
                lineage[state_dict.path].note(each)
        counts.append(RuleCount(rule, len(found)))
        plan += found
        current = Plan(tuple(found)).apply(current)
    plan += _stale_modules(checkpoint, current, lineage)
    return Planned(Plan(tuple(plan)), tuple(counts), tuple(warnings)), lineage


def _stale_modules(
    before: Checkpoint, after: Checkpoint, lineage: Mapping[str, Lineage]
) -> list[Edit]:
    """Return the removal of modules in ``_metadata`` that have no entry any more."""
    edits: list[Edit] = []
    now = {state_dict.path: state_dict for state_dict in after.state_dicts}
    for state_dict in before.state_dicts:
        if state_dict.path not in lineage or state_dict.path not in now:
            continue
        modules, left = list(now[state_dict.path].metadata or ()), now[state_dict.path].names
        kept = set(strip_metadata(modules, [*state_dict.names, *left], left))
        edits += (RenameModule(state_dict.path, m, None) for m in modules if m not in kept)
    return edits


def _with_optimizers(
    checkpoint: Checkpoint,
    planned: Planned,
    lineage: Mapping[str, Lineage],
    choice: _EditOptimizer,
) -> Planned:
    """Return the plan, extended by what becomes of optimizers."""
    from ckpt_surgery.training.optimizers import find, keep_in_step

    planned = with_those_inside(checkpoint, planned, "auto" if choice == "reset" else choice)
    if not checkpoint.others or not find(checkpoint):
        return planned
    anew = {path: each.anew for path, each in lineage.items() if each.anew}
    if anew and choice == "auto":
        raise _cannot_follow(checkpoint, min(next(iter(anew.values()))))
    step = keep_in_step(
        checkpoint,
        planned.plan.apply(checkpoint),
        "auto" if choice == "reset" else choice,
        sources={path: each.sources for path, each in lineage.items()},
        moments={path: each.moments for path, each in lineage.items()},
    )
    if choice == "auto":
        _refuse_reset(checkpoint, step.changes)
    return replace(
        planned,
        plan=Plan((*planned.plan.edits, *following(step))),
        warnings=(*planned.warnings, *step.warnings),
        optimizers=(*planned.optimizers, *step.changes),
    )


def _refuse_reset(checkpoint: Checkpoint, changes: Sequence[OptimizerChange]) -> None:
    """Raise `PlanError` if a state would begin anew because it cannot follow."""
    for change in changes:
        if change.reset:
            raise _cannot_follow(checkpoint, change.reset[0])


def _cannot_follow(checkpoint: Checkpoint, name: str) -> PlanError:
    return PlanError(
        f"the optimizer's state of '{name}' cannot follow what is done to its numbers",
        path=checkpoint.file.name,
        hint=_HINT,
    )
