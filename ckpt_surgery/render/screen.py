"""Lines and tables on a stream: through Rich on a terminal, plain text anywhere else.

Rich costs a tenth of a second to import and 0.3 ms a row, and cuts or wraps what does not fit;
into a pipe goes plain text of whatever width the names need.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_MOST_RICH_ROWS: Final = 1000
_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. On a narrow terminal those that `fold` give way, the others never."""

    title: str
    right: bool = False
    fold: bool = False
    style: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts that are safe to print."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


class Screen:
    """A stream to report on."""

    def __init__(self, stream: TextIO, *, color: bool = True) -> None:
        self._stream = stream
        self._console = console(stream, color=color) if stream.isatty() else None

    def line(self, text: str = "", style: str = "") -> None:
        """One line, safe to print; on a terminal it wraps between words."""
        if self._console is None:
            self._stream.write(f"{text.rstrip()}\n")
            return
        from rich.text import Text

        self._console.print(Text(text, style=style, overflow="fold"))

    def grid(self, grid: Grid) -> None:
        """A table with a head."""
        if self._console is None or len(grid.rows) > _MOST_RICH_ROWS:
            self._stream.writelines(plain_lines(grid))
        else:
            _print_rich(self._console, grid)


def plain_lines(grid: Grid) -> Iterable[str]:
    """The table as lines of text, columns aligned, nothing cut."""
    table = [tuple(column.title for column in grid.columns), *grid.rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, grid.columns, strict=True)
        )
        yield _GAP.join(cells).rstrip() + "\n"


def console(stream: TextIO, *, color: bool) -> Console:
    """A Rich console that takes every text literally; NO_COLOR holds."""
    from rich.console import Console

    plain = not color or bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream,
        color_system=None if plain else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )


def _print_rich(console: Console, grid: Grid) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for column in grid.columns:
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold",
            style=column.style,
            min_width=min(12, len(column.title)) if column.fold else None,
        )
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print(table)
