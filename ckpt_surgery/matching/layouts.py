"""Which tensors of a checkpoint fit a target in another layout: transposed, fused, split.

What is found is only proposed. Names say which tensor is which; shapes say what became of it.
Where a shape cannot tell, since it is square, other tensors of the same name or around it are
asked, and if they do not tell either, the proposal has a `doubt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.matching.comparison import loads_into
from ckpt_surgery.matching.correspondence import AmbiguousMatchError, Level, correspond
from ckpt_surgery.matching.layout_shapes import (
    Step,
    Way,
    flattened,
    how_of,
    joined_ways,
    same_core,
    split_ways,
)
from ckpt_surgery.matching.layout_votes import Votes
from ckpt_surgery.matching.regrouping import Group, regroupings
from ckpt_surgery.matching.target_source import Aim, Described
from ckpt_surgery.models.target import Shape, TensorSpec
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST_NAMES: Final = 5000
"""Names beyond which layouts are looked for only if they are asked for: that takes seconds."""
_PLAIN: Final = re.compile(r"[\w.\-]+")
"""Names that can stand in rules: they hold no signs of globs."""
_HEADS: Final = "its rows may lie head by head"
_SQUARE: Final = "it is square, and beside what is transposed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors of the checkpoint that become tensors of the target in another layout.

    `ways` are what may have to be done, the likeliest first: a name for each (``transposed``,
    ``as-is``) and its steps. `doubt` says why it is not certain which; empty if it is. `by_heads`:
    the parts may also be collected head by head.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    from_shapes: tuple[Shape, ...]
    to_shapes: tuple[Shape, ...]
    ways: tuple[Way, ...]
    doubt: str = ""
    by_heads: bool = False

    @property
    def is_certain(self) -> bool:
        """Whether names and shapes leave one way."""
        return not self.doubt

    @property
    def how(self) -> str:
        """What the likeliest way does: ``transpose``, ``transpose and split``, …"""
        return how_of(self.ways[0].steps)


def layouts_of(
    source: Described, aim: Aim, level: Level = "prefix", *, asked_for: bool = False
) -> tuple[Layout, ...]:
    """Return what of a state dict fits the target in another layout, in the target's order.

    Names are paired as `correspond` does at `level`, but never by shapes alone (``order``). Names
    that have two equally good partners are left alone, and so are names that no rule can hold.
    Unless layouts are `asked_for`, they are not looked for among very many names.
    """
    names = max(len(source.specs), len(aim.target.tensors))
    if names > _MOST_NAMES and not asked_for:
        return ()
    named: Level = "prefix" if level == "order" else level
    return _Finder(source.specs, aim.target.tensors, named, aim.upgraded(source)).run()


class _Finder:
    def __init__(
        self,
        source: Sequence[TensorSpec],
        target: Sequence[TensorSpec],
        level: Level,
        upgraded: Mapping[str, str],
    ) -> None:
        self._specs = list(source)
        self._known = {spec.name: spec for spec in source}
        self._target = target
        self._wanted = {spec.name: spec for spec in target}
        self._level = level
        self._upgraded = upgraded
        self._groups: list[Group] = []

    def run(self) -> tuple[Layout, ...]:
        pairs = self._pair(self._specs)
        if not self._lost_targets(pairs):
            return ()
        pairs = self._regrouped(pairs)
        votes = Votes.of(
            (new, self._known[old].shape, self._wanted[new].shape)
            for old, new in pairs.items()
            if old in self._known and _is_movable(self._known[old])
        )
        found = list(self._of_groups(pairs, votes))
        for each in found:  # what they tell of the squares around, and not of each other
            if len(each.to_shapes[0]) > 1:
                votes.note(each.targets[0], each.ways)
        found += self._of_pairs(pairs, votes)
        found = [each for each in found if all(map(_PLAIN.fullmatch, each.sources))]
        places = {spec.name: place for place, spec in enumerate(self._target)}
        return tuple(sorted(found, key=lambda each: min(places[name] for name in each.targets)))

    def _pair(self, specs: Sequence[TensorSpec]) -> dict[str, str]:
        """Return the target's name for each of `specs` that has one."""
        try:
            found = correspond(specs, self._target, level=self._level, upgraded=self._upgraded)
        except AmbiguousMatchError:
            return {}
        return {pair.source: pair.target for pair in found.pairs}

    def _lost_targets(self, pairs: Mapping[str, str]) -> list[str]:
        """Return the target's names that nothing of their shape is paired with."""
        kept = {new for old, new in pairs.items() if self._loads(old, new)}
        return [spec.name for spec in self._target if spec.name not in kept]

    def _loads(self, old: str, new: str) -> bool:
        have = self._known.get(old)
        return have is not None and loads_into(have.shape, self._wanted[new].shape)

    def _regrouped(self, pairs: dict[str, str]) -> dict[str, str]:
        """Return the pairs after what is fused was split, and what is split was joined.

        Each spelling of the parts is tried; what is kept has all its parts in the target, where
        nothing else of the checkpoint fits.
        """
        lost = self._lost_targets(pairs)
        free = [
            s for s in self._specs if s.name not in pairs or not self._loads(s.name, pairs[s.name])
        ]
        movable = [spec for spec in free if _is_movable(spec)]
        for groups in regroupings(movable, lost):
            taken = {name for group in self._groups for name in group.sources}
            trial = [g for g in groups if not taken.intersection(g.sources)]
            trial = [g for g in trial if not any(name in self._known for name in g.made)]
            found = self._pair(_with(self._specs, trial))
            fitting = [g for g in trial if all(found.get(name) in lost for name in g.made)]
            if fitting:
                self._groups += fitting
                self._specs = _with(self._specs, fitting)
                pairs = self._pair(self._specs)
        return pairs

    def _of_groups(self, pairs: Mapping[str, str], votes: Votes) -> Iterator[Layout]:
        for group in self._groups:
            if not all(name in pairs for name in group.made):
                continue
            targets = tuple(pairs[name] for name in group.made)
            have = tuple(self._known[name].shape for name in group.sources)
            want = tuple(self._wanted[name].shape for name in targets)
            ways = (
                split_ways(group.sources[0], group.made, have[0], want)
                if group.kind == "split"
                else joined_ways(group.sources, group.made[0], have, want[0])
            )
            if ways:
                ordered, doubt = votes.decide(targets[0], ways)
                heads = group.is_interleaved
                doubt = _HEADS if heads else doubt
                yield Layout(group.sources, targets, have, want, ordered, doubt, heads)

    def _of_pairs(self, pairs: Mapping[str, str], votes: Votes) -> Iterator[Layout]:
        for old, new in pairs.items():
            spec = self._known.get(old)
            if spec is None or not _is_movable(spec):
                continue
            have, want = spec.shape, self._wanted[new].shape
            turn = Way("transposed", (Step("transpose", (old,)),))
            if have == want:
                doubt = _SQUARE if len(have) == 2 and have[0] == have[1] > 1 else None
                told = None if doubt is None else votes.of_square(new)
                if told is not None:
                    ways = (turn, Way("as-is", ()))
                    yield _one(old, new, have, want, ways, "" if told == "yes" else _SQUARE)
            elif len(have) == 2 and have[::-1] == want:
                yield _one(old, new, have, want, (turn,))
            elif same_core(have, want) or flattened(old, have, want):
                step = Step("reshape", (old,), value=",".join(map(str, want)))
                yield _one(old, new, have, want, (Way("as-is", (step,)),))


def _one(
    old: str, new: str, have: Shape, want: Shape, ways: tuple[Way, ...], doubt: str = ""
) -> Layout:
    return Layout((old,), (new,), (have,), (want,), ways, doubt)


def _with(specs: Sequence[TensorSpec], groups: Sequence[Group]) -> list[TensorSpec]:
    """Return the specs with what `groups` make at the place of the first that they are made of."""
    first = {group.sources[0]: group for group in groups}
    gone = {name for group in groups for name in group.sources}
    found: list[TensorSpec] = []
    for spec in specs:
        if spec.name in first:
            found += first[spec.name].specs
        elif spec.name not in gone:
            found.append(spec)
    return found


def _is_movable(spec: TensorSpec) -> bool:
    """Return whether its elements are numbers of their own that may be put elsewhere.

    Integers are indices or codes, and numbers of eight bits have scales that would have to follow.
    """
    kind = BY_NAME[spec.dtype].kind
    small = spec.dtype.startswith(("float8", "float4", "float6"))
    return kind in ("float", "complex") and not small and spec.layout in ("strided", "device")
