"""One value of every kind that torch saves, and what a description must say of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch_checks import quiet


class Subclass(torch.Tensor):
    """Saved by `_rebuild_from_type_v2`."""


@dataclass(frozen=True)
class Kind:
    """`make` builds the value; the rest is what is described beyond shape, dtype and stride."""

    make: Callable[[], Any]
    layout: str = "strided"
    device: str = "cpu"
    parts: tuple[tuple[tuple[int, ...], str], ...] = ()
    expected: dict[str, Any] = field(default_factory=dict)
    weights_only: bool = True
    meta: bool = True


def matrix() -> torch.Tensor:
    return torch.arange(24.0).reshape(4, 6)


def complex_vector() -> torch.Tensor:
    return torch.tensor([1 + 2j, 3 - 4j, -5j], dtype=torch.complex64)


def subclass() -> torch.Tensor:
    made = torch.ones(3).as_subclass(Subclass)
    made.note, made.extra = "note", torch.arange(2)  # type: ignore[attr-defined]
    return made


def parameter_with_state() -> nn.Parameter:
    made = nn.Parameter(torch.ones(2))
    made.extra = torch.arange(3)  # type: ignore[attr-defined]
    return made


def tensor_with_attribute() -> torch.Tensor:
    made = torch.ones(2)
    made.info = {"scale": 3}  # type: ignore[attr-defined]
    return made


def jagged() -> torch.Tensor:
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(3.0), 0.5, 2, torch.quint8)


def quantized_by_channel() -> torch.Tensor:
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    return torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.qint8)


def viewed(dtype: torch.dtype, base: torch.dtype = torch.uint8) -> Callable[[], torch.Tensor]:
    return lambda: torch.arange(6, dtype=base).view(dtype)


COO = (((2, 3), "int64"), ((3,), "float32"))
CSR = (((5,), "int64"), ((4,), "int64"), ((4,), "float32"))
BSR = (((3,), "int64"), ((2,), "int64"), ((2, 2, 2), "float32"))
NESTED = (((9,), "float32"), ((2, 2), "int64"), ((2, 2), "int64"), ((2,), "int64"))
JAGGED = (((3, 3), "float32"), ((3,), "int64"), ((1, 0), "float32"), ((2, 0), "float32"))

TENSORS: dict[str, Kind] = {
    "contiguous": Kind(matrix),
    "scalar": Kind(lambda: torch.tensor(3.0)),
    "empty": Kind(lambda: torch.empty(0, 3)),
    "transposed": Kind(lambda: matrix().t()),
    "slice": Kind(lambda: matrix()[1:, 2::2], expected={"offset": 8, "stride": (6, 2)}),
    "expanded": Kind(lambda: torch.ones(1).expand(5)),
    "channels last": Kind(
        lambda: torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    ),
    "requires grad": Kind(lambda: matrix().requires_grad_(), expected={"requires_grad": True}),
    "parameter": Kind(
        lambda: nn.Parameter(matrix()), expected={"is_parameter": True, "requires_grad": True}
    ),
    "frozen parameter": Kind(
        lambda: nn.Parameter(matrix(), requires_grad=False),
        expected={"is_parameter": True, "requires_grad": False},
    ),
    "parameter with state": Kind(
        parameter_with_state, parts=(((3,), "int64"),), expected={"is_parameter": True}
    ),
    "subclass": Kind(subclass, parts=(((2,), "int64"),), weights_only=False),
    "tensor with attribute": Kind(tensor_with_attribute),
    "conjugated": Kind(lambda: complex_vector().conj()),
    "negated": Kind(lambda: complex_vector().conj().imag, expected={"offset": 1, "stride": (2,)}),
    "sparse coo": Kind(lambda: torch.eye(3).to_sparse(), "sparse_coo", parts=COO),
    "uncoalesced": Kind(
        lambda: torch.sparse_coo_tensor([[0, 0, 1]], torch.ones(3), (2,)),
        "sparse_coo",
        parts=(((1, 3), "int64"), ((3,), "float32")),
    ),
    "sparse csr": Kind(lambda: torch.eye(4).to_sparse_csr(), "sparse_csr", parts=CSR),
    "sparse csc": Kind(lambda: torch.eye(4).to_sparse_csc(), "sparse_csc", parts=CSR),
    "sparse bsr": Kind(lambda: torch.eye(4).to_sparse_bsr((2, 2)), "sparse_bsr", parts=BSR),
    "sparse bsc": Kind(lambda: torch.eye(4).to_sparse_bsc((2, 2)), "sparse_bsc", parts=BSR),
    "quantized": Kind(quantized, "quantized", meta=False),
    "quantized by channel": Kind(
        quantized_by_channel, "quantized", parts=(((2,), "float64"), ((2,), "int64")), meta=False
    ),
    "meta": Kind(lambda: torch.empty(3, 2, device="meta"), device="meta"),
    "nested": Kind(
        lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)]),
        "nested",
        parts=NESTED,
        expected={"shape": (2,), "stride": ()},
        meta=False,
    ),
    "jagged": Kind(
        jagged,
        "jagged",
        parts=JAGGED,
        expected={"shape": (2,), "stride": ()},
        weights_only=False,
    ),
    "wrapper subclass": Kind(
        lambda: TwoTensor(torch.ones(3), torch.zeros(3)),
        "subclass",
        parts=(((3,), "float32"), ((3,), "float32")),
        weights_only=False,
    ),
    **{
        str(dtype).removeprefix("torch."): Kind(viewed(dtype))
        for dtype in (
            *(torch.uint8, torch.int8, torch.bool, torch.float16, torch.bfloat16),
            *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
            *(torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
            *(torch.uint16, torch.int16, torch.bits8, torch.bits16),
            *(torch.bits1x8, torch.bits2x4, torch.bits4x2),
        )
        if not dtype.is_complex
    },
    **{
        str(dtype).removeprefix("torch."): Kind(viewed(dtype, torch.int64))
        for dtype in (
            *(torch.int32, torch.int64, torch.uint32, torch.uint64, torch.float32, torch.float64),
            *(torch.complex32, torch.complex64, torch.complex128),
        )
    },
}

OTHERS: dict[str, Kind] = {
    "size": Kind(lambda: torch.Size([1, 2])),
    "device": Kind(lambda: torch.device("cuda", 1)),
    "dtype": Kind(lambda: torch.float16),
    "storage": Kind(lambda: torch.ones(3).storage()),
    "untyped storage": Kind(lambda: torch.ones(3).untyped_storage()),
    "numpy array": Kind(lambda: np.arange(6.0).reshape(2, 3), weights_only=False),
    "numpy scalar": Kind(lambda: np.float32(1.5), weights_only=False),
    "unknown class": Kind(lambda: argparse.Namespace(lr=0.1, layers=[1, 2]), weights_only=False),
    "nothing": Kind(lambda: None),
    "tensors in a list": Kind(lambda: [torch.ones(2), torch.zeros(3)]),
    "a set": Kind(lambda: {1, 2}),
    "text": Kind(lambda: "resnet"),
    "bytes": Kind(lambda: b"\x00\xff"),
}


def build(make: Callable[[], Any]) -> Any:
    with quiet():
        return make()
