"""What a merge did, for people: the files, what became of the entries, what to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ckpt_surgery.merge.request import FOLDS
from ckpt_surgery.render.casts import cast_lines
from ckpt_surgery.render.lists import below, in_one_line, show_warnings, written_to
from ckpt_surgery.render.said import OF_FILES, said_of
from ckpt_surgery.render.screen import Column, Grid, Screen
from ckpt_surgery.render.text import count, nbytes, printable
from ckpt_surgery.render.training import optimizer_lines

if TYPE_CHECKING:
    from ckpt_surgery.reports.merging import MergeReport, Rounding

_MOST_NAMES: Final = 20
_MOST_ROUNDED: Final = 3  # tensors of which least is left
_MOST_ALIKE: Final = 3  # names that one reason is given for


def show(report: MergeReport, screen: Screen) -> None:
    """Print the report. It is the same for a dry run but for the last line."""
    screen.grid(_files(report))
    entries, beside = _entries(report, screen), _beside(report, screen.most(_MOST_NAMES))
    for line in (*entries, *beside, *optimizer_lines(report.optimizers)):
        screen.line(line)
    show_warnings(report.warnings, screen)
    size = nbytes(report.nbytes_after)
    if report.arithmetic:
        size += f", computed in at most {nbytes(report.peak_bytes)} of memory"
    where = written_to(report.output, report.warnings) if report.output else "dry run"
    screen.line(f"{where}, {size}" if report.output else f"{where}: nothing was written, {size}")


def _files(report: MergeReport) -> Grid:
    weighs = any(each.weight is not None for each in report.inputs)
    columns = [Column("file", names=True), Column("role")]
    what = "scale" if report.method in FOLDS else "weight"
    columns += [Column(what, right=True)] if weighs else []
    columns += [] if report.arithmetic else [Column("taken", right=True)]
    rows = []
    for each in report.inputs:
        other = "adapter" if report.method in FOLDS else "input"
        row = [printable(each.file), "base" if each.base else other]
        if weighs:
            row.append("" if each.weight is None else f"{each.weight:g}")
        if not report.arithmetic:
            row.append("" if each.base else f"{each.taken:,}")
        rows.append(row)
    return Grid(columns, rows)


def _entries(report: MergeReport, screen: Screen) -> Iterator[str]:
    for rule in report.rules:
        matched = count(int(rule["matched"]), "name")
        text = rule.get("text") or rule.get("prefix") or ""
        yield f"{rule.get('kind') or rule.get('rule')} {printable(str(text))}: {matched}"
    if report.arithmetic:
        did = "folded into" if report.method in FOLDS else "merged"
        yield f"{report.method}: {did} {count(len(report.merged), 'tensor')}"
        yield from _roundings(report.rounding, screen.most(_MOST_ROUNDED))
        yield from _reasons("copied as they are", report.copied, screen.most(_MOST_ALIKE))
        yield from _reasons("left out", report.skipped, screen.most(_MOST_ALIKE))
    yield from cast_lines(report.casts, screen.most(_MOST_NAMES))
    if report.renamed:
        yield f"renamed {count(len(report.renamed), 'entry', 'entries')} of the base"
    if report.taken:
        yield f"taken from other files: {count(len(report.taken), 'entry', 'entries')}"
        if not report.arithmetic:
            taken = [f"{printable(a)} <- {printable(b)}" for a, b in report.taken]
            yield from below(taken, screen.most(_MOST_NAMES))
    if report.kept and not report.arithmetic:
        yield f"kept {count(len(report.kept), 'entry', 'entries')} of the base"


def _roundings(found: Sequence[Rounding], most: int) -> Iterator[str]:
    """Yield how much of what was added is left: of all together, and where it is least."""
    square = sum(each.square for each in found)
    changed, lost = sum(each.changed for each in found), sum(each.lost for each in found)
    if not found:
        return
    noise = sum(each.error**2 * each.square for each in found)
    error = (noise / square) ** 0.5 if square else 0.0
    yield (
        f"rounding is {error:.2%} of what was added; "
        f"{lost:,} of {changed:,} elements are what they were"
    )
    for each in sorted(found, key=lambda each: -each.error)[:most]:
        yield f"  {printable(each.name)}: {each.error:.2%}, {each.lost:,} of {each.changed:,}"


def _reasons(what: str, names: Sequence[tuple[str, str]], most: int) -> Iterator[str]:
    for why, number in Counter(why for _, why in names).items():
        alike = in_one_line([name for name, each in names if each == why], most)
        yield f"{what} ({why}): {count(number, 'entry', 'entries')}, {alike}"


def _beside(report: MergeReport, most: int) -> Iterator[str]:
    base = printable(report.base)
    if report.carried:
        yield f"carried over from {base}: {in_one_line(report.carried, most)}"
    if report.removed:
        yield f"removed: {in_one_line(report.removed, most)}"
    if report.dropped:
        yield f"removed beside them: {in_one_line(report.dropped, most)}"
    yield from said_of(report.plan, OF_FILES)
