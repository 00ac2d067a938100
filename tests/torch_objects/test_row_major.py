"""A tensor's elements without torch, with torch as the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import big_endian, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_checks import save

from ckpt_surgery import LimitExceededError, ReadError, read
from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import ByteRange, Bytes
from ckpt_surgery.torch_objects.row_major import MOST_REPEATED, row_major

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]
VIEWS = {
    "contiguous": lambda t: t,
    "later": lambda t: t[1:],
    "transposed": lambda t: t.t(),
    "columns": lambda t: t[:, 1::2],
    "expanded": lambda t: t[:1].expand(5, 6),
    "scalar": lambda t: t[2, 3],
    "empty": lambda t: t[:0],
    "three dimensions": lambda t: t.reshape(2, 2, 6).permute(2, 0, 1),
}


def own_bytes(tensor: torch.Tensor) -> bytes:
    """What torch itself has in memory for the same numbers."""
    dense = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(dense.view(torch.uint8).tolist()) if dense.numel() else b""


def bytes_of(tensor: Tensor, size: int = 1 << 20) -> bytes:
    source = row_major(tensor)
    data = b"".join(source.chunks(size))
    assert len(data) == source.nbytes == tensor.nbytes
    return data


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_are_those_of_torch(dtype: torch.dtype, view: str, tmp_path: Path) -> None:
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensor = VIEWS[view](base)
    with read(save({"w": tensor}, tmp_path / "w.pth")) as checkpoint:
        (found,) = checkpoint.all_tensors
        for size in (1, 24, 1 << 20):
            assert bytes_of(found, size) == own_bytes(tensor)


# no zeros: torch's own negation turns their sign for complex64 and not for complex128
COMPLEX = torch.tensor([[1 + 2j, 3 - 4j, 2 - 5j], [8j + 3, 7 + 1j, complex("nan+1j")]])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "view",
    [
        torch.conj,
        lambda t: t.t().conj(),
        torch._neg_view,
        lambda t: torch._neg_view(t.conj()),
        lambda t: t.conj().imag,
    ],
    ids=["conjugated", "transposed", "negated", "both", "imaginary"],
)
def test_conjugated_and_negated_views(view: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = view(COMPLEX.to(dtype))
    with read(save({"w": tensor}, tmp_path / "w.pth")) as checkpoint:
        (found,) = checkpoint.all_tensors
        for size in (1, 24, 1 << 20):
            assert bytes_of(found, size) == own_bytes(tensor)


def test_negated_integers_need_torch(tmp_path: Path) -> None:
    tensor = torch._neg_view(torch.arange(3))
    with read(save({"w": tensor}, tmp_path / "w.pth")) as checkpoint:
        (found,) = checkpoint.all_tensors
        with pytest.raises(ReadError, match="negated view of 'int64'"):
            row_major(found)


def test_big_endian_elements_are_turned_round(tmp_path: Path) -> None:
    values = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor([1j, 2])}
    path = save(values, tmp_path / "w.pth")
    with read(rewrite(path, big_endian)) as checkpoint:
        found = dict(checkpoint.tensors)
        assert {name: bytes_of(tensor, 8) for name, tensor in found.items()} == {
            name: own_bytes(tensor) for name, tensor in values.items()
        }


def test_what_lies_as_wanted_is_a_range_of_the_file(tmp_path: Path) -> None:
    with read(save({"w": torch.arange(10.0)[2:5]}, tmp_path / "w.pth")) as checkpoint:
        (found,) = checkpoint.all_tensors
        source = row_major(found)
        assert isinstance(source, ByteRange)
        assert source.nbytes == 12


def strided(shape: tuple[int, ...], stride: tuple[int, ...], **other: Any) -> Tensor:
    dtype = BY_NAME[other.pop("dtype", "uint8")]
    storage = Storage("0", dtype, "cpu", Bytes(bytes(range(40))))
    return Tensor(shape, dtype, stride, storage=storage, **other)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 9), st.integers(1, 3), st.integers(1, 4), st.integers(1, 50))
def test_bytes_that_are_in_no_file(offset: int, rows: int, columns: int, size: int) -> None:
    base = torch.arange(40, dtype=torch.uint8)
    for stride in ((columns, 1), (1, rows), (7, 2)):
        tensor = strided((rows, columns), stride, offset=offset)
        expected = own_bytes(base.as_strided((rows, columns), stride, offset))
        assert bytes_of(tensor, size) == expected


def test_a_view_that_repeats_too_often_is_refused() -> None:
    assert row_major(strided((MOST_REPEATED,), (0,))).nbytes == MOST_REPEATED
    with pytest.raises(LimitExceededError, match="repeats 1 elements to"):
        row_major(strided((MOST_REPEATED + 1,), (0,)))


def test_a_tensor_that_is_no_view_is_refused() -> None:
    with pytest.raises(ReadError, match="'sparse_coo' is not one strided view"):
        row_major(replace(strided((2,), (1,)), storage=None, layout="sparse_coo"))


def test_packed_elements_must_start_at_a_byte() -> None:
    whole = strided((4, 4), (4, 1), dtype="quint4x2")
    assert bytes_of(whole) == bytes(range(8))
    assert bytes_of(replace(whole, shape=(2, 4), offset=4)) == bytes(range(2, 6))
    for wrong in (replace(whole, offset=1), replace(whole, stride=(1, 4))):
        with pytest.raises(ReadError, match="do not start at a byte"):
            row_major(wrong)
