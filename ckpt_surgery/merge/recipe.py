"""A merge as data: which method, which inputs, which numbers for which tensors. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ckpt_surgery import dtypes
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.method import Method
from ckpt_surgery.merge.parameters import Settings, as_number
from ckpt_surgery.merge.policies import INTEGER_POLICIES, IntegerPolicy
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.vocabularies import Vocabularies

_SelectorKind = Literal["all", "prefix", "pattern", "glob"]
WEIGHT: Final = "weight"


@dataclass(frozen=True, slots=True)
class Override:
    """Other numbers for the tensors that `kind` and `text` choose, or `skip`: no merge at all.

    A tuple in `values` has one value for each input, None where the input keeps its own. ``weight``
    is one of the values.
    """

    kind: _SelectorKind
    text: str = ""
    values: Mapping[str, object] = field(default_factory=dict)
    skip: bool = False


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A file, by a path relative to the current directory, and its own numbers (``weight`` too)."""

    file: str
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """A merge. `base` is the file that gives what is not merged, and with a method that needs one
    what task vectors are measured from; it is then not among `inputs`.

    Raises `UsageError` in the constructor for whatever is wrong with the numbers, those of
    overrides included.
    """

    method: Method
    inputs: tuple[MergeInput, ...]
    base: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    dtype: str | None = None
    seed: int = 0
    integers: IntegerPolicy = "auto"
    notes: tuple[str, ...] = ()
    vocabularies: Vocabularies | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            known = dtypes.named(self.dtype)
            if known is None or known.kind not in {"float", "complex"}:
                floats = [d.name for d in dtypes.BY_NAME.values() if d.kind == "float"]
                hint = near_hint(self.dtype, floats)
                raise UsageError(f"'dtype' must be a floating type, got '{self.dtype}'", hint=hint)
            object.__setattr__(self, "dtype", known.name)
        if self.integers not in INTEGER_POLICIES:
            raise UsageError(f"'int' must be one of {', '.join(INTEGER_POLICIES)}")
        self.method.check_files(len(self.inputs), has_base=self._has_base)
        _ = self.general
        for selector in {(override.kind, override.text) for override in self.overrides}:
            self.settings(
                [o for o in self.overrides if o.kind == "all" or (o.kind, o.text) == selector]
            )

    @property
    def general(self) -> Settings:
        """The numbers for a tensor that nothing singles out."""
        return self.settings([override for override in self.overrides if override.kind == "all"])

    @property
    def _has_base(self) -> bool:
        return self.method.needs_base and self.base is not None

    def settings(self, matching: Sequence[Override] = ()) -> Settings:
        """Return the numbers for a tensor, given the overrides that choose it, in their order."""
        count = len(self.inputs)
        layers: list[Mapping[str, object]] = [override.values for override in matching]
        layers.append(_by_input([entry.values for entry in self.inputs]))
        layers.append(self.values)
        names = dict.fromkeys(name for layer in layers for name in layer)
        resolved = {
            name: _resolve([layer[name] for layer in layers if name in layer], count)
            for name in names
        }
        weights = resolved.pop(WEIGHT, None)
        return self.method.bind(
            count,
            has_base=self._has_base,
            weights=None if weights is None else self._complete(weights),
            values=resolved,
        )

    def _complete(self, weights: object) -> Sequence[object]:
        """Return a weight for each input, where each must have one if any has."""
        count = len(self.inputs)
        each = list(weights) if isinstance(weights, list | tuple) else [weights] * count
        for entry, weight in zip(self.inputs, each, strict=False):
            if weight is None:
                raise UsageError(
                    f"input '{entry.file}' has no weight",
                    hint="give every input a weight, or none; 0 is a weight",
                )
        return each


def _by_input(values: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return one mapping of tuples from a mapping for each input."""
    names = dict.fromkeys(name for mapping in values for name in mapping)
    return {name: tuple(mapping.get(name) for mapping in values) for name in names}


def _resolve(settings: Sequence[object], count: int) -> object:
    """Return the value that wins, input by input if any setting speaks of single inputs."""
    chosen: list[object] = [None] * count
    for setting in settings:
        if not isinstance(setting, list | tuple):
            if all(value is None for value in chosen):
                return setting
            return tuple(setting if value is None else value for value in chosen)
        if len(setting) != count:  # refused with the right words where parameters are checked
            return tuple(setting)
        chosen = [
            given if value is None else value for value, given in zip(chosen, setting, strict=True)
        ]
        if None not in chosen:
            break
    return tuple(chosen)


def parse_selector(selector: str) -> tuple[_SelectorKind, str]:
    """``prefix:P``, ``pattern:RE``, ``glob:G`` or ``all``, taken apart.

    Raises `UsageError` for anything else.
    """
    kind, colon, text = selector.partition(":")
    if selector == "all":
        return "all", ""
    if kind not in {"prefix", "pattern", "glob"} or not colon or not text:
        raise UsageError(
            f"'{selector}' selects nothing",
            hint="write prefix:NAME, pattern:REGEX, glob:GLOB or all",
        )
    return cast("_SelectorKind", kind), text


def parse_weight_for(option: str) -> Override:
    """Return what ``--weight-for 'prefix:layer4=0.3,0.7'`` says: weights
    for the tensors of a selection.

    Raises `UsageError` if it does not have that form.
    """
    selector, equals, numbers = option.rpartition("=")
    if not equals:
        raise UsageError(
            f"'{option}' gives no weights", hint="write SELECTION=WEIGHT,WEIGHT with one per file"
        )
    kind, text = parse_selector(selector)
    weights = tuple(as_number(part.strip()) for part in numbers.split(","))
    if None in weights:
        raise UsageError(f"'{numbers}' is no list of weights")
    return Override(kind, text, {WEIGHT: weights})


def require_keys(table: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raise `UsageError` if a table has a key that is not known."""
    for key in table:
        if key not in known:
            hint = near_hint(str(key), known) or "it knows " + ", ".join(known)
            raise UsageError(f"{where} has no '{key}'", hint=hint)


def mapping_of(value: object, what: str) -> dict[str, Any]:
    """`value` as a mapping with text keys, or `UsageError`."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"'{what}' must be a table of names and values")
    return value


def tables(value: object, what: str) -> list[dict[str, Any]]:
    """`value` as a list of mappings, or `UsageError`."""
    if not isinstance(value, list):
        raise UsageError(f"the recipe needs '{what}': a list of tables")
    return [mapping_of(item, what) for item in value]


def text_of(table: Mapping[str, object], key: str) -> str:
    """Return a text that must be there, or `UsageError`."""
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"'{key}' must be a text" if key in table else f"'{key}' is missing")
    return value


def optional_text(table: Mapping[str, object], key: str) -> str | None:
    """Return a text that may be missing, or `UsageError`."""
    return text_of(table, key) if table.get(key) is not None else None
