"""Fit tables to a width: columns of low value go first, then names are shortened at their dots.

Nothing here writes. A word is never broken unless it alone is wider than the screen, and what was
left out is told, so that nothing vanishes without a sign.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TextIO

from ckpt_surgery.startup.lazy_dataclass import dataclass

GAP: Final = "  "
_ELLIPSIS: Final = "…"
_HANGING: Final = "    "
_COLUMNS: Final = 80  # of a terminal that does not say
_NARROW_NAME: Final = 36  # cells; a name that is shortened below says little
_NARROW_TEXT: Final = 20  # cells; words that wrap in fewer are a ladder
_GUIDE: Final = re.compile(r"(?:│   |    )*(?:├── |└── )")  # what leads to a node of a tree
_JOINTS: Final = re.compile(r"(?<=[./])")  # a name may be cut behind these


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    On a narrow screen the columns with the highest `spare` go first; 0 always stays. `names` are
    shortened in the middle, at dots and slashes; a text that `wraps` takes more lines.
    """

    title: str
    right: bool = False
    names: bool = False
    wraps: bool = False
    spare: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts that are safe to print."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table that fits: the width of each column in cells, and the titles of those left out."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...]
    rows: list[Sequence[str]]
    left_out: tuple[str, ...] = ()

    def sign(self) -> str:
        """Return a line that says what is not shown; empty if everything is."""
        if not self.left_out:
            return ""
        return f"not shown at this width: {', '.join(self.left_out)}"


def cells(text: str) -> int:
    """Return the cells of a terminal that `text` takes: two a wide character, none an accent."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(grid: Grid, width: int) -> Fitted:
    """Return `grid` so that no line is wider than `width` cells.

    Every cell is one line, but for texts that wrap, whose lines are rows of their own.
    """
    natural = [
        max(map(cells, (column.title, *(row[index] for row in grid.rows))))
        for index, column in enumerate(grid.columns)
    ]
    kept = _kept(grid.columns, natural, width)
    columns = tuple(grid.columns[index] for index in kept)
    widths = _widths(columns, [natural[index] for index in kept], width)
    rows: list[Sequence[str]] = []
    for row in grid.rows:
        rows += _lines([row[index] for index in kept], columns, widths)
    gone = [column.title for index, column in enumerate(grid.columns) if index not in kept]
    return Fitted(columns, tuple(widths), rows, tuple(gone))


def _least(column: Column, natural: int) -> int:
    """Return the cells below which a column is of no use."""
    if column.names:
        return min(natural, max(_NARROW_NAME, cells(column.title)))
    if column.wraps:
        return min(natural, max(_NARROW_TEXT, cells(column.title)))
    return natural


def _kept(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """Return the positions of the columns that are shown, the least useful left out first."""
    kept = list(range(len(columns)))

    def needed() -> int:
        least = sum(_least(columns[index], natural[index]) for index in kept)
        return least + len(GAP) * (len(kept) - 1)

    going = sorted((i for i in kept if columns[i].spare), key=lambda i: (-columns[i].spare, -i))
    for index in going:
        if needed() <= width:
            break
        kept.remove(index)
    return kept


def _widths(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """Return the width of each column: texts give way first, then names, the widest first."""
    widths = list(natural)
    excess = sum(widths) + len(GAP) * (len(columns) - 1) - width
    for giving, least in (
        ([i for i, column in enumerate(columns) if column.wraps], _NARROW_TEXT),
        ([i for i, column in enumerate(columns) if column.names], 1),
    ):
        while excess > 0 and giving:
            widest = max(giving, key=widths.__getitem__)
            if widths[widest] <= least:
                break
            widths[widest] -= 1
            excess -= 1
    return widths


def _lines(
    row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]
) -> Iterator[Sequence[str]]:
    """Yield the lines of one row: one, or as many as its longest text wraps to."""
    lines = [
        list(_wrap(text, width)) if column.wraps else [_cut(column, text, width)]
        for text, column, width in zip(row, columns, widths, strict=True)
    ]
    for index in range(max(map(len, lines), default=0)):
        yield [each[index] if index < len(each) else "" for each in lines]


def _cut(column: Column, text: str, width: int) -> str:
    if cells(text) <= width:
        return text
    return _shorten_name(text, width) if column.names else _head(text, width)


def _shorten_name(name: str, width: int) -> str:
    """Return `name` in at most `width` cells, whole segments left out of its middle.

    ``backbone.layer3.0.conv1.weight`` becomes ``backbone.…conv1.weight``; the lines that lead to
    a node of a tree stay. Only a segment that is too wide by itself is cut.
    """
    if cells(name) <= width:
        return name
    guide = match[0] if (match := _GUIDE.match(name)) else ""
    if guide and cells(guide) + 2 <= width:
        return guide + _shorten_name(name[len(guide) :], width - cells(guide))
    segments = _JOINTS.split(name)
    room = width - 1
    head, tail = "", ""
    front, back = 0, len(segments) - 1
    from_back = True
    while front <= back:
        segment = segments[back] if from_back else segments[front]
        if cells(head) + cells(tail) + cells(segment) > room:
            if from_back and not tail:
                break
            if not from_back:
                break
            from_back = False
            continue
        if from_back:
            tail, back = segment + tail, back - 1
            from_back = bool(head)
        else:
            head, front = head + segment, front + 1
            from_back = True
    if tail:
        return head + _ELLIPSIS + tail
    keep = max(room // 2, 1)
    return _head(name, width - keep).removesuffix(_ELLIPSIS)[: width - keep - 1] + (
        _ELLIPSIS + _tail(name, keep)
    )


def _head(text: str, width: int) -> str:
    """Return the beginning of `text` and an ellipsis, in at most `width` cells."""
    return _take(text, max(width - 1, 0)) + _ELLIPSIS


def _take(text: str, width: int) -> str:
    taken, used = [], 0
    for character in text:
        used += _cells_of(character)
        if used > width:
            break
        taken.append(character)
    return "".join(taken)


def _tail(text: str, width: int) -> str:
    return _take(text[::-1], width)[::-1]


def _wrap(text: str, width: int) -> Iterator[str]:
    """Yield the lines of `text`, broken between words; one that is too wide behind a dot in it."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cells(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        while cells(word) > width:
            part = _part(word, width)
            yield part
            word = word[len(part) :]  # noqa: PLW2901 - what is left of it
        line = word
    yield line


def _part(word: str, width: int) -> str:
    """Return the beginning of a word that is too wide: up to a dot in its last third."""
    part = _take(word, width) or word[:1]
    joint = part.rfind(".") + 1
    return part[:joint] if 3 * joint > 2 * len(part) else part


def columns_of(stream: TextIO) -> int:
    """Return how wide the terminal is that `stream` writes to; COLUMNS says otherwise."""
    with suppress(ValueError):
        if (wanted := int(os.environ.get("COLUMNS", ""))) > 0:
            return wanted
    with suppress(OSError, ValueError, AttributeError):  # no terminal, or closed
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    return _COLUMNS


def hanging(text: str, width: int) -> str:
    """Return `text` wrapped between words, what follows its first line set in below it."""
    if cells(text) <= width:
        return text
    indent = min(len(text) - len(text.lstrip(" ")), width // 2)
    below = min(indent + len(_HANGING), width // 2)
    first, *rest = _wrap(text.lstrip(" "), max(width - indent, 1))
    if not rest:
        return " " * indent + first
    remainder = text.lstrip(" ")[len(first) :].lstrip(" ")
    lines = _wrap(remainder, max(width - below, 1))
    return "\n".join([" " * indent + first, *(" " * below + line for line in lines)])


def padded(row: Sequence[str], fitted: Fitted, paint: Callable[[str, str], str]) -> str:
    """Return one line of the table; `paint` gives a padded cell the style of its column."""
    line = []
    last = len(row) - 1
    for index, (text, column, width) in enumerate(
        zip(row, fitted.columns, fitted.widths, strict=True)
    ):
        fill = " " * max(width - cells(text), 0)
        cell = fill + text if column.right else text + (fill if index < last else "")
        line.append(paint(cell, column.style))
    return GAP.join(line)
