"""The grids that position embeddings lie on, found from how many positions there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isqrt

from ckpt_surgery.errors import UsageError
from ckpt_surgery.startup.lazy_dataclass import dataclass

GridSize = tuple[int, int]
"""Height and width, in positions."""

_GRIDS = re.compile(r"(?:([1-9]\d{0,5})x([1-9]\d{0,5}):)?([1-9]\d{0,5})x([1-9]\d{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Grids:
    """The grid of the target's positions, and that of the checkpoint's (None: a square)."""

    new: GridSize
    old: GridSize | None = None

    def __str__(self) -> str:
        sizes = [self.new] if self.old is None else [self.old, self.new]
        return ":".join(f"{height}x{width}" for height, width in sizes)


def parse_grids(text: str) -> Grids:
    """Return the grids of ``--grid 4x6`` (the target's) or ``14x14:4x6``
    (the checkpoint's, the target's).

    Raises UsageError for anything else.
    """
    found = _GRIDS.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"'grid {text}' is no grid",
            fields=("grid",),
            hint="write it as HEIGHTxWIDTH, for example '4x6', or as OLD:NEW, '14x14:4x6'",
        )
    old_height, old_width, height, width = found.groups()
    old = None if old_height is None else (int(old_height), int(old_width))
    return Grids((int(height), int(width)), old)


def find_grids(
    old: int, new: int, extras: Sequence[int], wanted: Grids | None, *, distances: bool = False
) -> tuple[int, GridSize, GridSize] | None:
    """Return how many of `old` and `new` positions are not on a grid, and the grids of the others.

    The first of `extras` that leaves the wanted grids on both sides, else the one that leaves
    squares: never two do (tested). With `distances` the positions are those between the places of a
    window of the grid's size, from -(height - 1) to height - 1, and so for the width.
    """
    for grids in (wanted, None) if wanted is not None else (None,):
        for extra in extras:
            before = _size(old - extra, None if grids is None else grids.old, distances)
            after = _size(new - extra, None if grids is None else grids.new, distances)
            if before is not None and after is not None:
                return extra, before, after
    return None


def _size(positions: int, wanted: GridSize | None, distances: bool) -> GridSize | None:
    """Return the grid of so many positions, a square if none is
    `wanted`; None if they do not make it.
    """
    if wanted is None:
        side = isqrt(max(positions, 0))
        return (side, side) if side and side * side == positions else None
    height, width = (2 * wanted[0] - 1, 2 * wanted[1] - 1) if distances else wanted
    return (height, width) if height * width == positions else None
