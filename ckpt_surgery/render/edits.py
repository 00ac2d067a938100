"""What an edit did, for people: counts first, then names, then what to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.render.casts import cast_lines
from ckpt_surgery.render.lists import below, in_one_line, show_warnings, written_to
from ckpt_surgery.render.said import said_of
from ckpt_surgery.render.text import count, nbytes, printable
from ckpt_surgery.render.training import optimizer_lines

if TYPE_CHECKING:
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.reports.edits import EditReport

_MOST_NAMES: Final = 20
_CHANGED: Final = {"attributes": "took", "dtype": "chose", "keep-norms": "kept"}


def show(report: EditReport, screen: Screen) -> None:
    """Print the report. It is the same for a dry run but for the last line."""
    for line in _lines(report, screen.most(_MOST_NAMES)):
        screen.line(line)
    show_warnings(report.warnings, screen)
    written = written_to(report.output, report.warnings) if report.output else "nothing was written"
    size = f"{nbytes(report.nbytes_before)} -> {nbytes(report.nbytes_after)}"
    done = written if report.output else f"dry run: {written}"
    screen.line(f"{printable(', '.join(report.inputs))}: {done}, {size}", "bold")


def _lines(report: EditReport, most: int) -> Iterator[str]:
    for rule in report.rules:
        changed = "matched" if "kind" in rule else "changed"
        changed = _CHANGED.get(str(rule.get("rule")), changed)
        number = int(rule["matched"])
        matched = (
            count(number, "entry", "entries")
            if rule.get("kind") == "entry"
            else count(number, "name")
        )
        yield f"{printable(_option(rule))}: {changed} {matched}"
    entries = len(report.kept) + len(report.removed) + len(report.renamed)
    if report.removed:
        yield f"removed {len(report.removed):,} of {count(entries, 'entry', 'entries')}:"
        yield from below([printable(name) for name in report.removed], most)
    if report.renamed:
        yield f"renamed {len(report.renamed):,} of {count(entries, 'entry', 'entries')}:"
        yield from below([f"{printable(a)} -> {printable(b)}" for a, b in report.renamed], most)
    if not report.removed and not report.renamed:
        yield f"kept {count(entries, 'entry', 'entries')}"
    if report.dropped:
        yield f"removed beside them: {in_one_line(report.dropped, most)}"
    if report.carried:
        yield f"carried over: {in_one_line(report.carried, most)}"
    yield from optimizer_lines(report.optimizers)
    yield from cast_lines(report.casts, most)
    yield from said_of(report.plan)


def _option(rule: Mapping[str, Any]) -> str:
    """Return a rule as it was given: ``--pattern fc``, ``--replace .net ''``."""
    if "kind" in rule:
        name = {"keys": "keys-from"}.get(rule["kind"], rule["kind"])
        return f"--{name} {rule['text']}"
    if rule["rule"] == "keep-norms":
        return "--keep-norms"
    values = (
        rule[key]
        for key in ("prefix", "old", "new", "regex", "repl", "source", "text")
        if key in rule
    )
    return " ".join([f"--{rule['rule']}", *(str(value) or "''" for value in values)])
