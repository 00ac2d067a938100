"""Lines and tables on a stream: through Rich on a terminal, plain text anywhere else.

Rich costs 40 ms to import; into a pipe goes plain text of whatever width the names need.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from ckpt_surgery.render.color import ColorChoice, wants_color
from ckpt_surgery.render.layout import GAP, Column, Fitted, Grid, columns_of, fit, hanging, padded

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Column", "Grid", "Screen", "console", "paged"]

_MOST_RICH_ROWS: Final = 1000
_UNBOUNDED: Final = 1 << 16  # cells; for colours that are wanted in a pipe
# What reports draw with, for a stream that cannot encode it.
_IN_ASCII: Final = str.maketrans("├└│─…▁▂▃▄▅▆▇█", "|`|-~_.:-=+*#")


class Screen:
    """A stream to report on.

    `terminal` says that what is written reaches a terminal although `stream` is none itself.
    """

    def __init__(
        self, stream: TextIO, *, color: ColorChoice = "auto", terminal: TextIO | None = None
    ) -> None:
        self._stream = stream
        shown = terminal or stream
        colored = wants_color(shown, color)
        self._is_terminal = shown.isatty()
        self._console: Console | None = None
        if self._is_terminal or colored:
            self._console = console(
                stream, color=colored, width=columns_of(shown) if self._is_terminal else _UNBOUNDED
            )
        self._draws = _can_encode(shown, "└…█")

    def most(self, number: int) -> int:
        """Return how many of a kind to show: on a terminal `number`, anywhere else all."""
        return number if self._is_terminal else sys.maxsize

    def _drawn(self, text: str) -> str:
        return text if self._draws else text.translate(_IN_ASCII)

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line, safe to print; on a terminal it wraps between words."""
        text = self._drawn(text)
        if self._console is None:
            self._stream.write(f"{text.rstrip()}\n")
            return
        from rich.text import Text

        if self._is_terminal:
            text = hanging(text, self._console.width)
        self._console.print(Text(text, style=style), soft_wrap=True)

    def grid(self, grid: Grid) -> None:
        """Write a table with a head, fitted to the terminal's width."""
        if not self._draws:
            grid = Grid(grid.columns, [list(map(self._drawn, row)) for row in grid.rows])
        if self._console is None:
            self._stream.writelines(_plain_lines(grid))
            return
        fitted = fit(grid, self._console.width)
        if len(fitted.rows) > _MOST_RICH_ROWS:
            self._stream.writelines(_unstyled(fitted))
        else:
            _print_rich(self._console, fitted)
        if sign := fitted.sign():
            self.line(sign, "dim")


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _plain_lines(grid: Grid) -> Iterable[str]:
    """Return the table as lines of text, columns aligned, nothing cut."""
    table = [tuple(column.title for column in grid.columns), *grid.rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, grid.columns, strict=True)
        )
        yield GAP.join(cells).rstrip() + "\n"


def _unstyled(fitted: Fitted) -> Iterator[str]:
    for row in ([column.title for column in fitted.columns], *fitted.rows):
        yield padded(row, fitted, lambda cell, _: cell) + "\n"


def console(stream: TextIO, *, color: bool, width: int | None = None) -> Console:
    """Return a Rich console that takes every text literally; `width` None is the terminal's."""
    from rich.console import Console

    return Console(
        file=stream,
        color_system=("auto" if stream.isatty() else "standard") if color else None,
        force_terminal=True if color else None,
        width=width if width is not None else columns_of(stream),
        no_color=not color,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _print_rich(console: Console, fitted: Fitted) -> None:
    """Print a table whose cells are cut to fit: one block, since Rich takes its time for cells."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    for column, width in zip(fitted.columns, fitted.widths, strict=True):
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="crop",
            style=column.style,
            width=width,
        )
    if fitted.rows:
        table.add_row(*(Text("\n".join(cells)) for cells in zip(*fitted.rows, strict=True)))
    console.print(table)


@contextmanager
def paged(stream: TextIO, *, color: ColorChoice = "auto", pager: bool = True) -> Iterator[Screen]:
    """Give a screen whose text goes through a pager if `stream` is a terminal that it overflows."""
    if not (pager and stream.isatty()):
        yield Screen(stream, color=color)
        return
    import shutil

    from ckpt_surgery.render.pager import page, pager_command

    if not pager_command():
        yield Screen(stream, color=color)
        return
    text = io.StringIO()
    yield Screen(text, color=color, terminal=stream)
    page(text.getvalue(), stream, lines=shutil.get_terminal_size().lines)
