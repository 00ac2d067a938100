"""What making an adapter did, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ckpt_surgery.render.lists import show_warnings, written_to
from ckpt_surgery.render.screen import Column, Grid, Screen
from ckpt_surgery.render.text import count, nbytes, printable

if TYPE_CHECKING:
    from ckpt_surgery.reports.adapters import AdapterReport

_MOST_LAYERS: Final = 20


def show(report: AdapterReport, screen: Screen) -> None:
    """Print the report: the layers with the largest errors, what is not in the adapter."""
    most = screen.most(_MOST_LAYERS)
    layers = sorted(report.layers, key=lambda layer: -layer.error)
    rows = [(printable(x.module), f"{x.rank:,}", f"{x.error:.2%}") for x in layers[:most]]
    right = (Column("rank", right=True), Column("error", right=True))
    screen.grid(Grid((Column("module", names=True), *right), rows))
    if len(layers) > most:
        screen.line(f"… and {len(layers) - most} more with smaller errors")
    left_out = sorted(report.left_out, key=lambda each: -each[1])
    if left_out:
        number = count(len(left_out), "entry", "entries")
        screen.line(f"not in the adapter, but different: {number}")
        for name, size in left_out[:most]:
            screen.line(f"  {printable(name)}: by {size:.2%}")
    if report.dropped:
        screen.line(f"not in the adapter: {', '.join(map(printable, report.dropped))}")
    show_warnings(report.warnings, screen)
    written = written_to(report.output, report.warnings) if report.output else "nothing was written"
    where = written if report.output else f"dry run: {written}"
    said = f"{count(len(layers), 'layer')}, {report.dtype}, {nbytes(report.nbytes)}"
    screen.line(f"{where}, {said}", "bold")
