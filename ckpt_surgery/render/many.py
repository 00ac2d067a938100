"""Reports on several files in one table: a line a file, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.render.color import WARNING
from ckpt_surgery.render.lists import holds_already
from ckpt_surgery.render.screen import Column, Grid, Screen
from ckpt_surgery.render.text import count, nbytes, printable

if TYPE_CHECKING:
    from ckpt_surgery.reports.edits import EditReport
    from ckpt_surgery.reports.fitting import MatchReport


def show_edits(reports: Sequence[EditReport], screen: Screen) -> None:
    """Show what became of each file, how many entries, and how large it was and is."""
    columns = (
        Column("file", names=True),
        Column("output", names=True, spare=1),
        Column("kept", right=True, spare=3),
        Column("removed", right=True),
        Column("renamed", right=True),
        Column("before", right=True, spare=2),
        Column("after", right=True),
    )
    rows = [
        (
            printable(", ".join(report.inputs)),
            "-" if report.output is None else printable(report.output),
            f"{len(report.kept):,}",
            f"{len(report.removed):,}",
            f"{len(report.renamed):,}",
            nbytes(report.nbytes_before),
            nbytes(report.nbytes_after),
        )
        for report in reports
    ]
    screen.grid(Grid(columns, rows))
    screen.line()
    for warning, files in _by_warning(reports).items():
        screen.line(f"warning: {printable(warning)} ({count(files, 'file')})")
    before = sum(report.nbytes_before for report in reports)
    after = sum(report.nbytes_after for report in reports)
    written = "written" if any(report.output for report in reports) else "dry run"
    same = sum(map(_is_as_it_was, reports))
    as_it_was = f", of which {same:,} had it already" if same else ""
    screen.line(
        f"{written}: {count(len(reports), 'file')}{as_it_was}, {nbytes(before)} -> {nbytes(after)}"
    )


def show_matches(reports: Sequence[MatchReport], screen: Screen) -> None:
    """Show of each file whether it loads strictly, and what stands against it."""
    columns = (
        Column("file", names=True),
        Column("loads strictly"),
        Column("matched", right=True, spare=1),
        Column("missing", right=True),
        Column("unexpected", right=True),
        Column("mismatched", right=True),
    )
    rows = []
    for report in reports:
        found = report.to_dict()
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
        rows.append(
            (
                printable(report.inputs[0]),
                "no" if report.exit_code else "yes",
                f"{found['matched']:,}",
                *(f"{len(found[key]):,}" for key in keys),
            )
        )
    screen.grid(Grid(columns, rows))
    screen.line()
    strictly = sum(not report.exit_code for report in reports)
    target = printable(reports[0].target)
    screen.line(f"{strictly:,} of {count(len(reports), 'file')} load strictly into {target}")


def show_failed(number: int, screen: Screen) -> None:
    """Say below a table how many files are not in it."""
    if number:
        screen.line(f"failed: {count(number, 'file')}", WARNING)


def _by_warning(reports: Sequence[EditReport]) -> dict[str, int]:
    """Return how many files each warning is of; what says which file it is is left out of it."""
    found: dict[str, int] = {}
    for report in reports:
        for warning in report.warnings:
            said = warning.replace(f"'{report.output}'", "the output")
            found[said] = found.get(said, 0) + 1
    return found


def _is_as_it_was(report: EditReport) -> bool:
    return holds_already(str(report.output)) in report.warnings
