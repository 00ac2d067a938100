"""A merge as a file: which method, which inputs, which numbers for which tensors. Torch-free.

The same dataclass comes from our TOML and from mergekit's YAML (`mergekit_yaml`)::

    method = "ties"
    base = "base.pth"           # what task vectors are measured from; other entries come from it
    dtype = "float16"           # of the result; default: the base's, tensor by tensor
    seed = 0
    int = "base"                # as --int; default "auto"

    [parameters]
    density = 0.5
    lambda = 1.0

    [[inputs]]
    file = "a.pth"
    weight = 0.7
    density = 0.3               # what is per input may stand here

    [[inputs]]
    file = "b.pth"
    weight = 0.3

    [[for]]                     # per tensor; the first that matches wins, value by value
    select = "prefix:layer4"    # or pattern:REGEX, glob:GLOB, all
    weight = [0.2, 0.8]
    density = 1.0

    [[for]]
    select = "prefix:fc"
    skip = true                 # taken from the base as it is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ckpt_surgery import dtypes
from ckpt_surgery.errors import PathLike, ReadError, UsageError
from ckpt_surgery.merge import method
from ckpt_surgery.merge.method import Method
from ckpt_surgery.merge.parameters import Settings, as_number
from ckpt_surgery.merge.policies import INTEGER_POLICIES, IntegerPolicy
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.layered import LayeredRecipe
    from ckpt_surgery.merge.vocabularies import Vocabularies

_SelectorKind = Literal["all", "prefix", "pattern", "glob"]
WEIGHT: Final = "weight"
_MAX_BYTES: Final = 1 << 20
"""A recipe larger than this is none."""


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


def read_recipe(path: PathLike) -> MergeRecipe | LayeredRecipe:
    """Return the recipe in a file: mergekit's YAML if its name ends in
    ``.yaml`` or ``.yml``, else TOML.

    Raises `ReadError` if it cannot be read or parsed, `UsageError` if what it says is wrong, and
    `MissingDependencyError` for YAML without PyYAML.
    """
    source = Path(path)
    text = _read_text(source)
    try:
        if source.suffix.lower() in {".yaml", ".yml"}:
            from ckpt_surgery.merge import mergekit_yaml

            return mergekit_yaml.parse(text)
        return _parse_toml(text)
    except (ReadError, UsageError) as error:
        error.name_file(path)
        raise


def _read_text(source: Path) -> str:
    try:
        with source.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}", path=source) from error
    if len(data) > _MAX_BYTES:
        raise ReadError("is larger than any recipe", path=source)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReadError("is no text in UTF-8", path=source) from error


def _parse_toml(text: str) -> MergeRecipe:
    """Return the recipe in a TOML text.

    Raises `ReadError` if it is no TOML and `UsageError` if what it says is wrong.
    """
    import tomllib  # most merges have no recipe

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"is no TOML: {error}") from error
    known = ("method", "base", "dtype", "seed", "int", "parameters", "inputs", "for")
    require_keys(table, known, "the recipe")
    chosen = method.find(text_of(table, "method"))
    seed = table.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(f"'seed' must be a whole number, got {seed!r}")
    inputs = tuple(_toml_input(entry) for entry in tables(table.get("inputs"), "inputs"))
    return MergeRecipe(
        method=chosen,
        inputs=inputs,
        base=optional_text(table, "base"),
        values=mapping_of(table.get("parameters", {}), "parameters"),
        overrides=tuple(_toml_override(entry) for entry in tables(table.get("for", []), "for")),
        dtype=optional_text(table, "dtype"),
        seed=seed,
        integers=cast("IntegerPolicy", optional_text(table, "int") or "auto"),
    )


def _toml_input(entry: Mapping[str, object]) -> MergeInput:
    values = {name: value for name, value in entry.items() if name != "file"}
    return MergeInput(text_of(entry, "file"), values)


def _toml_override(entry: Mapping[str, object]) -> Override:
    values = {name: value for name, value in entry.items() if name not in {"select", "skip"}}
    skip = entry.get("skip", False)
    if not isinstance(skip, bool):
        raise UsageError(f"'skip' must be true or false, got {skip!r}")
    if skip == bool(values):
        raise UsageError("a 'for' needs either values or 'skip = true'")
    kind, text = _parse_selector(text_of(entry, "select"))
    return Override(kind, text, values, skip)


def _parse_selector(selector: str) -> tuple[_SelectorKind, str]:
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
    kind, text = _parse_selector(selector)
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
