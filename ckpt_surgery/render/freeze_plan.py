"""A freeze plan for people: what trains, in which group, at which rate, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from ckpt_surgery.freeze.plan import FreezeSchedule, Group, PlannedParameter, Totals
from ckpt_surgery.names.fold import fold_names
from ckpt_surgery.ops.freeze_plan import FreezePlanReport
from ckpt_surgery.render.color import WARNING
from ckpt_surgery.render.lists import in_one_line
from ckpt_surgery.render.screen import Column, Grid, Screen
from ckpt_surgery.render.text import count, nbytes, printable, shape
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST_NAMES: Final = 3  # of one warning
_INDEX: Final = Column("index", right=True, spare=1, style="dim")
_NAME: Final = Column("name", names=True)
_ELEMENTS: Final = Column("elements", right=True, spare=3)
_FATE: Final = (
    Column("trains", style="green"),
    Column("lr", right=True),
    Column("decay", right=True),
)


def show(report: FreezePlanReport, screen: Screen, *, folded: bool = False) -> None:
    """Write the table, the groups, the totals and the warnings."""
    plan = report.plan
    groups = {group.name: group for group in plan.groups}
    screen.grid(_folded_grid(plan, groups) if folded else _grid(plan, groups))
    screen.line()
    for line in _totals(plan):
        screen.line(line)
    for line in _groups(plan):
        screen.line(line)
    most = screen.most(_MOST_NAMES)
    for warning in plan.warnings:
        patterns = [each.pattern for each in fold_names(warning.names)]
        named = f" ({in_one_line(patterns, most)})" if patterns else ""
        screen.line(f"warning: {printable(warning.message, 500)}{named}", WARNING)
    if report.output is not None:
        screen.line(f"written to {printable(report.output)}", "bold")


def _grid(plan: FreezeSchedule, groups: Mapping[str, Group]) -> Grid:
    rows = [
        (
            str(p.index),
            printable(p.name),
            shape(p.shape),
            f"{p.numel:,}",
            *_fate(plan, p, groups),
        )
        for p in plan.parameters
    ]
    return Grid((_INDEX, _NAME, Column("shape", spare=2, style="cyan"), _ELEMENTS, *_FATE), rows)


def _fate(
    plan: FreezeSchedule, parameter: PlannedParameter, groups: Mapping[str, Group]
) -> tuple[str, str, str]:
    """Frozen, or the group, with its learning rate and weight decay."""
    if parameter.train_from is None or parameter.group is None:
        return "frozen", "-", "-"
    options = groups[parameter.group].options
    name = printable(parameter.group)
    if plan.frozen(parameter):
        name = f"from epoch {parameter.train_from}: {name}"
    return name, _number(options.get("lr")), _number(options.get("weight_decay"))


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring parameters of one fate that share a path."""

    path: str
    parameters: Sequence[PlannedParameter]


def _folded_grid(plan: FreezeSchedule, groups: Mapping[str, Group]) -> Grid:
    rows = [
        (
            f"{run.parameters[0].index}-{run.parameters[-1].index}"
            if len(run.parameters) > 1
            else str(run.parameters[0].index),
            printable(run.path),
            f"{len(run.parameters):,}",
            f"{sum(p.numel for p in run.parameters):,}",
            *_fate(plan, run.parameters[0], groups),
        )
        for run in _runs(plan)
    ]
    return Grid((_INDEX, _NAME, Column("parameters", right=True), _ELEMENTS, *_FATE), rows)


def _runs(plan: FreezeSchedule) -> Iterator[_Run]:
    """Subtrees below which everything has one fate; a mixed subtree is shown part by part."""
    fates: dict[str, set[tuple[int | None, str | None]]] = {}
    for parameter in plan.parameters:
        for path in _paths(parameter.name):
            fates.setdefault(path, set()).add((parameter.train_from, parameter.group))

    def top(parameter: PlannedParameter) -> str:
        return next(path for path in _paths(parameter.name) if len(fates[path]) == 1)

    for path, run in groupby(plan.parameters, key=top):
        yield _Run(path, list(run))


def _paths(name: str) -> Iterator[str]:
    """Yield the modules that a name lies in, the outermost first, and the name itself."""
    end = name.find(".")
    while end != -1:
        yield name[:end]
        end = name.find(".", end + 1)
    yield name


def _totals(plan: FreezeSchedule) -> Iterator[str]:
    trainable, frozen = plan.totals
    whole = trainable.elements + frozen.elements
    for what, totals in (("trainable", trainable), ("frozen", frozen)):
        share = totals.elements / whole if whole else 0.0
        yield (
            f"{what}: {count(totals.parameters, 'parameter')},"
            f" {count(totals.elements, 'element')} ({share:.2%})"
        )
    if frozen.elements:
        yield f"not needed for what is frozen: {_saved(frozen)}"


def _saved(totals: Totals) -> str:
    sizes = totals.nbytes
    return (
        f"{nbytes(sizes['gradients'])} of gradients, and of optimizer state {nbytes(sizes['sgd'])}"
        f" (SGD), {nbytes(sizes['momentum'])} (momentum), {nbytes(sizes['adam'])} (Adam)"
    )


def _groups(plan: FreezeSchedule) -> Iterator[str]:
    for group in plan.groups:
        members = [p for p in plan.parameters if p.group == group.name]
        options = ", ".join(f"{key} {_option(value)}" for key, value in group.options.items())
        yield (
            f"group {printable(group.name)}: {count(len(members), 'parameter')}"
            f"{', ' if options else ''}{options}"
        )


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{part:g}" for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()
