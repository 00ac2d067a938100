"""Counts of odd numbers, with torch's own functions on whole tensors as the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_checks import quiet, save

from ckpt_surgery import read
from ckpt_surgery.compute import value_checks
from ckpt_surgery.compute.value_checks import ValueCounts, count_values


def counts(value: torch.Tensor, path: Path) -> ValueCounts | None:
    told: list[int] = []
    with quiet(), read(save({"w": value}, path)) as checkpoint:
        (found,) = count_values(dict(checkpoint.tensors), threads=2, advance=told.append).values()
    return found


ODD = [0.0, -0.0, 1.0, float("nan"), float("inf"), -2.0, 1e-41, 6e-8, 3e-5]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FLOATS += [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_counts_are_those_of_torch(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_checks, "PIECE", 4)
    monkeypatch.setattr(value_checks, "RUN", 8)
    value = torch.tensor(ODD * 5, dtype=torch.float64).to(dtype)
    exact = value.double()
    smallest = torch.finfo(dtype).smallest_normal
    found = counts(value, tmp_path / "w.pth")
    assert found is not None
    assert (found.numbers, found.nan) == (45, int(exact.isnan().sum()))
    assert found.inf == int(exact.isinf().sum())
    assert found.zeros == int((exact == 0).sum())
    assert found.subnormal == int(((exact.abs() < smallest) & (exact != 0)).sum())
    known = exact[~exact.isnan()]
    assert (found.low, found.high) == (float(known.min()), float(known.max()))
    assert not found.is_constant


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(3), ValueCounts(3, zeros=3, low=0.0, high=0.0)),
        (torch.tensor([True, False]), ValueCounts(2, zeros=1, low=0.0, high=1.0)),
        (torch.arange(4), ValueCounts(4, zeros=1, low=0.0, high=3.0)),
        (torch.tensor([0, 65535]).to(torch.uint16), ValueCounts(2, zeros=1, low=0, high=65535)),
        (torch.tensor([7, -1]).view(torch.uint32), ValueCounts(4, zeros=1, low=0, high=2**32 - 1)),
        (torch.tensor([7, -1]).view(torch.uint64), ValueCounts(2, low=7, high=2**64 - 1)),
        (torch.tensor([2**60, 2**60 + 1]), ValueCounts(2, low=2**60, high=2**60 + 1)),
        (torch.tensor([float("nan")]), ValueCounts(1, nan=1)),
        (torch.tensor(1 + 2j), ValueCounts(2, low=1.0, high=2.0)),
        (torch.arange(4.0).reshape(2, 2).t(), ValueCounts(4, zeros=1, low=0.0, high=3.0)),
        (torch.tensor([[0.0, 2.0]]).to_sparse(), ValueCounts(3, zeros=1, low=0.0, high=2.0)),
    ],
    ids=[
        "zeros",
        "bool",
        "int",
        "u16",
        "u32",
        "u64",
        "large",
        "nan",
        "complex",
        "transposed",
        "sparse",
    ],
)
def test_other_tensors(value: torch.Tensor, expected: ValueCounts, tmp_path: Path) -> None:
    assert counts(value, tmp_path / "w.pth") == expected


def test_tensors_without_numbers(tmp_path: Path) -> None:
    assert counts(torch.ones(2, device="meta"), tmp_path / "w.pth") is None
    assert counts(torch.empty(0), tmp_path / "w.pth") is None


def test_constants() -> None:
    assert ValueCounts(2, low=1.0, high=1.0).is_constant
    assert not ValueCounts(1, low=1.0, high=1.0).is_constant
    assert not ValueCounts(2, nan=1, low=1.0, high=1.0).is_constant
