"""Plain values of a checkpoint: as lines for programs, and what became of them for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.literals import toml_key, toml_value
from ckpt_surgery.render.lists import in_one_line, show_warnings, written_to
from ckpt_surgery.render.said import OF_FILES, said_of
from ckpt_surgery.render.text import nbytes, printable, visible

if TYPE_CHECKING:
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.reports.edits import SetReport, ValueChange

Form: TypeAlias = Literal["plain", "toml", "json"]
_MOST_SHOWN = 200  # characters of a value for people
_MOST_NAMES = 20
_SAID = OF_FILES - {"set-metadata"}  # which the values are


def value_line(value: Any, form: Form) -> str:
    """Return a value for a program: ``plain`` is a text as it is, or a number, or JSON."""
    if form == "toml":
        if _holds_null(value):
            raise UsageError("TOML has no null", hint="--json has")
        return toml_value(value)
    if form == "plain" and isinstance(value, str):
        return value
    if form == "plain" and isinstance(value, float):
        return repr(value)
    return _json(value)


def all_lines(values: Mapping[str, Any], form: Form) -> Iterator[str]:
    """Yield a line for each path and its value; ``json`` is one document."""
    if form == "json":
        yield _json(dict(values))
        return
    for path, value in values.items():
        if value is None:
            if form == "plain":
                yield f"{visible(path)} = null"
            continue
        key = toml_key(path) if form == "toml" else visible(path)
        shown = toml_value(value)
        yield f"{key} = {shown if form == 'toml' else _cut(shown)}"


def show(report: SetReport, screen: Screen) -> None:
    """Print what became of each value, and where it was written."""
    for change in report.values:
        screen.line(_changed(change))
    most = screen.most(_MOST_NAMES)
    if report.removed:
        screen.line(f"removed: {in_one_line(report.removed, most)}")
    gone = [path for path in report.dropped if path not in {c.path for c in report.values}]
    if gone:
        screen.line(f"removed beside them: {in_one_line(gone, most)}")
    if report.carried:
        screen.line(f"carried over: {in_one_line(report.carried, most)}")
    for line in said_of(report.plan, _SAID):
        screen.line(line)
    show_warnings(report.warnings, screen)
    size = f"{nbytes(report.nbytes_before)} -> {nbytes(report.nbytes_after)}"
    if report.output is None:
        screen.line(f"dry run: nothing was written, {size}", "bold")
    else:
        screen.line(f"{written_to(report.output, report.warnings)}, {size}", "bold")


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None


def _changed(change: ValueChange) -> str:
    path = printable(change.path)
    old, new = _shown(change.old, change.old_type), _shown(change.new, change.new_type)
    match change.change:
        case "added":
            return f"{path}: {new}, which is new"
        case "removed":
            return f"{path}: removed, was {old}"
        case "same":
            return f"{path}: {new}, as it was"
    return f"{path}: {old} -> {new}"


def _shown(value: Any, kind: str | None) -> str:
    if kind is None:
        return ""
    return "None" if value is None else printable(_cut(toml_value(value)))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def _json(value: Any) -> str:
    from ckpt_surgery.render.plain import to_json

    return to_json(value)
