"""What the edits of a tensor's elements do to them, as functions on tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ckpt_surgery.compute.casting import round_to, torch_dtype, work_dtype
from ckpt_surgery.dtypes import DType


def taken(values: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """Return the slices of `values` at `indices` along `dim`, in that order."""
    return values.index_select(dim, torch.tensor(indices, dtype=torch.int64))


def padded(values: Tensor, dim: int, size: int, fill: float) -> Tensor:
    """Return `values` with `dim` filled up at its end to `size` elements."""
    shape = list(values.shape)
    shape[dim] = size - shape[dim]
    more = torch.full(shape, fill, dtype=torch.float64).to(values.dtype)
    return torch.cat([values, more], dim)


def repeated(values: Tensor, dim: int, times: int, *, mean: bool) -> Tensor:
    """Return `values` `times` over along `dim`; with `mean` divided by that number."""
    together = torch.cat([values] * times, dim)
    return scaled(together, 1 / times) if mean else together


def scaled(values: Tensor, factor: float) -> Tensor:
    """Return `values` times `factor`, rounded once to their own type."""
    return _rounded(values, lambda exact: exact * factor)


def shifted(values: Tensor, amount: float) -> Tensor:
    """Return `values` plus `amount`, rounded once to their own type."""
    return _rounded(values, lambda exact: exact + amount)


def _rounded(values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    if values.is_complex():
        return change(values.to(torch.complex128)).to(values.dtype)
    exact = change(values.to(work_dtype([values.dtype])))
    return round_to(exact, values.dtype)


def drawn(shape: Sequence[int], dtype: DType, how: str, value: float, seed: int) -> Tensor:
    """Return new elements: ``constant`` `value`, or ``normal`` with `value` as the deviation."""
    target = torch_dtype(dtype)
    if how == "constant":
        return torch.full(tuple(shape), value, dtype=torch.float64).to(target)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return round_to(values * value, target)


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
