"""Element types: which one to work in, and how to come back with a single rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import torch
from torch import Tensor

from ckpt_surgery.dtypes import DType

Category = Literal["real", "complex", "integer", "opaque"]

_WIDE: Final = (torch.float32, torch.float64, torch.complex64, torch.complex128)
# a block's scale or two packed numbers: no element of theirs can be averaged by itself
_PACKED_FLOATS: Final = ("float8_e8m0fnu", "float4_e2m1fn_x2")
_PACKED_INTS: Final = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))


def category(dtype: DType) -> Category:
    """What can be done with elements of that type.

    ``real`` and ``complex`` are merged by a method, ``integer`` (with bool) by a policy; ``opaque``
    (quantized, packed, bits, complex32) can only be compared.
    """
    if dtype.kind == "float":
        return "opaque" if dtype.name in _PACKED_FLOATS else "real"
    if dtype.kind == "complex":
        return "opaque" if dtype.name == "complex32" else "complex"  # experimental in torch
    if dtype.kind in {"int", "bool"} and dtype.name not in _PACKED_INTS:
        return "integer"
    return "opaque"


def torch_dtype(dtype: DType) -> torch.dtype:
    """The object that torch has for an element type."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def work_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """float64 if an input has float32 or wider, otherwise float32.

    Either way the working type has more than twice the digits of the inputs (float64 excepted), so
    that what arithmetic rounds is far below what the result rounds.
    """
    return torch.float64 if any(dtype in _WIDE for dtype in dtypes) else torch.float32


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as one with a last dimension of real and imaginary part; others as is."""
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a complex type's parts; a real type as is."""
    return dtype.to_real() if dtype.is_complex else dtype


def round_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` (float32 or float64) in `dtype`, rounded once, to nearest with ties to even.

    torch converts float64 to a type of 8 or 16 bits by way of float32 and rounds twice. Here the
    first step rounds to odd, which leaves the second one right (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE TC 2008).
    """
    return before_rounding(values, dtype).to(dtype)


def before_rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch can convert to `dtype` with one rounding in effect: see `round_to`."""
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
