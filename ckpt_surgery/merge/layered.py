"""Merges whose numbers depend on layers, and models put together of layers, as mergekit has them.

A model is cut into what comes before its layers, the layers, and what comes after them. A *slice*
gives some layers of the result, made of as many layers of each of its sources; what comes before
them is the first slice's, what comes after them the last one's. Settings may be gradients: lists of
numbers over the layers of a slice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.method import Method
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.vocabularies import Vocabularies

_NUMBER: Final = re.compile(r"(?:^|\.)(\d+)\.")
# What the architectures of transformers have before their layers; all else comes after them.
_BEFORE: Final = re.compile(r"embed|(?:^|\.)w[tp]e\.", re.IGNORECASE)
_LISTED: Final = (int, float, bool, str)


@dataclass(frozen=True, slots=True)
class SliceSource:
    """Layers from `start` to `stop` (None: all) of a file, and its own settings."""

    file: str
    start: int = 0
    stop: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the result. `base` is the place among `sources` of what differences are from."""

    sources: tuple[SliceSource, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: int | None = None


@dataclass(frozen=True, slots=True)
class LayeredRecipe:
    """A merge by layers. `settings` hold where no slice or source says another value.

    A setting is a value, a list of numbers over layers, or a list of ``{filter, value}``, of which
    the first whose filter is part of the name counts.
    """

    method: Method
    slices: tuple[Slice, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    notes: tuple[str, ...] = ()
    vocabularies: Vocabularies | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, once; the first is the base that all else comes from."""
        first = self.slices[0]
        leading = first.sources[first.base or 0]
        others = (source.file for each in self.slices for source in each.sources)
        return tuple(dict.fromkeys((leading.file, *others)))


@dataclass(frozen=True, slots=True)
class Layers:
    """Where a model's layers are: names that begin with `prefix`, a number and a dot."""

    prefix: str
    count: int

    def index(self, name: str) -> int | None:
        """Return the number of the layer that a name belongs to; None for any other."""
        rest = name.removeprefix(self.prefix) if name.startswith(self.prefix) else ""
        number, dot, _ = rest.partition(".")
        return int(number) if dot and number.isascii() and number.isdigit() else None

    def renamed(self, name: str, index: int) -> str:
        """Return the name in another layer."""
        rest = name.removeprefix(self.prefix)
        return f"{self.prefix}{index}.{rest.partition('.')[2]}"


def find_layers(names: Iterable[str], label: str) -> Layers:
    """Return where the layers are: below the number that most names have.

    Raises `UsageError` if there are none, or two lists of layers (an encoder and a decoder).
    """
    names = list(names)
    numbers: dict[str, set[int]] = {}
    counts: Counter[str] = Counter()
    for name in names:
        match = _NUMBER.search(name)
        if match is not None:
            prefix = name[: match.start(1)]
            counts[prefix] += 1
            numbers.setdefault(prefix, set()).add(int(match[1]))
    lists = [prefix for prefix, _ in counts.most_common() if len(numbers[prefix]) > 1]
    if not counts:
        raise UsageError("no name has a number: there are no layers", path=label)
    if len(lists) > 1:
        raise UsageError(
            f"there are several lists of layers: '{lists[0]}*' and '{lists[1]}*'",
            path=label,
            hint="merge with filters instead of gradients and slices",
        )
    prefix = lists[0] if lists else counts.most_common(1)[0][0]
    return Layers(prefix, max(numbers[prefix]) + 1)


def place_of(layers: Layers, name: str) -> tuple[str, int]:
    """Return whether a name is ``before``, ``in`` or ``after`` the layers, and in which."""
    index = layers.index(name)
    if index is not None:
        return "in", index
    return ("before" if _BEFORE.search(name) else "after"), 0


def _evaluate(setting: Any, name: str, t: float) -> Any:
    """Return a setting's value for an entry at `t` (0: the first layer, 1: the last).

    None if no filter takes the name. Numbers of a list are interpolated, others chosen.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if all(isinstance(each, _LISTED) for each in setting):
        return _along(setting, t)
    for condition in setting:
        wanted = condition.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in name:
            return _evaluate(condition.get("value"), name, t)
    return None


def _along(values: Sequence[Any], t: float) -> Any:
    if not values:
        return None
    scaled = t * (len(values) - 1)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return values[int(scaled)]
    first = int(scaled)
    second = min(first + 1, len(values) - 1)
    share = scaled - first
    return (1 - share) * values[first] + share * values[second]


def resolved(
    method: Method, recipe: LayeredRecipe, part: Slice, names: Sequence[str], t: float
) -> dict[str, object]:
    """Return the method's values for an entry, called `names` in the sources of a slice.

    The base counts as no input of a method that measures from it. Raises `UsageError` where a
    weight is needed and nowhere given.
    """
    inputs = [
        (source, name)
        for place, (source, name) in enumerate(zip(part.sources, names, strict=True))
        if not (method.needs_base and place == part.base)
    ]
    per_input = {p.name for p in method.parameters if p.per_input}
    per_input |= {"weight"} if method.weighted else set()
    said = {*recipe.settings, *part.settings, *(k for s, _ in inputs for k in s.settings)}
    values: dict[str, object] = {}
    for key in sorted(said):
        common = (part.settings, recipe.settings)
        if key not in per_input:
            found = _first(common, key, names[0], t)
            if found is not None:
                values[key] = found
            continue
        each = tuple(_first((s.settings, *common), key, name, t) for s, name in inputs)
        if any(value is not None for value in each):
            values[key] = each
    defaults = {k: v for k, v in method.mergekit_defaults.items() if k not in values}
    _require_weights(method, values, inputs)
    return {**defaults, **values}


def _first(scopes: Iterable[Mapping[str, Any]], key: str, name: str, t: float) -> Any:
    for scope in scopes:
        if key in scope:
            found = _evaluate(scope[key], name, t)
            if found is not None:
                return found
    return None


def _require_weights(
    method: Method, values: Mapping[str, object], inputs: Sequence[tuple[SliceSource, str]]
) -> None:
    if not method.weighted or method.name == "karcher":
        return
    each = values.get("weight")
    given = each if isinstance(each, tuple) else (None,) * len(inputs)
    for (source, name), weight in zip(inputs, given, strict=True):
        if weight is None:
            raise UsageError(
                f"model '{source.file}' has no weight for '{name}'",
                hint="give each model a weight; a list of filters ends with {value: …}",
            )


def gradients(settings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the names of settings that hold a list over layers."""
    for values in settings:
        for name, value in values.items():
            if _has_gradient(value):
                yield name


def _has_gradient(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _has_gradient(value.get("value"))
    if not isinstance(value, list):
        return False
    if value and all(isinstance(each, _LISTED) for each in value):
        return True
    return any(_has_gradient(each) for each in value)
