"""Lines and tables on a stream: through Rich on a terminal, plain text anywhere else.

Rich costs 40 ms to import and 0.3 ms a row that it wraps, and cuts or wraps what does not fit; into
a pipe goes plain text of whatever width the names need.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_MOST_RICH_ROWS: Final = 1000
_GAP: Final = "  "
# What reports draw with, for a stream that cannot encode it.
_IN_ASCII: Final = str.maketrans("├└│─…▁▂▃▄▅▆▇█", "|`|-~_.:-=+*#")
_FOLDED: Final = 24  # characters of a column that folds; with less a name is hard to read


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. On a narrow terminal those that `fold` give way, and `spare` ones go."""

    title: str
    right: bool = False
    fold: bool = False
    spare: bool = False
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
        self._draws = _can_encode(stream, "└…█")

    def _drawn(self, text: str) -> str:
        return text if self._draws else text.translate(_IN_ASCII)

    def line(self, text: str = "", style: str = "") -> None:
        """One line, safe to print; on a terminal it wraps between words."""
        text = self._drawn(text)
        if self._console is None:
            self._stream.write(f"{text.rstrip()}\n")
            return
        from rich.text import Text

        self._console.print(Text(text, style=style, overflow="fold"))

    def grid(self, grid: Grid) -> None:
        """A table with a head."""
        if not self._draws:
            grid = Grid(grid.columns, [list(map(self._drawn, row)) for row in grid.rows])
        if self._console is None or len(grid.rows) > _MOST_RICH_ROWS:
            self._stream.writelines(plain_lines(grid))
        else:
            _print_rich(self._console, _without_spare(grid, self._console.width))


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


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


def _without_spare(grid: Grid, width: int) -> Grid:
    """The table without as many spare columns, from the right, as leave no room for the others."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(text) for text in (column.title, *(row[index] for row in grid.rows)))
        for index, column in enumerate(grid.columns)
    ]
    kept = list(range(len(grid.columns)))

    def needed() -> int:
        return sum(
            min(widths[i], _FOLDED) if grid.columns[i].fold else widths[i] for i in kept
        ) + len(_GAP) * (len(kept) - 1)

    for index in reversed(range(len(grid.columns))):
        if grid.columns[index].spare and needed() > width:
            kept.remove(index)
    return Grid([grid.columns[i] for i in kept], [[row[i] for i in kept] for row in grid.rows])


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
    for block in _blocks(grid, console.width):
        table.add_row(*map(Text, block))
    console.print(table)


def _blocks(grid: Grid, width: int) -> Iterator[Sequence[str]]:
    """The rows of a table of `width` cells, those side by side that wrap nowhere joined to one.

    Rich takes its time for every cell, hardly for the lines in it.
    """
    from rich.cells import cell_len

    folding = [index for index, column in enumerate(grid.columns) if column.fold]
    room = width - len(_GAP) * (len(grid.columns) - 1)
    for index, column in enumerate(grid.columns):
        if index not in folding:
            room -= max(cell_len(text) for text in (column.title, *(r[index] for r in grid.rows)))

    def fits(row: Sequence[str]) -> bool:
        # columns that fold share what room there is, in a way of Rich's own if there are several
        return len(folding) <= 1 and sum(cell_len(row[index]) for index in folding) <= room

    for together, rows in groupby(grid.rows, fits):
        if together:
            yield ["\n".join(cells) for cells in zip(*rows, strict=True)]
        else:
            yield from rows
