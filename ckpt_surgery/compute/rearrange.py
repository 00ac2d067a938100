"""What the edits of a tensor's elements do to them, as functions on tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ckpt_surgery.compute.casting import cast, torch_dtype, work_dtype
from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.compute.rounding import rounded
from ckpt_surgery.dtypes import DType

Count: TypeAlias = Callable[[CastCount], None]
"""What is told what an element type does to computed numbers."""


def taken(values: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """Return the slices of `values` at `indices` along `dim`, in that order."""
    return values.index_select(dim, torch.tensor(indices, dtype=torch.int64))


def padded(values: Tensor, dim: int, size: int, fill: float, count: Count) -> Tensor:
    """Return `values` with `dim` filled up at its end to `size` elements."""
    shape = list(values.shape)
    shape[dim] = size - shape[dim]
    exact = torch.full(shape, fill, dtype=torch.float64)
    more = rounded(exact, values.dtype, count, [exact])
    return torch.cat([values, more], dim)


def repeated(values: Tensor, dim: int, times: int, count: Count, *, mean: bool) -> Tensor:
    """Return `values` `times` over along `dim`; with `mean` divided by that number."""
    together = torch.cat([values] * times, dim)
    return scaled(together, 1 / times, count) if mean else together


def scaled(values: Tensor, factor: float, count: Count) -> Tensor:
    """Return `values` times `factor`, rounded once to their own type."""
    return _changed(values, lambda exact: exact * factor, count)


def shifted(values: Tensor, amount: float, count: Count) -> Tensor:
    """Return `values` plus `amount`, rounded once to their own type."""
    return _changed(values, lambda exact: exact + amount, count)


def _changed(values: Tensor, change: Callable[[Tensor], Tensor], count: Count) -> Tensor:
    """Return changed numbers in their own type. Integers beyond 2⁵³ are counted as rounded."""
    if values.is_complex():
        work = torch.complex128
    elif values.is_floating_point():
        work = work_dtype([values.dtype])
    else:
        work = torch.float64
        if values.itemsize > 4:
            count_wide = cast(values, work)[1]
            return rounded(change(values.to(work)), values.dtype, lambda c: count(c + count_wide))
    return rounded(change(values.to(work)), values.dtype, count, [values])


def drawn(
    shape: Sequence[int], dtype: DType, how: str, value: float, seed: int, count: Count
) -> Tensor:
    """Return new elements: ``constant`` `value`, or ``normal`` with `value` as the deviation."""
    target = torch_dtype(dtype)
    if how == "constant":
        exact = torch.full(tuple(shape), value, dtype=torch.float64)
        return rounded(exact, target, count, [exact])
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return rounded(values * value, target, count)


def part_of(
    values: Tensor, dim: int, sizes: Sequence[int], number: int, heads: int | None
) -> Tensor:
    """Return one of the parts that `values` is split into along `dim`.

    With `heads` the dimension is that many blocks, each with every part (as in GPT-NeoX); the
    part of each block is taken. `sizes` are those of the whole parts.
    """
    if heads is None:
        return values.narrow(dim, sum(sizes[:number]), sizes[number])
    blocks: Tensor = values.unflatten(dim, (heads, values.shape[dim] // heads))
    each = [size // heads for size in sizes]
    part: Tensor = blocks.narrow(dim + 1, sum(each[:number]), each[number])
    return part.flatten(dim, dim + 1)


def joined(parts: Sequence[Tensor], dim: int, heads: int | None) -> Tensor:
    """Return `parts` one after the other along `dim`, or block by block for each of `heads`."""
    if heads is None:
        return torch.cat(list(parts), dim)
    blocks = [part.unflatten(dim, (heads, part.shape[dim] // heads)) for part in parts]
    return torch.cat(blocks, dim + 1).flatten(dim, dim + 1)
