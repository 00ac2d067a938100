"""Element types: which one to work in, coming back with a single rounding, counting losses."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Final, Literal

import torch
from torch import Tensor

from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.dtypes import DType

_Category = Literal["real", "complex", "integer", "opaque"]

_WIDE: Final = (torch.float32, torch.float64, torch.complex64, torch.complex128)
# a block's scale or two packed numbers: no element of theirs can be averaged by itself
_PACKED_FLOATS: Final = ("float8_e8m0fnu", "float4_e2m1fn_x2")
_PACKED_INTS: Final = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))


def category(dtype: DType) -> _Category:
    """Return what can be done with elements of that type.

    ``real`` and ``complex`` are merged by a method, ``integer`` (with bool) by a policy; ``opaque``
    (quantized, packed, bits, complex32) can only be compared.
    """
    if dtype.kind == "float":
        packed = dtype.name in _PACKED_FLOATS or not dtype.in_torch
        return "opaque" if packed else "real"
    if dtype.kind == "complex":
        return "opaque" if dtype.name == "complex32" else "complex"  # experimental in torch
    if dtype.kind in {"int", "bool"} and dtype.name not in _PACKED_INTS:
        return "integer"
    return "opaque"


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the object that torch has for an element type."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def work_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """float64 if an input has float32 or wider, otherwise float32.

    Either way the working type has more than twice the digits of the inputs (float64 excepted), so
    that what arithmetic rounds is far below what the result rounds.
    """
    return torch.float64 if any(dtype in _WIDE for dtype in dtypes) else torch.float32


def real_view(tensor: Tensor) -> Tensor:
    """Return a complex tensor as one with a last dimension of real
    and imaginary part; others as is.
    """
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of a complex type's parts; a real type as is."""
    return dtype.to_real() if dtype.is_complex else dtype


def round_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` (float32 or float64) in `dtype`, rounded once, to nearest with ties to even.

    torch converts float64 to a type of 8 or 16 bits by way of float32 and rounds twice. Here the
    first step rounds to odd, which leaves the second one right (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE TC 2008).
    """
    return before_rounding(values, dtype).to(dtype)


def before_rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what torch can convert to `dtype` with one rounding in effect: see `round_to`."""
    narrow = values.dtype == torch.float64 and dtype.itemsize < 4
    return _round_to_odd(values) if narrow else values


def _round_to_odd(values: Tensor) -> Tensor:
    nearest = values.float()
    back = nearest.double()
    inexact = back != values
    away = back.abs() > values.abs()
    # the bits of a float's magnitude count upwards, so one less is the next float towards zero
    bits = nearest.view(torch.int32) - away.int()
    return (bits | inexact.int()).view(torch.float32)


def cast(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, CastCount]:
    """`values` in another element type, and what that did to them; as they are if it is theirs."""
    if values.dtype == dtype:
        return values, CastCount()
    both_float = values.is_floating_point() and dtype.is_floating_point
    result = (before_rounding(_wide(values), dtype) if both_float else values).to(dtype)
    return result, count_cast(values, result)


def count_cast(before: Tensor, after: Tensor, *, zeros: bool = True) -> CastCount:
    """Return what became of elements (`before`) in another type (`after`, of the same shape).

    A tensor can be counted in parts. `zeros` False leaves out, for the sake of speed, what became
    zero. A complex element is counted as two.
    """
    if before.is_complex() and after.is_complex():
        return count_cast(real_view(before), real_view(after), zeros=zeros)
    if after.is_complex():
        return count_cast(before, after.real, zeros=zeros)
    if before.is_floating_point() and after.is_floating_point():
        return _count_floats(_wide(before), _wide(after), zeros=zeros)
    if before.is_floating_point():
        return _count_integers_of_floats(before.double(), after)
    if after.is_floating_point():
        return _count_floats_of_integers(before, after.double())
    if after.dtype == torch.bool:
        return CastCount(rounded=int((_long(before) >> 1 != 0).sum()))
    changed = (_long(before) != _long(after)) | (_negative(before) != _negative(after))
    return CastCount(wrapped=int(changed.sum()))


def _wide(values: Tensor) -> Tensor:
    """Numbers in a type that has all operations: those of one byte have few."""
    return values.float() if values.dtype.itemsize == 1 else values


def _count_floats(before: Tensor, after: Tensor, *, zeros: bool) -> CastCount:
    infinite = zero = 0
    if not isfinite(float(after.sum())):  # the sum shows at once that nothing is infinite
        infinite = int((before.isfinite() & ~after.isfinite()).sum())
    if zeros:
        zero = int(before.count_nonzero()) - int(after.count_nonzero())
    return CastCount(infinite=infinite, zero=zero)


def _count_integers_of_floats(before: Tensor, after: Tensor) -> CastCount:
    nan = int(before.isnan().sum())
    if after.dtype == torch.bool:
        return CastCount(nan=nan, rounded=int(((before != 0) & (before != 1)).sum()) - nan)
    bounds = torch.iinfo(after.dtype)
    whole = before.trunc()
    # powers of two, so that a float has them; NaN is never inside
    inside = (whole >= float(bounds.min)) & (whole < float(bounds.max + 1))
    rounded = int((inside & (whole != before)).sum())
    return CastCount(wrapped=int((~inside).sum()) - nan, nan=nan, rounded=rounded)


def _count_floats_of_integers(before: Tensor, after: Tensor) -> CastCount:
    finite = after.isfinite()
    high = before.view(torch.int64) < 0 if before.dtype == torch.uint64 else torch.tensor(False)
    # beyond the signed range: both less 2**63, which is exact for numbers so large
    offset = torch.where(high, after - 2.0**63, after)
    lowest = torch.iinfo(torch.int64).min
    whole = torch.where(high, _long(before) ^ lowest, _long(before))
    fits = finite & (offset < 2.0**63)
    same = fits & (torch.where(fits, offset, 0.0).long() == whole)
    return CastCount(infinite=int((~finite).sum()), rounded=int((finite & ~same).sum()))


def _long(values: Tensor) -> Tensor:
    """Integers in 64 bits, those of uint64 by their bits."""
    return values.view(torch.int64) if values.dtype == torch.uint64 else values.long()


def _negative(values: Tensor) -> Tensor:
    is_unsigned = values.dtype == torch.uint64
    return torch.zeros(values.shape, dtype=torch.bool) if is_unsigned else values.long() < 0
