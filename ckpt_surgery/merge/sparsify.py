"""Thinning a task vector: which elements of ``x - b`` stay, and how the rest is made up for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_surgery.merge.inputs import Inputs, steady_sum

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_AT_ONCE = 1 << 20
"""Elements of the rows that are ranked at once; bounds the memory for their order."""


class Kept(ABC):
    """What is left of one task vector: a factor for each element, 0 where it is dropped."""

    scale: float = 1.0
    """What the elements that stay are multiplied by besides."""

    @abstractmethod
    def factor(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Return the factors from `start` to `stop`, in the element type of `like`."""


class KeptAll(Kept):
    """All of it."""

    def factor(self, start: int, stop: int, like: Tensor) -> Tensor:  # noqa: ARG002 - alike
        return like.new_full(like.shape, self.scale)


@dataclass
class KeptByTable(Kept):
    """By a table over the tensor: a mask, or the factors themselves."""

    table: Tensor
    scale: float = 1.0

    def factor(self, start: int, stop: int, like: Tensor) -> Tensor:
        return self.table[start:stop].to(like.dtype) * self.scale


@dataclass
class KeptByChance(Kept):
    """Each with the same chance, drawn again whenever it is asked for."""

    key: str
    stream: int
    chance: float
    scale: float = 1.0

    def factor(self, start: int, stop: int, like: Tensor) -> Tensor:
        from ckpt_surgery.merge import draws

        drawn = draws.uniform(self.key, self.stream, start, stop) < self.chance
        return drawn.to(like.dtype) * self.scale


def match_l1(kept: Kept, inputs: Inputs, which: int) -> None:
    """Scale what is left so that its sum of magnitudes is the whole vector's."""
    before = after = 0.0
    for start, stop in inputs.spans():
        magnitudes = inputs.delta(which, start, stop).abs_()
        before += steady_sum(magnitudes)
        after += steady_sum(magnitudes * kept.factor(start, stop, magnitudes))
    if after > 0:
        kept.scale *= before / after


def _magnitudes(inputs: Inputs, which: int) -> Tensor:
    """``|x - b|`` of one input, whole and flat, in the working element type."""
    first = inputs.delta(which, 0, min(1, inputs.numel))
    whole = first.new_empty(inputs.numel)
    for start, stop in inputs.spans():
        whole[start:stop] = inputs.delta(which, start, stop).abs_()
    return whole


def largest(values: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest values of a flat tensor; of
    equal ones the first are taken.
    """
    n = values.numel()
    if count <= 0 or count >= n:
        return values.new_full((n,), count >= n).bool()
    limit = values.kthvalue(n - count + 1).values
    return _fill(values > limit, values == limit, count)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` smallest values of a flat tensor; of
    equal ones the first are taken.
    """
    n = values.numel()
    if count <= 0 or count >= n:
        return values.new_full((n,), count >= n).bool()
    limit = values.kthvalue(count).values
    return _fill(values < limit, values == limit, count)


def _fill(mask: Tensor, equal: Tensor, count: int) -> Tensor:
    """`mask`, with the first of `equal` added up to `count`."""
    missing = count - int(mask.sum())
    mask[equal.nonzero().view(-1)[:missing]] = True
    return mask


def trimmed(inputs: Inputs, which: int, density: float) -> Tensor:
    """Return a mask of the share `density` of the largest magnitudes:
    ``max(1, ⌊density·n⌋)`` elements.
    """
    count = max(1, int(density * inputs.numel)) if density > 0 else 0
    return largest(_magnitudes(inputs, which), count)


def between_tails(inputs: Inputs, which: int, density: float, gamma: float) -> Tensor:
    """Return a mask of ``⌊density·n⌋`` elements below the ``⌊gamma·n⌋`` largest magnitudes.

    Fewer outliers are left out if `density` would not be reached otherwise.
    """
    n = inputs.numel
    stay = int(density * n)
    bottom = max(0, n - stay - int(gamma * n))
    values = _magnitudes(inputs, which)
    return _smallest(values, bottom + stay) & ~_smallest(values, bottom)


def ranking_nbytes(numel: int, shape: tuple[int, ...]) -> int:
    """Return bytes that `chances_by_rank` needs to rank the rows that
    it ranks at once: five copies.
    """
    width = numel // shape[0] if len(shape) > 1 and numel else numel
    return 5 * 8 * min(numel, max(width, _ROWS_AT_ONCE))


def chances_by_rank(
    inputs: Inputs, which: int, density: float, epsilon: float, *, inverse: bool
) -> Tensor:
    """Return which elements stay if the chance grows with the rank of the magnitude in its row.

    The chance goes from ``density - epsilon`` for the smallest of a row to ``density + epsilon``
    for the largest. A row is what lies below the first dimension, and a tensor of fewer than two
    dimensions is one row. With `inverse` the factors are 1/chance, otherwise the result is a mask.
    """
    from ckpt_surgery.merge import draws

    values = _magnitudes(inputs, which)
    n = values.numel()
    width = n // inputs.shape[0] if len(inputs.shape) > 1 and n else max(n, 1)
    table = values if inverse else values.bool()
    step = max(1, _ROWS_AT_ONCE // width) * width
    for start in range(0, n, step):
        stop = min(start + step, n)
        ranks = _ranks(values[start:stop].view(-1, width))
        chance = (density - epsilon) + ranks.view(-1) * (2 * epsilon)
        stays = draws.uniform(inputs.key, which, start, stop) < chance
        table[start:stop] = (stays / chance) if inverse else stays
    return table


def _ranks(rows: Tensor) -> Tensor:
    """Return the rank of each value in its row, from 0 for the
    smallest to 1 (float64); ½ if alone.
    """
    width = rows.shape[1]
    if width == 1:
        return rows.double().fill_(0.5)
    order = rows.argsort(dim=1, stable=True)
    places = rows.double().fill_(1).cumsum_(1).sub_(1).div_(width - 1)
    return places.scatter(1, order, places)
