"""Which state dicts and which entries of two checkpoints are to be compared with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict
from ckpt_surgery.names.spellings import unwrapped
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """How the names of one state dict are read: without a `prefix`, without inner wrappers."""

    prefix: str = ""
    without_wrappers: bool = False

    def name(self, name: str) -> str:
        """Return the name that `name` is compared by."""
        return (unwrapped(name) if self.without_wrappers else name).removeprefix(self.prefix)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two state dicts, and how their names are read; one is None if it has no counterpart."""

    a: StateDict | None
    b: StateDict | None
    seen_a: Seen = Seen()
    seen_b: Seen = Seen()
    renames: Mapping[str, str] | None = None

    def entries(self) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """Return the entries of both by the name that they have in common."""
        renames = self.renames or {}
        return (
            {self.seen_a.name(renames.get(e.name, e.name)): e for e in self.a.entries}
            if self.a
            else {},
            {self.seen_b.name(e.name): e for e in self.b.entries} if self.b else {},
        )


def pair_state_dicts(
    a: Checkpoint, b: Checkpoint, *, renames: Mapping[str, str] | None = None
) -> list[Paired]:
    """Pair the state dicts of two checkpoints: those at one path, then what is left, by kind.

    `renames` are old and new names, read before anything else. Where names have nothing in common
    but would without a prefix or a wrapper, they are read without.
    """
    by_path = {state_dict.path: state_dict for state_dict in b.state_dicts}
    found: list[tuple[StateDict | None, StateDict | None]] = []
    left: list[StateDict] = []
    for state_dict in a.state_dicts:
        other = by_path.pop(state_dict.path, None)
        if other is None:
            left.append(state_dict)
        else:
            found.append((state_dict, other))
    rest = list(by_path.values())
    for state_dict in left:
        alike = [each for each in rest if each.kind == state_dict.kind]
        one = len(alike) == 1 and sum(each.kind == state_dict.kind for each in left) == 1
        if one:
            rest.remove(alike[0])
        found.append((state_dict, alike[0] if one else None))
    found += [(None, state_dict) for state_dict in rest]
    return [_seen_through(*pair, renames) for pair in found]


def _seen_through(
    a: StateDict | None, b: StateDict | None, renames: Mapping[str, str] | None
) -> Paired:
    if a is None or b is None:
        return Paired(a, b, renames=renames)
    names_a = [(renames or {}).get(name, name) for name in a.names]
    best = Paired(a, b, renames=renames)
    most = _common(names_a, b.names, Seen(), Seen())
    for seen_a, seen_b in _ways(names_a, b.names):
        common = _common(names_a, b.names, seen_a, seen_b)
        if common > most:
            best, most = Paired(a, b, seen_a, seen_b, renames), common
    return best


def _common(a: Sequence[str], b: Sequence[str], seen_a: Seen, seen_b: Seen) -> int:
    """Return the number of names that are in both; 0 if two names of one would become the same."""
    read_a, read_b = {seen_a.name(name) for name in a}, {seen_b.name(name) for name in b}
    if len(read_a) < len(a) or len(read_b) < len(b):
        return 0
    return len(read_a & read_b)


def _ways(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[Seen, Seen]]:
    """Yield the ways to read names that are tried, the plainest first."""
    for prefix in _prefixes(a):
        yield Seen(prefix), Seen()
    for prefix in _prefixes(b):
        yield Seen(), Seen(prefix)
    yield Seen("", without_wrappers=True), Seen("", without_wrappers=True)
    for prefix in _prefixes(list(map(unwrapped, a))):
        yield Seen(prefix, without_wrappers=True), Seen("", without_wrappers=True)
    for prefix in _prefixes(list(map(unwrapped, b))):
        yield Seen("", without_wrappers=True), Seen(prefix, without_wrappers=True)


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return the segments that all names begin with, as prefixes with their dot, the shortest
    first.
    """
    if not names:
        return []
    split = [name.split(".")[:-1] for name in (min(names), max(names))]
    common: list[str] = []
    for first, last in zip(*split, strict=False):
        if first != last:
            break
        common.append(first)
    return [".".join(common[:count]) + "." for count in range(1, len(common) + 1)]
