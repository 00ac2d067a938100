"""Choosing entries beside the weights by their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Final, TypeAlias

from ckpt_surgery.errors import UsageError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_ACROSS: Final = "**"
_SIGNS: Final = frozenset("*?[")

Reached: TypeAlias = frozenset[int]
"""How far a rule has come on the way to an entry: places between its segments."""


@dataclass(frozen=True, slots=True)
class EntryRule:
    """A path, or a glob of paths: ``*`` and ``?`` stay between two slashes, ``**`` crosses them.

    Raises `UsageError` for an empty text.
    """

    text: str
    _segments: tuple[Callable[[str], object] | None, ...] = field(
        init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("'--entry' is empty", hint="'ckpt inspect' shows the paths of entries")
        segments = tuple(map(_segment, self.text.split("/")))
        object.__setattr__(self, "_segments", segments)

    @property
    def is_glob(self) -> bool:
        """Whether it may match several entries."""
        return not _SIGNS.isdisjoint(self.text)

    @property
    def option(self) -> str:
        """The rule as it was asked for: ``--entry args``."""
        return f"--entry {self.text}"

    def to_dict(self) -> dict[str, object]:
        return {"kind": "entry", "text": self.text}

    @property
    def start(self) -> Reached:
        """What is reached at the top."""
        return self._with_skipped([0])

    def step(self, reached: Reached, name: str) -> Reached:
        """Return what is reached below an entry called `name`; nothing if it does not lead on."""
        found: list[int] = []
        for place in reached:
            if place == len(self._segments):
                continue
            test = self._segments[place]
            if test is None:
                found += (place, place + 1)
            elif test(name):
                found.append(place + 1)
        return self._with_skipped(found)

    def matches(self, reached: Reached) -> bool:
        return len(self._segments) in reached

    def _with_skipped(self, places: Iterable[int]) -> Reached:
        """``**`` may stand for no segment at all, unless it is the last."""
        found: set[int] = set()
        for start in places:
            place = start
            found.add(place)
            while place < len(self._segments) - 1 and self._segments[place] is None:
                place += 1
                found.add(place)
        return frozenset(found)


def _segment(text: str) -> Callable[[str], object] | None:
    if text == _ACROSS:
        return None
    if _SIGNS.isdisjoint(text):
        return text.__eq__
    import re
    from fnmatch import translate

    return re.compile(translate(text)).match
