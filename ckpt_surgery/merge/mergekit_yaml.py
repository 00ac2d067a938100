"""mergekit's configuration files, for the methods that both know. Needs PyYAML, not torch.

Read are ``merge_method``, ``models``, ``base_model``, ``parameters`` (with ``filter`` lists),
``dtype`` and ``out_dtype``, with mergekit's own defaults (0.1.5), so that the numbers come out the
same; ``slices`` and lists of numbers over layers give a `LayeredRecipe`, ``tokenizer_source`` the
tokens of rows. ``modules`` are refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ckpt_surgery.errors import MissingDependencyError, ReadError, UsageError
from ckpt_surgery.merge import method
from ckpt_surgery.merge.layered import LayeredRecipe, Slice, SliceSource, gradients
from ckpt_surgery.merge.method import Method
from ckpt_surgery.merge.recipe import (
    WEIGHT,
    MergeInput,
    MergeRecipe,
    Override,
    mapping_of,
    optional_text,
    require_keys,
    tables,
    text_of,
)
from ckpt_surgery.merge.vocabularies import vocabularies

_READ: Final = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
_SLICE: Final = ("sources", "base_model", "parameters")
_TOKENIZER: Final = ("tokenizer_source", "tokenizer")
_BESIDE: Final = ("chat_template", "name")
_UNWEIGHTED_THERE: Final = ("karcher",)
_WITHOUT_EFFECT: Final = frozenset({"int8_mask", "density", "rescale"})
"""What mergekit takes for every method of its family, whether it uses it or not."""


def parse(text: str) -> MergeRecipe | LayeredRecipe:
    """Return the recipe in a mergekit configuration.

    Raises `ReadError` if it is no YAML, `UsageError` if what it says is wrong, `MismatchError` if
    it speaks of tokenizers and those of its models differ, and `MissingDependencyError` without
    PyYAML.
    """
    config = _load(text)
    recipe = _from_config(config)
    if isinstance(config, dict) and any(config.get(key) is not None for key in _TOKENIZER):
        files = _files_of(recipe)
        own = config.get("base_model")
        found = vocabularies(files, files[0] if own is None else _file(own), _tokenizer(config))
        if isinstance(found, str):
            return replace(recipe, notes=(*recipe.notes, found))
        return replace(recipe, notes=(*recipe.notes, *found.notes), vocabularies=found)
    return recipe


def _tokenizer(config: Mapping[str, Any]) -> str:
    """Return whose tokenizer the result has: ``union``, ``base``, or the path of a model."""
    source, more = config.get("tokenizer_source"), config.get("tokenizer")
    if more is None:
        return _file(source)
    if source is not None:
        raise UsageError("'tokenizer_source' and 'tokenizer' contradict each other")
    table = mapping_of(more, "'tokenizer'")
    for name in ("tokens", "pad_to_multiple_of"):
        if table.get(name) is not None:
            raise UsageError(
                f"'{name}' of 'tokenizer' is not known here", hint="leave it out, or use mergekit"
            )
    require_keys(table, ("source", "tokens", "pad_to_multiple_of"), "'tokenizer'")
    return _file(table.get("source") or "union")


def _files_of(recipe: MergeRecipe | LayeredRecipe) -> tuple[str, ...]:
    if isinstance(recipe, LayeredRecipe):
        return recipe.files
    files = [entry.file for entry in recipe.inputs]
    return tuple(dict.fromkeys([*([recipe.base] if recipe.base else []), *files]))


def _from_config(loaded: object) -> MergeRecipe | LayeredRecipe:
    """Return the recipe in a mergekit configuration that has been parsed to mappings and lists.

    Raises `UsageError` as `parse` does.
    """
    config = mapping_of(loaded, "the recipe")
    if "modules" in config:
        raise UsageError(
            "'modules' puts a model together from parts with layers of their own",
            hint="merge the parts apart, with a selection for each",
        )
    require_keys(config, (*_READ, "slices", *_TOKENIZER, *_BESIDE), "the recipe")
    given = [name for name in ("models", "slices") if config.get(name) is not None]
    if not given:
        raise UsageError("the recipe needs 'models' or 'slices'")
    if len(given) > 1:
        raise UsageError("'models' and 'slices' contradict each other")
    chosen = _method(text_of(config, "merge_method"), based=config.get("base_model") is not None)
    base = _file(config["base_model"]) if config.get("base_model") is not None else None
    if given == ["slices"]:
        return _sliced(config, chosen, base)
    models = [_model(entry) for entry in tables(config.get("models"), "models")]
    common = mapping_of(config.get("parameters") or {}, "parameters")
    if any(gradients([common, *(values for _, values in models)])):
        return _layered(config, chosen, base, models)
    models = _ordered(chosen, models, base)
    settings = [values for _, values in models]
    settings.append(mapping_of(config.get("parameters") or {}, "parameters"))
    *own, common = (_prepare(chosen, values) for values in settings)
    overrides: list[Override] = []
    for place, values in enumerate(own):
        overrides += _overrides(values, place, len(models))
    overrides += _overrides(_conditional(common), None, len(models))
    plain = {name: value for name, value in common.items() if not _is_conditional(value)}
    recipe = MergeRecipe(
        method=chosen,
        inputs=tuple(MergeInput(file) for file, _ in models),
        base=base,
        values={**chosen.mergekit_defaults, **plain},
        overrides=tuple(overrides),
        dtype=optional_text(config, "out_dtype") or optional_text(config, "dtype"),
        notes=_notes(config, chosen, settings),
    )
    _require_weights(recipe)
    return recipe


def _sliced(config: Mapping[str, Any], chosen: Method, base: str | None) -> LayeredRecipe:
    """Return the recipe of a model that is put together from layers of others."""
    slices = []
    for entry in tables(config["slices"], "slices"):
        require_keys(entry, _SLICE, "a slice")
        own = _file(entry["base_model"]) if entry.get("base_model") is not None else base
        sources = [_source(source, chosen) for source in tables(entry.get("sources"), "sources")]
        settings = mapping_of(entry.get("parameters") or {}, "parameters")
        slices.append(_slice(sources, chosen, own, _prepare(chosen, settings)))
    if not slices:
        raise UsageError("'slices' is an empty list")
    return _layered_recipe(config, chosen, slices)


def _source(entry: dict[str, Any], chosen: Method) -> SliceSource:
    require_keys(entry, ("model", "layer_range", "parameters"), "a source")
    found = entry.get("layer_range")
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(isinstance(each, int) and not isinstance(each, bool) for each in found)
    ):
        raise UsageError(f"'layer_range' must be two numbers, got {found!r}")
    settings = mapping_of(entry.get("parameters") or {}, "parameters")
    return SliceSource(_file(entry.get("model")), found[0], found[1], _prepare(chosen, settings))


def _layered(
    config: Mapping[str, Any],
    chosen: Method,
    base: str | None,
    models: Sequence[tuple[str, Mapping[str, Any]]],
) -> LayeredRecipe:
    """Return the recipe of whole models whose numbers depend on layers: one slice."""
    sources = [SliceSource(file, settings=_prepare(chosen, own)) for file, own in models]
    if base is not None and all(source.file != base for source in sources):
        sources.append(SliceSource(base))
    return _layered_recipe(config, chosen, [_slice(sources, chosen, base, {})])


def _slice(
    sources: list[SliceSource], chosen: Method, base: str | None, settings: Mapping[str, Any]
) -> Slice:
    if not sources:
        raise UsageError("a slice has no sources")
    place = next((i for i, source in enumerate(sources) if source.file == base), None)
    if base is not None and place is None and chosen.needs_base:
        raise UsageError(f"'base_model' '{base}' is not among the sources of a slice")
    if place and not chosen.needs_base and chosen.min_inputs == 2:  # of two, the base is the first
        sources = [sources[place], *sources[:place], *sources[place + 1 :]]
        place = 0
    others = len(sources) - (chosen.needs_base and place is not None)
    chosen.check_files(others, has_base=chosen.needs_base and place is not None)
    return Slice(tuple(sources), settings, place)


def _layered_recipe(
    config: Mapping[str, Any], chosen: Method, slices: Sequence[Slice]
) -> LayeredRecipe:
    common = mapping_of(config.get("parameters") or {}, "parameters")
    return LayeredRecipe(
        chosen,
        tuple(slices),
        _prepare(chosen, common),
        optional_text(config, "out_dtype") or optional_text(config, "dtype"),
        _notes(config, chosen, [common]),
    )


def _load(text: str) -> object:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise MissingDependencyError(
            "mergekit's YAML needs the package 'pyyaml'",
            hint="pip install pyyaml, or write the recipe in TOML",
        ) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first, *_ = str(error).splitlines() or ["nested too deeply"]
        raise ReadError(f"is no YAML: {first}") from error


def _method(name: str, *, based: bool) -> Method:
    """Return our method for one of mergekit's; of two, that with a base if there is one."""
    known = [each for each in method.catalogue().values() if each.mergekit == name]
    for each in known:
        if len(known) == 1 or each.needs_base == based:
            return each
    found = method.find(name)  # raises with near names
    raise UsageError(f"mergekit has no method '{name}'", hint=f"write it in TOML: '{found.name}'")


def _file(value: object) -> str:
    """Return a path, written as a text or as ``{path: …}`` or ``{model: {path: …}}``."""
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if not isinstance(value, str) or not value:
        raise UsageError(f"a model must be the path of a file, got {value!r}")
    return value


def _model(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    require_keys(entry, ("model", "parameters"), "a model")
    return _file(entry.get("model")), mapping_of(entry.get("parameters") or {}, "parameters")


def _ordered(
    chosen: Method, models: list[tuple[str, dict[str, Any]]], base: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the models in our order: without the base where it stands
    apart, else, of two, it first.
    """
    others = [model for model in models if model[0] != base]
    if chosen.needs_base or base is None:
        return others
    first = [model for model in models if model[0] == base]
    if chosen.min_inputs == 2:
        return [*(first or [(base, {})]), *others]
    if not first:
        raise UsageError(f"'base_model' '{base}' is not among the models")
    return models


def _idle(chosen: Method) -> frozenset[str]:
    """Parameters that mergekit takes for this method and that change no number there."""
    return _WITHOUT_EFFECT - {parameter.name for parameter in chosen.parameters}


def _prepare(chosen: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that have an effect, in our spelling."""
    idle = _idle(chosen)
    prepared = {}
    for name, value in values.items():
        if name in idle:
            continue
        if value is None or (value is False and name == "filter_wise"):
            continue
        prepared[name.removeprefix("nuslerp_")] = _spelled(name, value)
    return prepared


def _spelled(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        if not value:
            raise UsageError(f"'{name}' is an empty list")
        if not all(isinstance(item, dict) for item in value):
            return [_spelled(name, item) for item in value]
        for item in value:
            require_keys(item, ("filter", "value"), f"'{name}'")
        return [{**item, "value": _spelled(name, item.get("value"))} for item in value]
    if name == "rescale" and isinstance(value, bool):
        return "l1" if value else "none"
    return value


def _is_conditional(value: object) -> bool:
    return isinstance(value, list)


def _conditional(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_conditional(value)}


def _overrides(values: Mapping[str, Any], place: int | None, count: int) -> Iterator[Override]:
    """Yield what `values` say, for the input at `place` or (None) for all of them."""
    for name, value in values.items():
        for condition in value if _is_conditional(value) else [{"value": value}]:
            given = condition["value"]
            if place is not None:
                given = tuple(given if i == place else None for i in range(count))
            text = condition.get("filter")
            if text is None or text == "*":
                yield Override("all", values={name: given})
            else:
                # a filter is a part of the name
                yield Override("pattern", re.escape(str(text)), {name: given})


def _require_weights(recipe: MergeRecipe) -> None:
    """Raise `UsageError` where mergekit would: it has no default weight."""
    if not recipe.method.weighted or recipe.method.name in _UNWEIGHTED_THERE:
        return
    always = [override for override in recipe.overrides if override.kind == "all"]
    layers = [*(override.values for override in always), recipe.values]
    for place, entry in enumerate(recipe.inputs):
        given = [layer[WEIGHT] for layer in layers if WEIGHT in layer]
        each = [value[place] if isinstance(value, tuple) else value for value in given]
        if all(value is None for value in each):
            raise UsageError(
                f"model '{entry.file}' has no weight",
                hint="give each model a weight; a list of filters ends with {value: …}",
            )


def _notes(
    config: Mapping[str, object], chosen: Method, settings: Sequence[Mapping[str, object]]
) -> tuple[str, ...]:
    """Return what is in the file and was not used."""
    beside = [f"'{key}' concerns no tensor and is not used" for key in _BESIDE if key in config]
    given = dict.fromkeys(name for values in settings for name in values)
    idle = _idle(chosen)
    return (
        *beside,
        *(f"'{name}' has no effect on '{chosen.name}'" for name in given if name in idle),
    )
