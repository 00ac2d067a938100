"""A merge as a file: our TOML, or mergekit's YAML (`mergekit_yaml`).

Both give the same dataclass::

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

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from ckpt_surgery.errors import PathLike, ReadError, UsageError
from ckpt_surgery.merge import method
from ckpt_surgery.merge.recipe import (
    MergeInput,
    MergeRecipe,
    Override,
    mapping_of,
    optional_text,
    parse_selector,
    require_keys,
    tables,
    text_of,
)

if TYPE_CHECKING:
    from ckpt_surgery.merge.layered import LayeredRecipe
    from ckpt_surgery.merge.policies import IntegerPolicy


_MAX_BYTES: Final = 1 << 20
"""A recipe larger than this is none."""


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
    kind, text = parse_selector(text_of(entry, "select"))
    return Override(kind, text, values, skip)
