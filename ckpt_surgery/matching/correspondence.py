"""Which tensor of a checkpoint is which tensor of a target, when their names differ.

Tried from the safest to the boldest, and no bolder than asked:

``name``    equal names, old spellings, and what the model's own loading code renames
``prefix``  one prefix added or removed, and wrappers (``module``, ``_orig_mod``) anywhere
``suffix``  one segment that is inserted everywhere, then each name's longest dotted suffix
``order``   the same shapes in the same order, whatever the names
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

from ckpt_surgery.matching.alignment import AmbiguousMatchError, align_in_order, ambiguous
from ckpt_surgery.models.target import Shape, TensorSpec
from ckpt_surgery.names.spellings import modern_spelling, unwrapped
from ckpt_surgery.startup.lazy_dataclass import dataclass

_DEEPEST = 32
"""Segments of a name that are looked at: a hostile file may have names of thousands."""
_MOST_INFIXES = 64
"""Segments that are tried as inserted everywhere, the most frequent ones."""

Level = Literal["name", "prefix", "suffix", "order"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the checkpoint and the target's that it stands for; `how` it was found."""

    source: str
    target: str
    how: str


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Pairs in the target's order, at most one for each name on either side."""

    pairs: tuple[Pair, ...]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]

    @property
    def renames(self) -> dict[str, str]:
        """Old name to new for the pairs whose names differ: what ``--emit-map`` writes."""
        return {pair.source: pair.target for pair in self.pairs if pair.source != pair.target}

    @property
    def by_target(self) -> dict[str, str]:
        return {pair.target: pair.source for pair in self.pairs}


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """A way to turn names of the checkpoint into names of the target."""

    label: str
    renames: Mapping[str, str]


def correspond(
    source: Sequence[TensorSpec],
    target: Sequence[TensorSpec],
    *,
    level: Level = "prefix",
    upgraded: Mapping[str, str] | None = None,
    renames: Mapping[str, str] | None = None,
) -> Correspondence:
    """Pair the tensors of a checkpoint with those of a target, no bolder than `level`.

    `upgraded` is what `verdict.upgraded_names` found; `renames` (a map that the user reviewed)
    settles its names before anything else. Pairs found by name or prefix may differ in shape, the
    bolder ones have equal shapes. Raises AmbiguousMatchError if two answers are equally good.
    """
    finder = _Finder(source, target)
    finder.take(((old, new) for old, new in (renames or {}).items()), "map")
    if level == "order":
        finder.take_in_order()
    else:
        finder.take_by_name(upgraded or {}, level)
    if level == "suffix":
        finder.take(_by_suffix(finder.free_source, finder.free_target), "suffix")
    return finder.result()


class _Finder:
    def __init__(self, source: Sequence[TensorSpec], target: Sequence[TensorSpec]) -> None:
        self.source = {spec.name: spec for spec in source}
        self.target = {spec.name: spec for spec in target}
        self.found: dict[str, Pair] = {}
        self.used: set[str] = set()

    @property
    def free_source(self) -> list[TensorSpec]:
        return [spec for name, spec in self.source.items() if name not in self.used]

    @property
    def free_target(self) -> list[TensorSpec]:
        return [spec for name, spec in self.target.items() if name not in self.found]

    def take(self, pairs: Iterable[tuple[str, str]], how: str) -> None:
        for old, new in pairs:
            known = old in self.source and new in self.target
            if known and old not in self.used and new not in self.found:
                self.found[new] = Pair(old, new, how if old != new else "name")
                self.used.add(old)

    def take_by_name(self, upgraded: Mapping[str, str], level: Level) -> None:
        best = _best_rewrite(self.free_source, self.free_target, level, upgraded)
        self.take(best.renames.items(), best.label)
        # what the rewriting does not reach may still have its right name
        self.take(((name, name) for name in self.source), "name")

    def take_in_order(self) -> None:
        named = _best_rewrite(self.free_source, self.free_target, "prefix", {})
        pairs = align_in_order(
            self.free_source, self.free_target, lambda old, new: named.renames.get(old) == new
        )
        self.take(pairs, "order")
        # what no shape pairs is what its name says, to be adapted or reported: a changed head
        self.take(named.renames.items(), named.label)

    def result(self) -> Correspondence:
        return Correspondence(
            pairs=tuple(self.found[name] for name in self.target if name in self.found),
            unmatched_source=tuple(spec.name for spec in self.free_source),
            unmatched_target=tuple(spec.name for spec in self.free_target),
        )


def _best_rewrite(
    source: Sequence[TensorSpec],
    target: Sequence[TensorSpec],
    level: Level,
    upgraded: Mapping[str, str],
) -> _Rewrite:
    """Return the rewriting after which the most tensors have their name and shape in the target."""
    shapes = {spec.name: spec.shape for spec in source}
    wanted = {spec.name: spec.shape for spec in target}
    exact = _exact(shapes, wanted, upgraded)
    if level == "name" or not (shapes and wanted):
        return exact
    candidates = [_unwrapping(shapes, wanted), *_prefixes(shapes, wanted)]
    best = _choose([exact, *candidates], shapes, wanted, preferred=2)
    if level == "suffix":
        enough = max(_score(best, shapes, wanted) + 1, (min(len(shapes), len(wanted)) + 1) // 2)
        best = _choose([best, *_infixes(shapes, wanted, enough)], shapes, wanted, preferred=1)
    return best


def _choose(
    candidates: Sequence[_Rewrite],
    shapes: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    preferred: int,
) -> _Rewrite:
    """Return the best of `candidates`; the first `preferred` ones win over others that are as good.

    Raises AmbiguousMatchError if two of the others are best and disagree. One that explains less
    than half of the smaller side is a coincidence.
    """
    scores = [_score(rewrite, shapes, wanted) for rewrite in candidates]
    best = max(scores)
    winner = scores.index(best)
    if winner > 0 and 2 * best < min(len(shapes), len(wanted)):
        return candidates[0]
    if winner >= preferred:
        for rival, score in zip(candidates[winner + 1 :], scores[winner + 1 :], strict=True):
            if score == best:
                _refuse_disagreement(candidates[winner].renames, rival.renames)
    return candidates[winner]


def _score(rewrite: _Rewrite, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> int:
    return sum(shapes[old] == wanted[new] for old, new in rewrite.renames.items())


def _refuse_disagreement(one: Mapping[str, str], other: Mapping[str, str]) -> None:
    owner = {new: old for old, new in one.items()}
    for old, new in other.items():
        if owner.get(new, old) != old:
            raise ambiguous(new, [owner[new], old])
        if one.get(old, new) != new:
            raise ambiguous(old, [one[old], new])


def _exact(
    shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], upgraded: Mapping[str, str]
) -> _Rewrite:
    renames = {}
    for name in shapes:
        new = upgraded.get(name) or modern_spelling(name, wanted) or name
        if new in wanted:
            renames[name] = new
    return _Rewrite("old spelling", _one_to_one(renames.items()))


def _unwrapping(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> _Rewrite:
    plain = _spelled_as({unwrapped(name): name for name in wanted})
    pairs = ((name, plain(unwrapped(name))) for name in shapes)
    return _Rewrite("wrapper", _one_to_one((old, new) for old, new in pairs if new is not None))


def _spelled_as(plain: Mapping[str, str]) -> Callable[[str], str | None]:
    """Look a plain name up, also by its modern spelling."""

    def look_up(name: str) -> str | None:
        return plain.get(modern_spelling(name, plain) or name)

    return look_up


def _prefixes(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Iterator[_Rewrite]:
    """Yield one prefix removed, one added, and the prefixes that all names have exchanged."""
    ours = {unwrapped(name): name for name in shapes}
    theirs = {unwrapped(name): name for name in wanted}
    if len(ours) < len(shapes) or len(theirs) < len(wanted):
        ours, theirs = {name: name for name in shapes}, {name: name for name in wanted}
    look_up, look_back = _spelled_as(theirs), ours.get
    for prefix, rest in _subtrees(ours):
        pairs = [(ours[f"{prefix}.{tail}"], look_up(tail)) for tail in rest]
        yield _Rewrite(f"prefix '{prefix}.' removed", _present(pairs))
    for prefix, rest in _subtrees(theirs):
        back = [(look_back(tail), theirs[f"{prefix}.{tail}"]) for tail in rest]
        yield _Rewrite(f"prefix '{prefix}.' added", _present(back))
    for old in _common_prefixes(ours):
        for new in _common_prefixes(theirs):
            tails = ((ours[name], f"{new}.{name[len(old) + 1 :]}") for name in ours)
            pairs = [(name, look_up(renamed)) for name, renamed in tails]
            yield _Rewrite(f"prefix '{old}.' replaced by '{new}.'", _present(pairs))


def _present(pairs: Iterable[tuple[str | None, str | None]]) -> Mapping[str, str]:
    return _one_to_one((old, new) for old, new in pairs if old is not None and new is not None)


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Pairs without those whose new name two old ones claim, unless one of them has it already."""
    claims: dict[str, list[str]] = defaultdict(list)
    for old, new in pairs:
        claims[new].append(old)
    result = {}
    for new, olds in claims.items():
        if len(olds) == 1 or new in olds:
            result[new if new in olds else olds[0]] = new
    return result


def _subtrees(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every dotted prefix with the rests of the names below it."""
    below: dict[str, list[str]] = defaultdict(list)
    for name in names:
        position = name.find(".")
        for _ in range(_DEEPEST):
            if position < 0:
                break
            below[name[:position]].append(name[position + 1 :])
            position = name.find(".", position + 1)
    yield from below.items()


def _common_prefixes(names: Mapping[str, str]) -> list[str]:
    """Return the dotted prefixes that all names have, the shortest first."""
    count = len(names)
    return [prefix for prefix, rest in _subtrees(names) if len(rest) == count]


def _infixes(
    shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], enough: int
) -> Iterator[_Rewrite]:
    """Yield one segment removed from all names of one side, wherever it occurs.

    Not those with which fewer than `enough` names could agree, as `_choose` would not take them:
    of thousands of names each may have a segment of its own.
    """
    enough -= len(shapes.keys() & wanted.keys())  # those that agree whatever goes
    for segment in _segments(shapes, wanted, enough):
        pairs = ((name, _without(segment, name)) for name in shapes)
        found = ((old, new) for old, new in pairs if new in wanted)
        yield _Rewrite(f"segment '{segment}' removed", _one_to_one(found))
    for segment in _segments(wanted, shapes, enough):
        pairs = ((_without(segment, name), name) for name in wanted)
        found = ((old, new) for old, new in pairs if old in shapes)
        yield _Rewrite(f"segment '{segment}' inserted", _one_to_one(found))


def _segments(names: Iterable[str], others: Container[str], enough: int) -> list[str]:
    """Return the most frequent segments before the last ones of `names`.

    Only those of at least `enough` names that are not among `others` already.
    """
    found: Counter[str] = Counter()
    useful: Counter[str] = Counter()
    for name in names:
        segments = {s: 1 for s in name.split(".", _DEEPEST)[:-1] if not s.isdigit()}
        found.update(segments)
        if name not in others:
            useful.update(segments)
    return [each for each, _ in found.most_common(_MOST_INFIXES) if useful[each] >= enough]


def _without(segment: str, name: str) -> str:
    *modules, leaf = name.split(".")
    return ".".join([*(module for module in modules if module != segment), leaf])


def _by_suffix(source: Sequence[TensorSpec], target: Sequence[TensorSpec]) -> list[tuple[str, str]]:
    """Return each target tensor with the one of equal shape with which it
    has the longest dotted suffix.

    A suffix has two segments at least, or is the whole of one name. Raises AmbiguousMatchError if
    two have equally long ones.
    """
    by_suffix: dict[tuple[str, Shape], list[str]] = defaultdict(list)
    for spec in source:
        for suffix in _suffixes(spec.name):
            by_suffix[suffix, spec.shape].append(spec.name)
    whole = {(spec.name, spec.shape) for spec in source}
    claimed: dict[str, list[str]] = defaultdict(list)
    for spec in target:
        for suffix in _suffixes(spec.name):
            candidates = by_suffix.get((suffix, spec.shape), [])
            if "." not in suffix and suffix != spec.name:  # 'weight' is that of thousands
                candidates = [suffix] if (suffix, spec.shape) in whole else []
            if len(candidates) > 1:
                raise ambiguous(spec.name, candidates)
            if candidates:
                claimed[candidates[0]].append(spec.name)
                break
    for old, news in claimed.items():
        if len(news) > 1:
            raise ambiguous(old, news)
    return [(old, new) for old, (new,) in claimed.items()]


def _suffixes(name: str) -> Iterator[str]:
    """Dotted suffixes, the whole name first; of an absurdly deep name only that."""
    yield name
    if name.count(".") > _DEEPEST:
        return
    position = name.find(".")
    while position >= 0:
        yield name[position + 1 :]
        position = name.find(".", position + 1)


__all__ = ["LEVELS", "AmbiguousMatchError", "Correspondence", "Level", "Pair", "correspond"]
