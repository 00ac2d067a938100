"""Choosing parameters: by a rule on names, by position, by structure.

A selector's `select` gives the names it takes, of tied parameters each name on its own merits
(so that a plan can tell when two names of one parameter are treated differently). `option` says
where it came from, for messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Rule, RuleKind
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.parameters import Inventory, Parameter

_FIRST, _FIRST_KEYS = "--first ", "--first-keys "
_GLOB_SIGNS: Final = frozenset("*?[")
_KINDS: Final[dict[str, RuleKind]] = {"pattern": "pattern", "prefix": "prefix", "glob": "glob"}


class _Matcher(Protocol):
    """A rule on names, such as `ckpt_surgery.names.Rule`."""

    def matches(self, name: str, /) -> bool:
        """Return whether the rule takes this name."""
        ...


class Selector(Protocol):
    """Anything that picks parameters."""

    @property
    def option(self) -> str:
        """Where it came from: ``--freeze-prefix fc``."""
        ...

    @property
    def label(self) -> str:
        """A short name for the groups it makes."""
        ...

    def select(self, inventory: Inventory, /) -> frozenset[str]:
        """Return the names it takes; empty if none. UsageError if the question makes no sense."""
        ...


@dataclass(frozen=True, slots=True)
class ByName:
    """Every name that a rule matches."""

    matcher: _Matcher
    label: str
    option: str

    def select(self, inventory: Inventory) -> frozenset[str]:
        return frozenset(name for name in inventory.names if self.matcher.matches(name))


@dataclass(frozen=True, slots=True)
class _Everything:
    """Every parameter."""

    option: str = "all"
    label: str = "all"

    def select(self, inventory: Inventory) -> frozenset[str]:
        return frozenset(inventory.names)


@dataclass(frozen=True, slots=True)
class _Head:
    """The output layer (see `Inventory.head`)."""

    option: str = "head"
    label: str = "head"

    def select(self, inventory: Inventory) -> frozenset[str]:
        return inventory.head


@dataclass(frozen=True, slots=True)
class _HeadOrModule:
    """What the word ``head`` means: the module of that name if there is one, else the output."""

    matcher: _Matcher
    option: str = "head"
    label: str = "head"

    def select(self, inventory: Inventory) -> frozenset[str]:
        named = ByName(self.matcher, self.label, self.option).select(inventory)
        return named or inventory.head


@dataclass(frozen=True, slots=True)
class First:
    """The first `count` parameters, counted as `parameters()` does: no buffers, ties once."""

    count: int

    @property
    def option(self) -> str:
        return f"--first {self.count}"

    @property
    def label(self) -> str:
        return f"first_{self.count}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        _require_count(self.count, len(inventory.parameters), "parameter", self.option)
        return _names(inventory.parameters[: self.count])


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """The parameters among the first `count` keys of the state dict, buffers counted."""

    count: int

    @property
    def option(self) -> str:
        return f"--first-keys {self.count}"

    @property
    def label(self) -> str:
        return f"first_keys_{self.count}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        _require_count(self.count, len(inventory.keys), "key", self.option)
        return frozenset(inventory.names) & frozenset(inventory.keys[: self.count])


@dataclass(frozen=True, slots=True)
class Last:
    """The last `count` parameters, counted as `parameters()` does."""

    count: int

    @property
    def option(self) -> str:
        return f"--last {self.count}"

    @property
    def label(self) -> str:
        return f"last_{self.count}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        total = len(inventory.parameters)
        _require_count(self.count, total, "parameter", self.option)
        return _names(inventory.parameters[total - self.count :])


@dataclass(frozen=True, slots=True)
class FirstChildren:
    """Every parameter below the first `count` children of the model.

    Children without parameters (a ReLU, a pooling) count where the model's structure is known; a
    file cannot show them, so there the named children are counted.
    """

    count: int

    @property
    def option(self) -> str:
        return f"--first-children {self.count}"

    @property
    def label(self) -> str:
        return f"first_children_{self.count}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        children = inventory.children
        _require_count(self.count, len(children), "child", self.option, plural="children")
        chosen = set(children[: self.count])
        return frozenset(
            name for name in inventory.names if "." in name and name.split(".")[0] in chosen
        )


@dataclass(frozen=True, slots=True)
class Before:
    """Every parameter defined before the module or parameter `name`."""

    name: str

    @property
    def option(self) -> str:
        return f"--before {self.name}"

    @property
    def label(self) -> str:
        return f"before_{self.name}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        return _names(inventory.parameters[: _span(inventory, self.name, self.option)[0]])


@dataclass(frozen=True, slots=True)
class Until:
    """Every parameter defined up to the end of the module or parameter `name`, it included."""

    name: str

    @property
    def option(self) -> str:
        return f"--until {self.name}"

    @property
    def label(self) -> str:
        return f"until_{self.name}"

    def select(self, inventory: Inventory) -> frozenset[str]:
        return _names(inventory.parameters[: _span(inventory, self.name, self.option)[1]])


def parse_selector(text: str, option: str) -> Selector:
    """Return the selector that ``--group`` and ``--stage`` spell in one word.

    ``all``; ``head``; ``pattern=RE``, ``prefix=P`` or ``glob=G``; otherwise a glob if it has one
    of ``*?[`` and a prefix if not. `option` is quoted in messages. Raises UsageError for a rule
    that is not valid.
    """
    text = text.strip()
    if not text:
        raise UsageError(
            f"'{option}' selects nothing", hint="name a module, a glob, 'head' or 'all'"
        )
    if text == "all":
        return _Everything(option)
    if text == "head":
        return _HeadOrModule(Rule("prefix", text), option)
    kind, equals, rest = text.partition("=")
    if equals and kind in _KINDS:
        return ByName(Rule(_KINDS[kind], rest), rest, option)
    guessed: RuleKind = "glob" if _GLOB_SIGNS.intersection(text) else "prefix"
    return ByName(Rule(guessed, text), text, option)


def _names(parameters: Sequence[Parameter]) -> frozenset[str]:
    return frozenset(name for parameter in parameters for name in parameter.names)


def _require_count(
    count: int, total: int, noun: str, option: str, *, plural: str | None = None
) -> None:
    if not 1 <= count <= total:
        nouns = noun if total == 1 else plural or f"{noun}s"
        hint = f"give 1 to {total}"
        if noun == "parameter" and option.startswith(_FIRST):
            hint += f"; {option.replace(_FIRST, _FIRST_KEYS, 1)} counts every key of a state dict"
        raise UsageError(f"'{option}': there are {total} {nouns}", hint=hint)


def _span(inventory: Inventory, name: str, option: str) -> tuple[int, int]:
    """First index, and one past the last index, of the parameters at or below `name`."""
    inside = [
        parameter.index
        for parameter in inventory.parameters
        if any(own == name or own.startswith(f"{name}.") for own in parameter.names)
    ]
    if inside:
        return inside[0], inside[-1] + 1
    place = _place_of_module(inventory, name)
    if place is not None:
        return place, place
    raise UsageError(
        f"'{option}': no module or parameter has this name",
        hint=near_hint(name, inventory.names) or "see the names with 'ckpt inspect --keys'",
    )


def _place_of_module(inventory: Inventory, name: str) -> int | None:
    """Return where a module without parameters stands: before the
    first parameter defined after it.
    """
    modules = list(inventory.structure.modules) if inventory.structure is not None else []
    if name not in modules:
        return None
    before = set(modules[: modules.index(name)])
    inside = [p.index for p in inventory.parameters if p.module in before or not p.module]
    return inside[-1] + 1 if inside else 0
