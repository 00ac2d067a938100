"""Which group of an optimizer a new parameter of its model joins."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Final

from ckpt_surgery.startup.lazy_dataclass import dataclass

UNCERTAIN: Final = -1
"""In the place of a group."""


@dataclass(frozen=True)
class Homes:
    """The groups of a model's parameters, in its order, and those of the new ones among them.

    `known` are the groups of the old ones by position, None of what is in none; `is_new` says which
    are new, `ndims` how many axes each has; `groups` counts the groups. `names` may be empty.
    """

    known: Sequence[int | None]
    is_new: Sequence[bool]
    ndims: Sequence[int]
    groups: int
    names: Sequence[str] = ()

    def of(self, position: int) -> int | None:
        """Return the group of the new parameter there, None if it is in none, or `UNCERTAIN`.

        It is that of all old ones, or of those with as many axes, where groups are split so, or of
        the nearest old ones on both sides, or of what has its name in all other blocks.
        """
        if len(self._all) == 1 and UNCERTAIN not in self._all:
            return next(iter(self._all))  # everything is treated alike
        if not self._old and self.groups == 1:
            return 0
        index = bisect_left(self._old, position)
        beside = {self.known[i] for i in self._old[max(index - 1, 0) : index + 1]}
        if beside != {None} and self._split is not None:
            return self._split[self.ndims[position] > 1]
        if not 0 < index < len(self._old) or len(beside) != 1:
            return self._of_its_like(position)
        return beside.pop()

    def _of_its_like(self, position: int) -> int:
        """Return the group of all that have its name but for the number of a block.

        There have to be two: one alone may have a group for itself.
        """
        for place in _numberless(self.names[position]) if self.names else ():
            homes = self._by_place.get(place, [])
            if len(homes) > 1:
                home, *others = dict.fromkeys(homes)
                return UNCERTAIN if others or home is None else home
        return UNCERTAIN

    @cached_property
    def _old(self) -> list[int]:
        return [position for position, new in enumerate(self.is_new) if not new]

    @cached_property
    def _by_place(self) -> dict[str, list[int | None]]:
        found: dict[str, list[int | None]] = {}
        for position in self._old:
            for place in _numberless(self.names[position]):
                found.setdefault(place, []).append(self.known[position])
        return found

    @cached_property
    def _all(self) -> set[int | None]:
        return {self.known[position] for position in self._old}

    @cached_property
    def _split(self) -> tuple[int, int] | None:
        """The groups of vectors and of matrices, if that is what tells the groups apart.

        Weight decay is often for matrices alone. One group after the other along the model is
        rather one for its body and one for its head.
        """
        seen = [(self.ndims[i] > 1, self.known[i]) for i in self._old if self.known[i] is not None]
        sides = [{home for large, home in seen if large is side} for side in (False, True)]
        homes = [home for _, home in seen]
        if any(len(side) != 1 for side in sides) or sides[0] == sides[1] or UNCERTAIN in homes:
            return None
        if sum(one != other for one, other in pairwise(homes)) < 2:
            return None
        (vectors,), (matrices,) = sides
        return None if vectors is None or matrices is None else (vectors, matrices)


def _numberless(name: str) -> Iterator[str]:
    """Yield a name without the number of a block, the outermost first."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            yield ".".join([*parts[:place], "*", *parts[place + 1 :]])
