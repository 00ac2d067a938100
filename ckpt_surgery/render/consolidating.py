"""What putting the files of ranks together did, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ckpt_surgery.render.lists import below, in_one_line, show_warnings, written_to
from ckpt_surgery.render.text import count, nbytes, printable

if TYPE_CHECKING:
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.reports.consolidating import ConsolidateReport

_MOST_NAMES: Final = 20
_WRITERS: Final = {
    "ranks": "files of ranks",
    "llama": "files of LLaMA",
    "deepspeed": "a ZeRO checkpoint of DeepSpeed",
    "fairscale": "files of fairscale",
    "megatron": "files of Megatron-LM",
    "dcp": "a distributed checkpoint",
}
_HOWS: Final = {
    "placement": "by their placement",
    "copies": "the same on every rank",
    "first": "from the first rank alone",
    "flat": "out of vectors of parameters",
}


def show(report: ConsolidateReport, screen: Screen) -> None:
    """Print the report. It is the same for a dry run but for the last line."""
    for line in _lines(report, screen.most(_MOST_NAMES)):
        screen.line(line)
    show_warnings(report.warnings, screen)
    written = written_to(report.output, report.warnings) if report.output else "nothing was written"
    size = f"{nbytes(report.nbytes_before)} -> {nbytes(report.nbytes_after)}"
    screen.line(f"{written}, {size}" if report.output else f"dry run: {written}, {size}", "bold")


def _lines(report: ConsolidateReport, most: int) -> Iterator[str]:
    yield f"{count(len(report.inputs), 'file')}: {_WRITERS[report.writer]}"
    for how, number in Counter(each.how for each in report.joined).items():
        said = f"joined along axis {how}" if isinstance(how, int) else _HOWS[how]
        yield f"{count(number, 'tensor')}: {said}"
    if report.removed:
        yield f"removed {count(len(report.removed), 'entry', 'entries')}:"
        yield from below([printable(name) for name in report.removed], most)
    if report.dropped:
        yield f"removed beside them: {in_one_line(report.dropped, most)}"
    if report.carried:
        yield f"carried over: {in_one_line(report.carried, most)}"
