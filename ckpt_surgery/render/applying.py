"""What a recipe did, for people: a line for each step, and under a dry run the whole plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.render.lists import show_warnings, written_to
from ckpt_surgery.render.screen import Column, Grid
from ckpt_surgery.render.text import count, nbytes, printable
from ckpt_surgery.render.training import optimizer_lines

if TYPE_CHECKING:
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.reports.applying import ApplyReport, StepReport

_COLUMNS: Final = (
    Column("step", right=True, style="dim"),
    Column("edit", style="cyan"),
    Column("what", names=True),
    Column("how", names=True, spare=1),
)
_LONGEST: Final = 200  # characters of a cell


def show(report: ApplyReport, screen: Screen) -> None:
    """Print the steps and the outputs; if nothing is written, every edit in a table."""
    dry = all(output.output is None for output in report.outputs)
    for number, step in enumerate(report.steps, 1):
        screen.line(f"{number}. {_said(step)}")
        for line in optimizer_lines(step.optimizers):
            screen.line(f"   {line}")
        show_warnings(step.warnings, screen)
    if dry and any(step.plan for step in report.steps):
        screen.line()
        screen.grid(Grid(_COLUMNS, list(_rows(report))))
        screen.line()
    show_warnings(report.warnings, screen)
    for output in report.outputs:
        show_warnings(output.warnings, screen)
        size = f"{output.format}, {nbytes(output.nbytes)}"
        name = printable(output.name)
        if output.output is None:
            screen.line(f"dry run: nothing was written, '{name}' would be {size}", "bold")
        else:
            where = written_to(output.output, output.warnings)
            screen.line(f"'{name}': {where}, {size}", "bold")


def _said(step: StepReport) -> str:
    """Say in a line what a step did: ``strip base: 2 drop, 1 rename-module``."""
    kinds = Counter(str(edit["edit"]) for edit in step.plan)
    edits = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    done = edits or ("holds" if step.verb == "expect" else "nothing to do")
    name = "" if step.name == step.on else f" as {printable(step.name)}"
    return f"{step.verb} {printable(step.on)}{name}: {done}"


def _rows(report: ApplyReport) -> Iterator[list[str]]:
    for number, step in enumerate(report.steps, 1):
        for edit in step.plan:
            yield [str(number), str(edit["edit"]), *_cells(edit)]


def _cells(edit: Mapping[str, Any]) -> tuple[str, str]:
    """Return what an edit is about, and the rest that it says."""
    rest = {key: value for key, value in edit.items() if key != "edit"}
    place = rest.pop("state_dict", None)
    names = ("name", "path") if edit["edit"] == "take-weights" else ("name", "path", "from")
    name = next((rest.pop(key) for key in names if key in rest), "")
    what = f"{place}/{name}" if place and name != "" else str(name or place or "")
    how = ", ".join(f"{key} {_value(key, value)}" for key, value in rest.items())
    return printable(what, _LONGEST), printable(how, _LONGEST)


def _value(key: str, value: Any) -> str:
    """Return what a field says in a few words: of what is long only how much it is."""
    if key == "groups":
        return ", ".join(f"of {count(len(group), 'parameter')}" for group in value)
    if key == "inputs":
        return ", ".join(str(each.get("file", "itself")) for each in value)
    if key == "items":
        return f"({len(value):,})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(name, part)}" for name, part in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
