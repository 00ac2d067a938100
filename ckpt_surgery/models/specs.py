"""How a target is asked for: ``--model``, ``--model-arg k=v``, ``--set MODULE.ATTRIBUTE=VALUE``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Final, Literal, get_args

from ckpt_surgery.errors import UsageError
from ckpt_surgery.startup.lazy_dataclass import dataclass

Value = int | float | bool | str | None | list["Value"] | tuple["Value", ...] | dict[str, "Value"]
"""What an argument on the command line can mean."""

Build = Literal["meta", "real"]
_BUILDS: Final = get_args(Build)
"""Without weights; and with them, where a constructor does not work without."""

_INT = re.compile(r"[+-]?\d+(?:_\d+)*")
_FLOAT = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?")
_WORDS: Mapping[str, Value] = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True, slots=True)
class Setting:
    """One changed constructor argument of one layer: ``fc.out_features=5``."""

    module: str
    attribute: str
    value: Value

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}={self.value}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be built: ``torchvision:NAME`` or ``package.module:callable``.

    So are ``timm:NAME``, ``hf:DIR`` (a directory with a ``config.json`` of transformers),
    ``smp:NAME`` and ``ultralytics:NAME``.

    With `build` ``real`` it is built with its weights, on the CPU, if nothing else works. Raises
    UsageError if `text` is neither.
    """

    text: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    build: Build = "meta"

    def __post_init__(self) -> None:
        if self.build not in _BUILDS:
            raise UsageError(
                f"'build {self.build}' is none of {', '.join(_BUILDS)}", fields=("build",)
            )
        source, colon, name = self.text.partition(":")
        if not (source and colon and name):
            word = self.text.strip(":") or "NAME"
            raise UsageError(
                f"'{self.text}' does not name a model",
                hint=f"write 'torchvision:{word}', 'timm:{word}', 'hf:DIR', 'smp:NAME', "
                "'ultralytics:NAME' or 'package.module:callable'",
            )

    @property
    def source(self) -> str:
        """``torchvision``, or the module that holds the callable."""
        return self.text.partition(":")[0]

    @property
    def name(self) -> str:
        return self.text.partition(":")[2]

    @property
    def is_torchvision(self) -> bool:
        return self.source == "torchvision"

    def __str__(self) -> str:
        return self.text


def _parse_value(text: str) -> Value:
    """Return the value of `text`: an int, a float, ``true``,
    ``false``, ``none``, a list or a string.

    ``[...]``, ``(...)``, ``{...}`` and quoted strings are Python literals; anything else that is
    not a number or one of the words is a string. Raises UsageError for a malformed literal.
    """
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        return _WORDS[stripped.lower()]
    if _INT.fullmatch(stripped):
        return int(stripped)
    if _FLOAT.fullmatch(stripped):
        return float(stripped)
    if stripped[:1] in ("[", "(", "{", "'", '"'):
        return _parse_literal(stripped)
    return text


def _parse_literal(text: str) -> Value:
    python = re.sub(r"(?<![\w'\"])(true|false|null)(?![\w'\"])", lambda m: _PYTHON[m[0]], text)
    try:
        value: Value = ast.literal_eval(python)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(
            f"'{text}' is not a list, tuple, mapping or quoted string",
            hint="write it as in Python, for example '[3, 4, 6, 3]'",
        ) from error
    return value


_PYTHON = {"true": "True", "false": "False", "null": "None"}


def parse_arguments(texts: Iterable[str]) -> dict[str, Value]:
    """Return the arguments of ``--model-arg k=v``; raises UsageError
    for a malformed or repeated one.
    """
    arguments: dict[str, Value] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(
                f"'{text}' is not an argument of a model", hint="write it as 'name=value'"
            )
        if key in arguments:
            raise UsageError(f"argument '{key}' is given twice")
        arguments[key] = _parse_value(value)
    return arguments


def parse_settings(texts: Iterable[str]) -> tuple[Setting, ...]:
    """Return the changed layers of ``--set MODULE.ATTRIBUTE=VALUE``.

    Raises UsageError for a malformed one and for one attribute set twice.
    """
    settings: dict[tuple[str, str], Setting] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        module, dot, attribute = path.strip().rpartition(".")
        if not (equals and dot and module and attribute.isidentifier()):
            raise UsageError(
                f"'{text}' does not set an attribute of a layer",
                hint="write it as 'MODULE.ATTRIBUTE=VALUE', for example 'fc.out_features=5'",
            )
        if (module, attribute) in settings:
            raise UsageError(f"'{module}.{attribute}' is set twice")
        settings[module, attribute] = Setting(module, attribute, _parse_value(value))
    return tuple(settings.values())
