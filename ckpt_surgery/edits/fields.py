"""Frozen dataclasses as JSON and back, by the types that their fields are annotated with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

_T = TypeVar("_T")
_Convert = Callable[[Any], Any]

_JSON_NAMES: Final = {"old": "from", "new": "to"}  # the former is a keyword of Python
_SCALARS: Final = (str, int, float, bool, NoneType)


class _Form(NamedTuple):
    """A field: its name, its name in JSON, what it is if left out (or MISSING)."""

    name: str
    json_name: str
    default: Any


# Of each class, looked up once: a plan has thousands of edits.
_FORMS: Final[dict[type, tuple[_Form, ...]]] = {}
_CONVERTERS: Final[dict[type, dict[str, tuple[str, _Convert]]]] = {}


def _forms(cls: type) -> tuple[_Form, ...]:
    if cls not in _FORMS:
        _FORMS[cls] = tuple(
            _Form(each.name, _JSON_NAMES.get(each.name, each.name), _default(each))
            for each in fields(cls)
        )
    return _FORMS[cls]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def fields_to_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON has them, without those that have their default."""
    found: dict[str, Any] = {}
    for name, json_name, default in _forms(type(value)):
        part = getattr(value, name)
        if part is default or (default is not MISSING and part == default):
            continue
        found[json_name] = part if isinstance(part, _SCALARS) else _to_json(part)
    return found


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_json(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _to_json(part) for key, part in value.items()}
    return fields_to_json(value) if is_dataclass(value) else value


def fields_from_json(cls: type[_T], found: object) -> _T:
    """Return the dataclass whose fields `fields_to_json` wrote. Raises `TypeError` otherwise."""
    if not isinstance(found, Mapping):
        raise TypeError(f"{_shown(found)} is no table of fields")
    converters = _converters(cls)
    values: dict[str, Any] = {}
    for json_name, part in found.items():
        if json_name not in converters:
            raise TypeError(f"there is no field {_shown(json_name)}")
        name, convert = converters[json_name]
        try:
            values[name] = convert(part)
        except TypeError as error:
            raise TypeError(f"'{json_name}': {error}") from error
    for name, json_name, default in _forms(cls):
        if name not in values and default is MISSING:
            raise TypeError(f"'{json_name}' is missing")
    return cls(**values)


def _converters(cls: type) -> dict[str, tuple[str, _Convert]]:
    """Return, by the names in JSON, the fields of a class and what reads their values."""
    if cls not in _CONVERTERS:
        hints = get_type_hints(cls)
        _CONVERTERS[cls] = {
            form.json_name: (form.name, _converter(hints[form.name])) for form in _forms(cls)
        }
    return _CONVERTERS[cls]


def _converter(hint: Any) -> _Convert:
    """Return what makes a value of the annotated type from its JSON."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return lambda value: _scalar(hint, value)
    if hint is object:
        return lambda value: value
    if origin is Literal:
        return lambda value: _one_of(args, value)
    if origin in {Union, UnionType}:
        exact = tuple(each for each in args if each in _SCALARS)
        options = [_converter(each) for each in args]
        return lambda value: value if type(value) in exact else _first(options, value)
    if origin is tuple and args[-1] is Ellipsis:
        item = _converter(args[0])
        return lambda value: tuple(map(item, _listed(value)))
    if origin is tuple:
        parts = [_converter(each) for each in args]
        return lambda value: _each(parts, _listed(value))
    if origin is Mapping:
        part = _converter(args[1])
        return lambda value: {key: part(each) for key, each in _table(value).items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: fields_from_json(hint, value)
    raise NotImplementedError(f"no form in JSON for {hint}")


def _scalar(kind: type, value: Any) -> Any:
    """Return a value of exactly this type; an integer may stand for a float."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{_shown(value)} is no {kind.__name__}")


def _one_of(values: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, str) or value not in values:
        raise TypeError(f"{_shown(value)} is none of {', '.join(values)}")
    return value


def _first(options: list[_Convert], value: Any) -> Any:
    failed: list[str] = []
    for convert in options:
        try:
            return convert(value)
        except TypeError as error:
            failed.append(str(error))
    raise TypeError(failed[0])


def _each(parts: list[_Convert], values: list[Any]) -> tuple[Any, ...]:
    if len(parts) != len(values):
        raise TypeError(f"{len(values)} values where {len(parts)} belong")
    return tuple(convert(value) for convert, value in zip(parts, values, strict=True))


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{_shown(value)} is no list")
    return list(value)


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{_shown(value)} is no table of names")
    return value


def _shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
