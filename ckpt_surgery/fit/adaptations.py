"""Which tensor of another shape can be carried over, and how: chosen by name, never silently.

Here only shapes are looked at; `values` computes the values. What is transposed, fused or split is
put into the target's layout before that: see `layouts`.

``squeeze``      the same numbers, with axes of size 1 added or removed
``reshape``      the same numbers: a convolution over all of its input, and a linear layer
``interpolate``  position embeddings and relative-position tables, resampled to another grid
``channels``     another number of input channels of a convolution
``rows``         other rows of a head or an embedding, by class name or leading
``overlap``      the leading block that both shapes have
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Final, Literal, get_args

from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.grids import Grids, GridSize, find_grids
from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

Kind = Literal["squeeze", "reshape", "interpolate", "channels", "rows", "overlap"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every adaptation, in the order in which they are tried: what keeps the most comes first."""

_ALL: Final = ("layout", *KINDS)  # the first is carried out before: see `layouts`

ChannelMethod = Literal["repeat", "mean", "zero", "first"]
CHANNEL_METHODS: tuple[ChannelMethod, ...] = get_args(ChannelMethod)

_Grid = Literal["tokens", "table", "map", "last", "axis"]


@dataclass(frozen=True, slots=True)
class AdaptRule:
    """A permission to adapt: `kind`, and for ``channels`` how.

    `scaled` keeps the magnitude of the convolution's response: times old over new channels.
    `prefix` confines it to the names below it (empty: all names). `grids` are those of the target
    and, if it is not square either, of the checkpoint, for ``interpolate``.
    """

    kind: Kind
    method: ChannelMethod = "repeat"
    scaled: bool = False
    prefix: str = ""
    grids: Grids | None = None

    @property
    def option(self) -> str:
        """How it was asked for: ``--adapt rows``, ``--fill conv1=first``."""
        how = str(Adaptation(self.kind, self.method, self.scaled))
        if not self.prefix:
            return f"--adapt {how}"
        return f"--fill {self.prefix}={how.removeprefix('channels=')}"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How one tensor is carried over.

    `rows` are pairs (row of the target, row of the source). `grid` says what is interpolated:
    ``tokens`` (1, prefix + h·w, dim), ``table`` (h·w + extra, heads), ``map`` (1, dim, h, w),
    ``last`` (1, h, w, dim), ``axis`` (length, dim). `prefix_tokens` of them (a table's extra
    rows) are not on the grid; `old_size` and `new_size` are the grids of tokens and tables.
    """

    kind: Kind
    method: ChannelMethod = "repeat"
    scaled: bool = False
    rows: tuple[tuple[int, int], ...] = ()
    grid: _Grid = "tokens"
    prefix_tokens: int = 0
    old_size: GridSize = (0, 0)
    new_size: GridSize = (0, 0)

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
    """Return one class a line; blank lines at the end do not count,
    blank ones between are an error.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").rstrip().splitlines()]
    if "" in lines:
        raise UsageError(f"line {lines.index('') + 1} of the class list is blank")
    return tuple(lines)


def parse_adaptations(texts: Iterable[str], grids: Grids | None = None) -> tuple[AdaptRule, ...]:
    """Return the rules of ``--adapt squeeze``, ``channels=mean``, ``channels=mean:scaled``, …

    ``channels`` alone is ``channels=repeat``, which is always scaled (timm's
    ``adapt_input_conv``). Raises UsageError for an unknown name, and for `grids` (``--grid``)
    without ``interpolate``.
    """
    rules = tuple(_parse_adaptation(text) for text in texts)
    if grids is None:
        return rules
    if all(rule.kind != "interpolate" for rule in rules):
        raise UsageError(
            f"'grid {grids}' says what is interpolated to, and nothing is",
            fields=("grid",),
            hint="add --adapt interpolate",
        )
    return tuple(replace(r, grids=grids) if r.kind == "interpolate" else r for r in rules)


def _parse_adaptation(text: str) -> AdaptRule:
    name, equals, method = text.strip().partition("=")
    kind = next((kind for kind in KINDS if kind == name), None)
    if kind is None:
        raise UsageError(
            f"there is no adaptation '{name}'",
            hint=near_hint(name, _ALL) or f"there are {', '.join(_ALL)}",
        )
    if kind == "channels":
        return parse_channels(method if equals else "repeat")
    if equals:
        raise UsageError(f"adaptation '{name}' takes no value")
    return AdaptRule(kind)


def parse_channels(text: str, prefix: str = "") -> AdaptRule:
    """Return the rule ``mean``, ``mean:scaled``, …; raises UsageError for an unknown method."""
    name, colon, scaling = text.partition(":")
    method = next((method for method in CHANNEL_METHODS if method == name), None)
    if method is None or (colon and scaling != "scaled"):
        raise UsageError(
            f"channels cannot be adapted by '{text}'",
            hint=f"there are {', '.join(CHANNEL_METHODS)}, each also with ':scaled'",
        )
    return AdaptRule("channels", method, scaled=bool(colon) or method == "repeat", prefix=prefix)


def below(name: str, prefix: str) -> bool:
    """Return whether `name` is `prefix` or lies below it, by whole
    segments; the empty prefix has all.
    """
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def adaptation(
    name: str,
    source: Shape,
    target: Shape,
    rules: Sequence[AdaptRule],
    classes: Classes | None = None,
) -> Adaptation | None:
    """Return the first adaptation that `rules` permit and that carries
    `source` into `target`, or None.

    Rules confined to a prefix go before the others. Raises UsageError if `classes` do not
    describe the rows of a tensor that differs in its rows alone.
    """
    for rule in sorted(rules, key=lambda rule: (not rule.prefix, KINDS.index(rule.kind))):
        if below(name, rule.prefix):
            found = _apply_rule(rule, name, source, target, classes)
            if found is not None:
                return found
    return None


def may_lie_on_a_grid(name: str, source: Shape, target: Shape) -> bool:
    """Return whether these are positions that ``interpolate`` needs to be told the grids of."""
    if len(source) not in (2, 3) or "interpolate" in possible(name, source, target):
        return False
    named = _POSITION.search(name) or _RELATIVE_TABLE.search(name)
    return named is not None and _differs_only_at(len(source) - 2, source, target)


def possible(name: str, source: Shape, target: Shape) -> tuple[Kind, ...]:
    """Return every adaptation that would carry `source` into `target`,
    the one that keeps most first.
    """
    rules = [AdaptRule(kind) for kind in KINDS]
    return tuple(r.kind for r in rules if _apply_rule(r, name, source, target, None) is not None)


def _apply_rule(
    rule: AdaptRule, name: str, source: Shape, target: Shape, classes: Classes | None
) -> Adaptation | None:
    if rule.kind == "squeeze":
        return Adaptation("squeeze") if _squeezed(source) == _squeezed(target) else None
    if rule.kind == "reshape":
        fits = _is_flattened(source, target) or _is_flattened(target, source)
        return Adaptation("reshape") if fits and not _POSITION.search(name) else None
    if rule.kind == "interpolate":
        return _interpolation(name, source, target, rule.grids)
    if rule.kind == "channels":
        fits = _differs_only_at(1, source, target) and 3 <= len(source) <= 5
        fits = fits and not _POSITION.search(name)  # (1, tokens, dim) is no convolution
        return Adaptation("channels", rule.method, rule.scaled) if fits else None
    if _RELATIVE_TABLE.search(name) or _RELATIVE_AXIS.search(name):
        return None  # the leading ones of so many distances are others of fewer
    if rule.kind == "rows":
        fits = _differs_only_at(0, source, target)
        return Adaptation("rows", rows=_rows(name, source, target, classes)) if fits else None
    fits = len(source) == len(target) and 0 not in source and 0 not in target and source != ()
    fits = fits and not looks_transposed(source, target)  # its leading block would be nonsense
    return Adaptation("overlap") if fits else None


def looks_transposed(source: Shape, target: Shape) -> bool:
    """Return whether the two shapes are different orders of the same sizes."""
    return source != target and sorted(source) == sorted(target)


def _is_flattened(convolution: Shape, linear: Shape) -> bool:
    """Return whether a linear layer's weight is that of a convolution
    over all of its input, flattened.

    A convolution's (out, in, *kernel) has the elements of each output in the order in which
    ``flatten`` puts those of its input, (in, *size).
    """
    return (
        3 <= len(convolution) <= 5
        and len(linear) == 2
        and prod(convolution[2:]) > 1  # else the axes of size 1 are squeezed
        and convolution[0] == linear[0]
        and prod(convolution[1:]) == linear[1]
    )


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _differs_only_at(axis: int, source: Shape, target: Shape) -> bool:
    return (
        len(source) == len(target) > axis
        and source[axis] != target[axis]
        and min(source[axis], target[axis]) > 0
        and [*source[:axis], *source[axis + 1 :]] == [*target[:axis], *target[axis + 1 :]]
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


def _interpolation(
    name: str, source: Shape, target: Shape, grids: Grids | None
) -> Adaptation | None:
    if len(source) != len(target) or 0 in source or 0 in target:
        return None
    if _RELATIVE_AXIS.search(name) and len(source) == 2 and source[1] == target[1]:
        return Adaptation("interpolate", grid="axis")
    if _RELATIVE_TABLE.search(name) and len(source) == 2 and source[1] == target[1]:
        # BEiT's three extra rows stand for the class token's distances
        found = find_grids(source[0], target[0], (0, 3), grids, distances=True)
        return _resampled("table", found)
    if not _POSITION.search(name):
        return None
    if len(source) == 4 and source[:2] == target[:2]:
        return Adaptation("interpolate", grid="map")
    if len(source) == 4 and (source[0], source[3]) == (target[0], target[3]):
        return Adaptation("interpolate", grid="last")  # SAM
    if len(source) in (2, 3) and source[-1] == target[-1] and set(source[:-2]) <= {1}:
        # 1 is a class token, 2 a distillation token as well (DeiT), 5 a class token, four registers
        return _resampled("tokens", find_grids(source[-2], target[-2], (0, 1, 2, 5), grids))
    return None


def _resampled(grid: _Grid, found: tuple[int, GridSize, GridSize] | None) -> Adaptation | None:
    if found is None:
        return None
    extra, old, new = found
    return Adaptation("interpolate", grid=grid, prefix_tokens=extra, old_size=old, new_size=new)
