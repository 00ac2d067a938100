"""Writing many names as few: ``layer3.{0..5}.conv2.weight``."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import field
from itertools import groupby
from typing import Final

from ckpt_surgery.startup.lazy_dataclass import dataclass

_LONGEST_NUMBER: Final = 9
_DEEPEST: Final = 64  # segments in which numbers are looked for; a file may have absurd names


@dataclass(frozen=True, slots=True)
class Fold:
    """A pattern, the names it stands for in their order, and the value that they all have.

    `indices` are the places of the names among those that were given.
    """

    pattern: str
    names: tuple[str, ...]
    value: Hashable = None
    indices: tuple[int, ...] = field(default=(), compare=False)

    @property
    def count(self) -> int:
        return len(self.names)


def fold_names(names: Iterable[str]) -> list[Fold]:
    """`fold` of names that have no values."""
    return fold((name, None) for name in names)


def fold(pairs: Iterable[tuple[str, Hashable]]) -> list[Fold]:
    """Join names that differ in numbered segments only and have the same value.

    A pattern stands for exactly its names: ``a.{0..1}.b.{0..1}`` only if all four are there.
    ``{0..5}`` is a run, ``{0..3,7}`` a run and a single number. The order is that of each
    pattern's first name.
    """
    groups: list[tuple[tuple[str, ...], list[int], Hashable]] = []
    names: list[str] = []
    for index, (name, value) in enumerate(pairs):
        names.append(name)
        groups.append((tuple(name.split(".", _DEEPEST)), [index], value))
    depth = max((len(segments) for segments, _, _ in groups), default=0)
    for position in range(min(depth, _DEEPEST)):
        groups = _join_at(position, groups)
    groups.sort(key=lambda group: group[1][0])
    return [
        Fold(
            ".".join(segments),
            tuple(names[index] for index in sorted(indices)),
            value,
            tuple(sorted(indices)),
        )
        for segments, indices, value in groups
    ]


def _join_at(
    position: int, groups: list[tuple[tuple[str, ...], list[int], Hashable]]
) -> list[tuple[tuple[str, ...], list[int], Hashable]]:
    """Join groups that differ in the number at `position` only."""
    result = []
    joined: dict[Hashable, list[tuple[tuple[str, ...], list[int], Hashable]]] = {}
    for group in groups:
        segments, _, value = group
        if position < len(segments) and _is_number(segments[position]):
            key = (segments[:position], segments[position + 1 :], value)
            joined.setdefault(key, []).append(group)
        else:
            result.append(group)
    for members in joined.values():
        segments, _, value = members[0]
        numbers = sorted({int(m[0][position]) for m in members})
        if len(numbers) == 1 or len(numbers) < len(members):  # a single one, or names repeated
            result.extend(members)
            continue
        pattern = (*segments[:position], f"{{{_ranges(numbers)}}}", *segments[position + 1 :])
        result.append((pattern, [index for m in members for index in m[1]], value))
    return result


def _is_number(segment: str) -> bool:
    # '007' is a name: as the number 7 it could not be told from '7'
    if len(segment) > _LONGEST_NUMBER or not (segment.isascii() and segment.isdigit()):
        return False
    return str(int(segment)) == segment


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in brief: ``0..3,5,7..8``."""
    runs = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return ",".join(runs)
