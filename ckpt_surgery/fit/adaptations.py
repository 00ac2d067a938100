"""Which tensor of another shape can be carried over, and how: chosen by name, never silently.

Here only shapes are looked at; `adapting` computes the values.

``squeeze``      the same numbers, with axes of size 1 added or removed
``interpolate``  position embeddings and relative-position tables, resampled to another grid
``channels``     another number of input channels of a convolution
``rows``         other rows of a head or an embedding, by class name or leading
``overlap``      the leading block that both shapes have
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import UsageError
from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.suggest import near_hint

Kind = Literal["squeeze", "interpolate", "channels", "rows", "overlap"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every adaptation, in the order in which they are tried: what keeps the most comes first."""

ChannelMethod = Literal["repeat", "mean", "zero", "first"]
CHANNEL_METHODS: tuple[ChannelMethod, ...] = get_args(ChannelMethod)

Grid = Literal["tokens", "table", "map", "axis"]


@dataclass(frozen=True, slots=True)
class AdaptRule:
    """A permission to adapt: `kind`, and for ``channels`` how.

    `scaled` keeps the magnitude of the convolution's response: times old over new channels.
    `prefix` confines it to the names below it (empty: all names).
    """

    kind: Kind
    method: ChannelMethod = "repeat"
    scaled: bool = False
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How one tensor is carried over.

    `rows` are pairs (row of the target, row of the source). `grid` says what is interpolated:
    ``tokens`` (1, prefix + h·w, dim), ``table`` (prefix + h·w, heads) with its extra rows last,
    ``map`` (1, dim, h, w), ``axis`` (length, dim); `prefix_tokens` of them are not on the grid.
    """

    kind: Kind
    method: ChannelMethod = "repeat"
    scaled: bool = False
    rows: tuple[tuple[int, int], ...] = ()
    grid: Grid = "tokens"
    prefix_tokens: int = 0

    @property
    def needs_initial(self) -> bool:
        """Whether part of the tensor keeps its initial value."""
        return self.kind in ("rows", "overlap")

    def __str__(self) -> str:
        if self.kind == "channels":
            return f"channels={self.method}{':scaled' if self.scaled else ''}"
        return self.kind


@dataclass(frozen=True, slots=True)
class Classes:
    """The class names of the checkpoint's head and of the target's, in the order of their rows.

    Raises UsageError if a list is empty or names a class twice, or if they share none.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]

    def __post_init__(self) -> None:
        for label, names in (("old", self.old), ("new", self.new)):
            if not names:
                raise UsageError(f"the list of {label} classes is empty")
            seen: set[str] = set()
            for name in names:
                if name in seen:
                    raise UsageError(f"the list of {label} classes names '{name}' twice")
                seen.add(name)
        if not set(self.old) & set(self.new):
            raise UsageError("the old and the new classes have no name in common")

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(new row, old row) of every class that both have."""
        place = {name: row for row, name in enumerate(self.old)}
        return tuple((row, place[name]) for row, name in enumerate(self.new) if name in place)


def parse_classes(text: str) -> tuple[str, ...]:
    """One class a line; blank lines at the end do not count, blank ones between are an error."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").rstrip().splitlines()]
    if "" in lines:
        raise UsageError(f"line {lines.index('') + 1} of the class list is blank")
    return tuple(lines)


def parse_adaptations(texts: Iterable[str]) -> tuple[AdaptRule, ...]:
    """The rules of ``--adapt squeeze``, ``channels=mean``, ``channels=mean:scaled``, …

    ``channels`` alone is ``channels=repeat``, which is always scaled (timm's
    ``adapt_input_conv``). Raises UsageError for an unknown name.
    """
    return tuple(_parse_adaptation(text) for text in texts)


def _parse_adaptation(text: str) -> AdaptRule:
    name, equals, method = text.strip().partition("=")
    kind = next((kind for kind in KINDS if kind == name), None)
    if kind is None:
        raise UsageError(
            f"there is no adaptation '{name}'",
            hint=near_hint(name, KINDS) or f"there are {', '.join(KINDS)}",
        )
    if kind == "channels":
        return parse_channels(method if equals else "repeat")
    if equals:
        raise UsageError(f"adaptation '{name}' takes no value")
    return AdaptRule(kind)


def parse_channels(text: str, prefix: str = "") -> AdaptRule:
    """The rule ``mean``, ``mean:scaled``, …; raises UsageError for an unknown method."""
    name, colon, scaling = text.partition(":")
    method = next((method for method in CHANNEL_METHODS if method == name), None)
    if method is None or (colon and scaling != "scaled"):
        raise UsageError(
            f"channels cannot be adapted by '{text}'",
            hint=f"there are {', '.join(CHANNEL_METHODS)}, each also with ':scaled'",
        )
    return AdaptRule("channels", method, scaled=bool(colon) or method == "repeat", prefix=prefix)


def below(name: str, prefix: str) -> bool:
    """Whether `name` is `prefix` or lies below it, by whole segments; the empty prefix has all."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def adaptation(
    name: str,
    source: Shape,
    target: Shape,
    rules: Sequence[AdaptRule],
    classes: Classes | None = None,
) -> Adaptation | None:
    """The first adaptation that `rules` permit and that carries `source` into `target`, or None.

    Rules confined to a prefix go before the others. Raises UsageError if `classes` do not
    describe the rows of a tensor that differs in its rows alone.
    """
    for rule in sorted(rules, key=lambda rule: (not rule.prefix, KINDS.index(rule.kind))):
        if below(name, rule.prefix):
            found = _apply_rule(rule, name, source, target, classes)
            if found is not None:
                return found
    return None


def possible(name: str, source: Shape, target: Shape) -> tuple[Kind, ...]:
    """Every adaptation that would carry `source` into `target`, the one that keeps most first."""
    rules = [AdaptRule(kind) for kind in KINDS]
    return tuple(r.kind for r in rules if _apply_rule(r, name, source, target, None) is not None)


def _apply_rule(
    rule: AdaptRule, name: str, source: Shape, target: Shape, classes: Classes | None
) -> Adaptation | None:
    if rule.kind == "squeeze":
        return Adaptation("squeeze") if _squeezed(source) == _squeezed(target) else None
    if rule.kind == "interpolate":
        return _interpolation(name, source, target)
    if rule.kind == "channels":
        fits = _differs_only_at(1, source, target) and 3 <= len(source) <= 5
        fits = fits and not _POSITION.search(name)  # (1, tokens, dim) is no convolution
        return Adaptation("channels", rule.method, rule.scaled) if fits else None
    if rule.kind == "rows":
        fits = _differs_only_at(0, source, target)
        return Adaptation("rows", rows=_rows(name, source, target, classes)) if fits else None
    fits = len(source) == len(target) and 0 not in source and 0 not in target and source != ()
    return Adaptation("overlap") if fits else None


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _differs_only_at(axis: int, source: Shape, target: Shape) -> bool:
    return (
        len(source) == len(target) > axis
        and source[axis] != target[axis]
        and min(source[axis], target[axis]) > 0
        and all(a == b for i, (a, b) in enumerate(zip(source, target, strict=True)) if i != axis)
    )


def _rows(
    name: str, source: Shape, target: Shape, classes: Classes | None
) -> tuple[tuple[int, int], ...]:
    if classes is None:
        return tuple((row, row) for row in range(min(source[0], target[0])))
    for label, names, count in (
        ("old", classes.old, source[0]),
        ("new", classes.new, target[0]),
    ):
        if len(names) != count:
            raise UsageError(
                f"the list of {label} classes has {len(names)} names, "
                f"but '{name}' has {count} rows{' in the target' if label == 'new' else ''}",
                hint="list one class for each row, a background class included",
            )
    return classes.rows


_POSITION = re.compile(
    r"(?:^|\.)(?:absolute_)?(?:pos(?:ition)?(?:al)?_?emb(?:ed(?:ding)?s?)?|pos_encoding)(?:\.weight)?$"
)
_RELATIVE_TABLE = re.compile(r"(?:^|\.)(?:relative_position_bias_table|rel_pos_bias_table)$")
_RELATIVE_AXIS = re.compile(r"(?:^|\.)rel_pos_[hwt]$")


def _interpolation(name: str, source: Shape, target: Shape) -> Adaptation | None:
    if len(source) != len(target) or 0 in source or 0 in target:
        return None
    if _RELATIVE_AXIS.search(name) and len(source) == 2 and source[1] == target[1]:
        return Adaptation("interpolate", grid="axis")
    if _RELATIVE_TABLE.search(name) and len(source) == 2 and source[1] == target[1]:
        # BEiT's three extra rows stand for the class token's distances
        return _on_grid("table", source[0], target[0], (0, 3))
    if not _POSITION.search(name):
        return None
    if len(source) == 4 and source[:2] == target[:2]:
        return Adaptation("interpolate", grid="map")
    if len(source) in (2, 3) and source[-1] == target[-1] and set(source[:-2]) <= {1}:
        return _on_grid("tokens", source[-2], target[-2], (0, 1, 2, 5))
    return None


def _on_grid(grid: Grid, old: int, new: int, extras: Sequence[int]) -> Adaptation | None:
    """With the number of extra tokens that leaves a square on both sides (never two: tested).

    1 is a class token, 2 a distillation token as well (DeiT), 5 a class token and four registers.
    """
    for extra in extras:
        if _is_square(old - extra) and _is_square(new - extra):
            return Adaptation("interpolate", grid=grid, prefix_tokens=extra)
    return None


def _is_square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number


FillKind = Literal["init", "zeros", "ones", "constant", "normal", "uniform", "kaiming", "xavier"]
FILL_KINDS: tuple[FillKind, ...] = get_args(FillKind)
_DEFAULTS: Mapping[FillKind, float] = {"normal": 0.02, "uniform": 0.02}


@dataclass(frozen=True, slots=True)
class Fill:
    """Initial values for the parameters below `prefix` (empty: all parameters).

    `value` is the constant, the standard deviation of ``normal``, or the bound of ``uniform``.
    """

    kind: FillKind
    value: float = 0.0
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}" if self.kind in _TAKES_VALUE else self.kind


_TAKES_VALUE = ("constant", "normal", "uniform")


def parse_fills(texts: Iterable[str]) -> tuple[tuple[Fill, ...], tuple[AdaptRule, ...]]:
    """The fills of ``--fill [NAME=]HOW``, and those that are adaptations of input channels.

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
    kind = next((kind for kind in FILL_KINDS if kind == name), None)
    if kind is None:
        known = FILL_KINDS + CHANNEL_METHODS
        raise UsageError(
            f"there is no way '{name}' to fill a tensor",
            hint=near_hint(name, known) or f"there are {', '.join(FILL_KINDS)}",
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
    """Whether a type that is no floating-point type has a number that is exactly `value`."""
    described = BY_NAME[dtype]
    if described.kind == "bool":
        return value in (0, 1)
    if described.kind != "int" or not value.is_integer():
        return False
    codes: int = 1 << 8 * described.itemsize
    lowest = 0 if dtype.startswith("uint") else -codes // 2
    return lowest <= value < lowest + codes
