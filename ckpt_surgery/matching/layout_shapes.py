"""What became of a tensor, by its shapes: which ways lead from the ones to the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Final, Literal

from ckpt_surgery.models.target import Shape
from ckpt_surgery.startup.lazy_dataclass import dataclass

_WayName = Literal["as-is", "transposed"]

_POSITIONS: Final = re.compile(r"(?:^|[._])pos(?:ition)?(?:al)?_?(?:emb|enc)")


@dataclass(frozen=True, slots=True)
class Step:
    """One rule of ``ckpt edit``: `sources` are the names that it takes, `made` those it makes."""

    option: Literal["transpose", "reshape", "split", "concat"]
    sources: tuple[str, ...]
    made: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a layout; no steps: nothing has to be done."""

    name: _WayName
    steps: tuple[Step, ...]


def how_of(steps: Sequence[Step]) -> str:
    """Say what steps do: ``transpose``, ``transpose and split``, …"""
    return " and ".join(dict.fromkeys(step.option for step in steps))


def _core(shape: Shape) -> Shape:
    """Return a shape without the axes of size 1 at its end, as far as two axes stay."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def same_core(have: Shape, want: Shape) -> bool:
    """Return whether a 1×1 convolution and a linear layer (or two kinds of the former) agree."""
    return have != want and _core(have) == _core(want) and len(_core(have)) == 2


def flattened(name: str, have: Shape, want: Shape) -> bool:
    """Return whether one is a convolution over all of its input and the other a linear layer.

    A convolution's (out, in, *kernel) has the elements of each output in the order in which
    ``flatten`` puts those of its input, (in, *size). Positions are no kernels.
    """
    kernel, linear = (have, want) if len(have) > len(want) else (want, have)
    return (
        3 <= len(kernel) <= 5
        and len(linear) == 2
        and kernel[0] == linear[0]
        and prod(kernel[1:]) == linear[1]
        and _POSITIONS.search(name) is None
    )


def split_ways(
    name: str, made: tuple[str, ...], have: Shape, wanted: Sequence[Shape]
) -> tuple[Way, ...]:
    """Return the ways in which the tensor `name` can be split into `made`; none if none fits."""
    whole, parts = _core(have), [_core(shape) for shape in wanted]
    before = () if whole == have else (_reshape(name, whole),)
    after = tuple(
        _reshape(n, want) for n, want, part in zip(made, wanted, parts, strict=True) if want != part
    )
    ways = []
    for kind, turned, dim, parts_turned in _readings(whole, parts):
        sizes = [part[1 - dim if parts_turned else dim] for part in parts]
        steps = [*before, *([Step("transpose", (name,))] if turned else [])]
        steps.append(Step("split", (name,), made, _options(dim, sizes)))
        steps += [Step("transpose", (n,)) for n in made] if parts_turned else []
        ways.append(Way(kind, (*steps, *after)))
    return tuple(ways)


def joined_ways(
    names: tuple[str, ...], made: str, have: Sequence[Shape], want: Shape
) -> tuple[Way, ...]:
    """Return the ways in which the tensors `names` can be joined to `made`; none if none fits."""
    whole, parts = _core(want), [_core(shape) for shape in have]
    before = [_reshape(n, p) for n, p, h in zip(names, parts, have, strict=True) if p != h]
    after = [] if whole == want else [_reshape(made, want)]
    ways = []
    for kind, turned, dim, parts_turned in _readings(whole, parts):
        steps = [*before, *([Step("transpose", (n,)) for n in names] if parts_turned else [])]
        steps.append(Step("concat", names, (made,), _options(dim)))
        steps += [Step("transpose", (made,))] if turned else []
        ways.append(Way(kind, (*steps, *after)))
    return tuple(ways)


def _readings(whole: Shape, parts: Sequence[Shape]) -> list[tuple[_WayName, bool, int, bool]]:
    """Return how a whole and its parts may hang together.

    Each is its name, whether the whole is transposed, along which axis it then consists of parts,
    and whether these are transposed.
    """
    if len({len(part) for part in parts}) > 1 or len(parts[0]) != len(whole) or not whole:
        return []
    found: list[tuple[_WayName, bool, int, bool]] = []
    rest = {part[1:] for part in parts}
    if sum(part[0] for part in parts) == whole[0] and rest == {whole[1:]}:
        found.append(("as-is", False, 0, False))
    if len(whole) != 2:
        return found
    rows, columns = [part[0] for part in parts], [part[1] for part in parts]
    if set(rows) == {whole[0]} and sum(columns) == whole[1]:
        found.append(("as-is", False, 1, False))
    if set(columns) == {whole[0]} and sum(rows) == whole[1]:
        found.append(("transposed", True, 0, False))
    if set(rows) == {whole[1]} and sum(columns) == whole[0]:
        found.append(("transposed", False, 0, True))
    return found


def _reshape(name: str, shape: Shape) -> Step:
    return Step("reshape", (name,), value=",".join(map(str, shape)))


def _options(dim: int, sizes: Sequence[int] = ()) -> str:
    unequal = len(set(sizes)) > 1
    return (f":dim={dim}" if dim else "") + (
        f":sizes={','.join(map(str, sizes))}" if unequal else ""
    )
