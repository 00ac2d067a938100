"""Writing many names as few: ``layer3.{0..5}.conv2.weight``."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

_LONGEST_NUMBER = 9


@dataclass(frozen=True, slots=True)
class Fold:
    """A pattern, the names it stands for in their order, and the value that they all have."""

    pattern: str
    names: tuple[str, ...]
    value: Hashable = None

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
        groups.append((tuple(name.split(".")), [index], value))
    depth = max((len(segments) for segments, _, _ in groups), default=0)
    for position in range(depth):
        groups = _join_at(position, groups)
    groups.sort(key=lambda group: group[1][0])
    return [
        Fold(".".join(segments), tuple(names[index] for index in sorted(indices)), value)
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


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
