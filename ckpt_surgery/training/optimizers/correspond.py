"""Which parameter of an optimizer is which parameter of a model, and how certain that is.

An optimizer that was made from `named_parameters()` stores the names. From any other it is known
only that each group lists its parameters in some order, with state tensors of their shapes. That
order is taken to be the model's within each group, which is what `parameters()`, a filter of it or
a comprehension over it gives. Under this assumption every index has an interval of parameters it
can be; if each interval holds one parameter, the correspondence is certain, and if the shapes
admit no assignment at all, the assumption is wrong and nothing is claimed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Final, Literal

from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState

Certainty = Literal["stored", "order", "partial", "none"]

_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MAX_ROUNDS: Final = 100
_LEAST_ROUNDS: Final = 4  # few are needed in practice; stopping early leaves more in doubt
_MAX_STEPS: Final = 300_000
_MAX_CANDIDATES: Final = 2_000_000


class _Contradiction(Exception):  # noqa: N818  # it is no error: it is the answer "none"
    """No assignment keeps the order and the shapes."""


@dataclass(frozen=True)
class StateOwners:
    """Names for an optimizer's parameters.

    `certainty`: ``stored`` names; ``order``, every parameter is certain by order and shapes;
    ``partial``, some could be one of several; ``none``, nothing is claimed. `reason` says why, in
    a sentence for messages. `names` has the certain ones, `foreign` those stored names that are of
    no parameter of the model (a loss with weights, a second network).
    """

    certainty: Certainty
    reason: str
    names: Mapping[Key, str]
    foreign: tuple[str, ...] = ()
    _names: Sequence[str] = field(default=(), repr=False)
    _open: Mapping[Key, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def certain(self) -> bool:
        """Whether every parameter of the optimizer has one name."""
        return self.certainty in {"stored", "order"}

    def key_of(self, name: str) -> Key | None:
        """Return the parameter that is certainly `name`; None if none is."""
        return self._keys.get(name)

    @cached_property
    def _keys(self) -> dict[str, Key]:
        return {name: key for key, name in self.names.items()}

    def candidates(self, key: Key) -> tuple[str, ...]:
        """Return the names that a parameter may have; empty if nothing is claimed of it."""
        if key in self.names:
            return (self.names[key],)
        return tuple(self._names[position] for position in self._open.get(key, ()))

    def holds(self, key: Key, names: Collection[str]) -> bool | None:
        """Return whether a parameter is one of `names`; None if that is not certain."""
        candidates = self.candidates(key)
        inside = sum(name in names for name in candidates)
        if not candidates or 0 < inside < len(candidates):
            return None
        return inside > 0


def correspond(
    optimizer: OptimizerState, parameters: Sequence[tuple[str, tuple[int, ...]]]
) -> StateOwners:
    """Match an optimizer with the parameters of a model: names and shapes, as `parameters()` goes.

    A tied parameter must be given once. Wrappers' prefixes (``module.``) do not matter.
    """
    stored = _stored_names(optimizer)
    if stored is not None:
        return _by_name(optimizer, stored, parameters)
    if not optimizer.understood:
        return StateOwners("none", "its state is of a kind that shows no shapes", {})
    if len(optimizer.keys) > len(parameters):
        return StateOwners(
            "none",
            f"it holds {len(optimizer.keys)} parameters, the model has {len(parameters)}",
            {},
        )
    try:
        candidates = _Search(optimizer, parameters).run()
    except _Contradiction as contradiction:
        return StateOwners("none", str(contradiction), {})
    names = [name for name, _ in parameters]
    pinned = {key: names[found[0]] for key, found in candidates.items() if len(found) == 1}
    open_ = {key: found for key, found in candidates.items() if len(found) > 1}
    if open_:
        reason = f"{len(open_)} of {len(candidates)} parameters fit several places"
        return StateOwners("partial", reason, pinned, (), names, open_)
    shown = sum(state.shape is not None for state in optimizer.states.values())
    return StateOwners("order", f"by order, and by the shapes of {shown} states", pinned)


def bare_name(name: str) -> str:
    """Return a name without what DataParallel, torch.compile and the like add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _stored_names(optimizer: OptimizerState) -> dict[Key, str] | None:
    names: dict[Key, str] = {}
    for group in optimizer.groups:
        if group.names is not None:
            names.update(zip(group.keys, group.names, strict=True))
    names.update((key, key) for key in optimizer.keys if isinstance(key, str))
    return names if len(names) == len(optimizer.keys) and names else None


def _by_name(
    optimizer: OptimizerState,
    stored: Mapping[Key, str],
    parameters: Sequence[tuple[str, tuple[int, ...]]],
) -> StateOwners:
    exact = dict(parameters)
    bare: dict[str, str] = {}
    for name in exact:
        bare.setdefault(bare_name(name), name)
    names: dict[Key, str] = {}
    for key, name in stored.items():
        found = name if name in exact else bare.get(bare_name(name), name)
        state = optimizer.states.get(key)
        shape = None if state is None else state.shape
        if found in exact and shape is not None and shape != exact[found]:
            return StateOwners(
                "none",
                f"its state of '{name}' has the shape {shape}, the parameter {exact[found]}",
                {},
            )
        names[key] = found
    if len(set(names.values())) != len(names):
        return StateOwners("none", "it stores one name for two parameters", {})
    foreign = tuple(name for name in names.values() if name not in exact)
    if len(foreign) == len(names):
        return StateOwners("none", f"it stores names such as '{foreign[0]}', none the model's", {})
    return StateOwners("stored", "by the names that it stores", names, foreign)


class _Search:
    """Narrows, for each key, the interval of positions that it can have.

    `low` and `high` are the bounds; `taken` are the positions of keys whose bounds meet. Every
    step only rules out what no assignment has that keeps each group's order, the shapes, and
    one key a position.
    """

    def __init__(
        self, optimizer: OptimizerState, parameters: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        self.groups = [group.keys for group in optimizer.groups]
        self.keys = optimizer.keys
        self.complete = len(self.keys) == len(parameters)
        self.last = len(parameters) - 1
        everywhere = list(range(len(parameters)))
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for position, (_, size) in enumerate(parameters):
            by_shape.setdefault(size, []).append(position)
        self.places: dict[Key, list[int]] = {}
        for key in self.keys:
            state = optimizer.states.get(key)
            shape = None if state is None else state.shape
            self.places[key] = everywhere if shape is None else by_shape.get(shape, [])
            if not self.places[key]:
                raise _Contradiction(f"no parameter has the shape {shape} of its state {key}")
        self.low: dict[Key, int] = dict.fromkeys(self.keys, 0)
        self.high: dict[Key, int] = dict.fromkeys(self.keys, self.last)
        self.taken: dict[int, Key] = {}

    def run(self) -> dict[Key, tuple[int, ...]]:
        """Return the positions that each key may have. Raises
        `_Contradiction` if some key has none.
        """
        for _ in range(max(_LEAST_ROUNDS, min(_MAX_ROUNDS, _MAX_STEPS // (1 + len(self.keys))))):
            before = (sum(self.low.values()), sum(self.high.values()))
            for keys in self.groups:
                self._raise_bounds(keys)
                self._lower_bounds(keys)
            self._take()
            self._require_few()
            if self.complete:
                self._take_hidden_singles()
            if before == (sum(self.low.values()), sum(self.high.values())):
                break
        return {key: tuple(self._positions(key)) for key in self.keys}

    def _positions(self, key: Key) -> list[int]:
        places = self.places[key]
        start, end = bisect_left(places, self.low[key]), bisect_right(places, self.high[key])
        return [p for p in places[start:end] if self.taken.get(p, key) == key]

    def _require_few(self) -> None:
        """Stop before the open intervals fill the memory: that much doubt helps nobody."""
        spans = (
            bisect_right(self.places[key], self.high[key])
            - bisect_left(self.places[key], self.low[key])
            for key in self.keys
        )
        if sum(spans) > _MAX_CANDIDATES:
            raise _Contradiction("too many of its parameters fit too many places")

    def _raise_bounds(self, keys: Sequence[Key]) -> None:
        floor = 0
        for key in keys:
            places = self.places[key]
            at = bisect_left(places, max(floor, self.low[key]))
            while at < len(places) and self.taken.get(places[at], key) != key:
                at += 1
            if at == len(places) or places[at] > self.high[key]:
                raise _Contradiction("its shapes do not follow the order of the model's parameters")
            self.low[key] = places[at]
            floor = places[at] + 1

    def _lower_bounds(self, keys: Sequence[Key]) -> None:
        ceiling = self.last
        for key in reversed(keys):
            places = self.places[key]
            at = bisect_right(places, min(ceiling, self.high[key])) - 1
            while at >= 0 and self.taken.get(places[at], key) != key:
                at -= 1
            if at < 0 or places[at] < self.low[key]:
                raise _Contradiction("its shapes do not follow the order of the model's parameters")
            self.high[key] = places[at]
            ceiling = places[at] - 1

    def _take(self) -> None:
        for key in self.keys:
            if self.low[key] == self.high[key]:
                other = self.taken.setdefault(self.low[key], key)
                if other != key:
                    raise _Contradiction("two of its states can only be the same parameter")

    def _take_hidden_singles(self) -> None:
        """Give a place that only one key can have to it, if keys and parameters are as many."""
        open_ = [key for key in self.keys if self.low[key] < self.high[key]]
        able: dict[int, list[Key]] = {}
        for key in open_:
            for position in self._positions(key):
                able.setdefault(position, []).append(key)
        for position, keys in able.items():
            if len(keys) == 1:
                key = keys[0]
                if self.low[key] == self.high[key]:
                    raise _Contradiction("one of its states would be two parameters")
                self.low[key] = self.high[key] = position
                self.taken[position] = key
