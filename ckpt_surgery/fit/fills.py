"""What takes the place of a target's own initial values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.adaptations import CHANNEL_METHODS, AdaptRule, parse_channels
from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

_FillKind = Literal["init", "zeros", "ones", "constant", "normal", "uniform", "kaiming", "xavier"]
_FILL_KINDS: tuple[_FillKind, ...] = get_args(_FillKind)
_DEFAULTS: Mapping[_FillKind, float] = {"normal": 0.02, "uniform": 0.02}


@dataclass(frozen=True, slots=True)
class Fill:
    """Initial values for the parameters below `prefix` (empty: all parameters).

    `value` is the constant, the standard deviation of ``normal``, or the bound of ``uniform``.
    """

    kind: _FillKind
    value: float = 0.0
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}" if self.kind in _TAKES_VALUE else self.kind


_TAKES_VALUE = ("constant", "normal", "uniform")


def parse_fills(texts: Iterable[str]) -> tuple[tuple[Fill, ...], tuple[AdaptRule, ...]]:
    """Return the fills of ``--fill [NAME=]HOW``, and those that are adaptations of input channels.

    HOW is ``init`` (the target's own initialisation), ``zeros``, ``ones``, ``constant:V``,
    ``normal[:STD]``, ``uniform[:BOUND]``, ``kaiming`` or ``xavier``; with a name also a method of
    ``channels`` (``conv1=mean``). Raises UsageError for anything else and for a name given twice.
    """
    fills: dict[str, Fill] = {}
    rules: dict[str, AdaptRule] = {}
    for text in texts:
        prefix, equals, how = text.strip().rpartition("=")
        if equals and not prefix:
            raise UsageError(f"'{text}' fills nothing", hint="write it as 'NAME=HOW' or 'HOW'")
        if prefix in fills or prefix in rules:
            raise UsageError(f"there are two fills for '{prefix or 'everything'}'")
        if prefix and how.partition(":")[0] in CHANNEL_METHODS:
            rules[prefix] = parse_channels(how, prefix)
        else:
            fills[prefix] = _parse_fill(how, prefix)
    return tuple(fills.values()), tuple(rules.values())


def _parse_fill(text: str, prefix: str) -> Fill:
    name, colon, number = text.partition(":")
    kind = next((kind for kind in _FILL_KINDS if kind == name), None)
    if kind is None:
        known = _FILL_KINDS + CHANNEL_METHODS
        raise UsageError(
            f"there is no way '{name}' to fill a tensor",
            hint=near_hint(name, known) or f"there are {', '.join(_FILL_KINDS)}",
        )
    if not colon and kind != "constant":
        return Fill(kind, _DEFAULTS.get(kind, 0.0), prefix)
    if kind not in _TAKES_VALUE:
        raise UsageError(f"'{kind}' takes no value", hint=f"write '{kind}'")
    try:
        value = float(number)
    except ValueError as error:
        raise UsageError(f"'{text}' has no number", hint=f"write it as '{kind}:0.5'") from error
    if kind != "constant" and not 0 <= value < float("inf"):
        raise UsageError(f"'{text}' has a spread that is negative or not finite")
    return Fill(kind, value, prefix)


def require_fillable(fill: Fill, name: str, shape: Shape, dtype: str) -> None:
    """Raise UsageError if `fill` cannot give the tensor `name` values of the type `dtype`."""
    if fill.kind == "init":
        return
    if fill.kind in ("kaiming", "xavier") and len(shape) < 2:
        raise UsageError(
            f"'{name}' has {'one axis' if shape else 'no axis'}, and '{fill.kind}' needs two",
            hint=f"give it a fill of its own, for example '--fill {name}=zeros'",
        )
    kind = BY_NAME[dtype].kind
    if kind == "float" or (kind == "complex" and fill.kind not in ("uniform", "xavier")):
        return
    is_number = fill.kind in ("zeros", "ones", "constant")
    if not (is_number and _holds(dtype, 1.0 if fill.kind == "ones" else fill.value)):
        raise UsageError(
            f"'{name}' is {dtype}, which cannot be filled by '{fill}'",
            hint=f"'--fill {name}=init' leaves it as the target has it",
        )


def _holds(dtype: str, value: float) -> bool:
    """Return whether a type that is no floating-point type has a number that is exactly `value`."""
    described = BY_NAME[dtype]
    if described.kind == "bool":
        return value in (0, 1)
    if described.kind != "int" or not value.is_integer():
        return False
    codes: int = 1 << 8 * described.itemsize
    lowest = 0 if dtype.startswith("uint") else -codes // 2
    return lowest <= value < lowest + codes
