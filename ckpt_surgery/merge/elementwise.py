"""Arithmetic on pieces: sums whose result does not depend on how the tensor was cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def combination(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """``Σ cᵢ·xᵢ``. A coefficient of 0 leaves its tensor out; one 1 alone gives that tensor's bits.

    All coefficients 0 give zeros.
    """
    total: Tensor | None = None
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient != 0:
            term = tensor * coefficient
            total = term if total is None else total.add_(term)
    return tensors[0].new_zeros(tensors[0].shape) if total is None else total


def from_base(base: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
    """``b + Σ cᵢ·(xᵢ - b)``, computed as ``(1 - Σ cᵢ)·b + Σ cᵢ·xᵢ``, a coefficient per element.

    The second form is exact where it matters: one coefficient of 1 gives that input's bits, and
    where each input equals the base or has a coefficient of 0, the result has the base's bits. A
    coefficient of 0 hides whatever the input holds there. The coefficients are overwritten.
    """
    idle = []
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        coefficient.masked_fill_(tensor == base, 0)
        idle.append(coefficient == 0)
    total = base * (1 - _sum(coefficients))
    untouched = idle[0].clone()
    for tensor, coefficient, hidden in zip(tensors, coefficients, idle, strict=True):
        total += (tensor * coefficient).masked_fill_(hidden, 0)
        untouched &= hidden
    return base.where(untouched, total)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def mean(tensors: Sequence[Tensor], work: torch.dtype) -> Tensor:
    """``(1/n) Σ xᵢ`` in the working element type, the same bits in whatever order they are given.

    The terms of each element are added from the smallest to the largest. The mean never leaves
    their range, so the mean of equal tensors is that tensor, and it does not overflow.
    """
    n = len(tensors)
    spare = _spare_bits(tensors, work)
    ordered = _to_add(tensors, clamps=not spare)
    total = ordered[0].to(work, copy=True)
    for tensor in ordered[1:]:
        total += tensor
    result = total.div_(n)
    if spare < 2 * n and not math.isfinite(float(result.sum())):
        scaled = combination([tensor.to(work) for tensor in ordered], [1 / n] * n)
        result = scaled.where(result.isinf(), result)
    # the sum of n equal terms is exact in a wider type, and that of two in any
    return result if spare or n < 3 else result.clamp_(ordered[0], ordered[-1])


def _to_add(tensors: Sequence[Tensor], *, clamps: bool) -> list[Tensor]:
    """Return the values of each element from the smallest to the largest.

    The first two may change places unless the sum `clamps` between the first and the last: they are
    added to each other. Of two, and the two smaller of three, neither need be known.
    """
    if len(tensors) < 3:
        return list(tensors)
    if len(tensors) > 3 or clamps:
        return _ascending(tensors)
    one, other, third = tensors
    larger = one.maximum(other)
    return [one.minimum(other), larger.minimum(third), larger.maximum(third)]


def _spare_bits(tensors: Sequence[Tensor], work: torch.dtype) -> float:
    """Return how often the largest stored number goes into the largest number of the working type.

    0 if a tensor is stored in the working type itself.
    """
    import torch

    if any(tensor.dtype == work for tensor in tensors):
        return 0
    return min(torch.finfo(work).max / torch.finfo(tensor.dtype).max for tensor in tensors)


def median(tensors: Sequence[Tensor], work: torch.dtype) -> Tensor:
    """Return the middle of each element's values; of an even number, the mean of the middle two."""
    ordered = _ascending(tensors)
    half = len(ordered) // 2
    odd = len(ordered) % 2
    return mean(ordered[half : half + 1] if odd else ordered[half - 1 : half + 1], work)


def _ascending(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of each element in ascending order: the first tensor holds the smallest."""
    lanes = list(tensors)
    for low, high in _network(len(lanes)):
        lanes[low], lanes[high] = (
            lanes[low].minimum(lanes[high]),
            lanes[low].maximum(lanes[high]),
        )
    return lanes


@lru_cache(maxsize=64)
def _network(n: int) -> tuple[tuple[int, int], ...]:
    """Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2 Algorithm M): comparators that sort n."""
    pairs: list[tuple[int, int]] = []
    top = 1 << (max(n - 1, 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2
    return tuple(pairs)


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """``wᵢ / Σ wⱼ``; the sum must not be 0."""
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
