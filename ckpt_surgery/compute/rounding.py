"""Conversions with the largest relative error that they make, for pieces that fit the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from ckpt_surgery.compute.casting import before_rounding, cast, count_cast, real_view
from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.compute.spans import spans

_PIECE: Final = 1 << 18
"""Elements rounded and measured at a time."""

_HALF: Final = 0.5
"""A relative error below it says that no element became zero, infinite or NaN."""


def converted(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, CastCount]:
    """Return `values` (flat) in another element type, each rounded once, and what that did to them.

    Between floating-point types the count has the largest relative error: ``|y - x| / |x|`` over
    the elements that are finite and not zero before and after.
    """
    if values.is_complex() and dtype.is_complex:
        parts, count = converted(real_view(values).reshape(-1), dtype.to_real())
        return torch.view_as_complex(parts.view(-1, 2)), count
    if values.dtype == dtype or not (values.is_floating_point() and dtype.is_floating_point):
        return cast(values, dtype)
    wide = values.float() if values.dtype.itemsize < 4 else values
    result = before_rounding(wide, dtype).to(dtype)
    return result, _measured(wide, result)


def rounded(
    exact: Tensor,
    dtype: torch.dtype,
    count: Callable[[CastCount], None],
    made_of: Sequence[Tensor] = (),
) -> Tensor:
    """Return computed numbers in their element type, each rounded once, and tell `count` of it.

    Where all that they are `made_of` are finite, those that are not have become so.
    """
    flat = exact.reshape(-1)
    result = torch.empty(flat.shape, dtype=dtype)
    found = CastCount()
    for start, stop in spans(0, flat.numel(), _PIECE):
        result[start:stop], each = converted(flat[start:stop], dtype)
        found += each
    if not _is_finite(flat) and all(_is_finite(each) for each in made_of):
        found += CastCount(infinite=int((~flat.isfinite()).sum()))
    count(found)
    return result.reshape(exact.shape)


def _is_finite(values: Tensor) -> bool:
    """Return whether all numbers are finite; types of one byte have no test of their own."""
    wide = values.float() if values.is_floating_point() and values.itemsize < 2 else values
    return bool(wide.isfinite().all())


def _measured(before: Tensor, after: Tensor) -> CastCount:
    """Return the count of a conversion; `before` is float32 or float64."""
    if not before.numel():
        return CastCount(error=0.0)
    exact = after.to(before.dtype)
    low, high = torch.aminmax(torch.sub(exact, before).div_(before))
    worst = float(torch.maximum(high, -low))
    if worst < _HALF:  # never of NaN, which zeros and numbers that are not finite give
        return CastCount(error=worst)
    kept = before.isfinite() & exact.isfinite() & (before != 0) & (exact != 0)
    old = before[kept]
    error = float(((exact[kept] - old) / old).abs_().max()) if old.numel() else 0.0
    counted = count_cast(before, exact)
    return CastCount(infinite=counted.infinite, zero=counted.zero, error=error)
