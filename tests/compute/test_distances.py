"""How far numbers are apart, with whole tensors in float64 as the oracle."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
import torch
from torch_checks import save

from ckpt_surgery import read
from ckpt_surgery.compute import distances as module
from ckpt_surgery.compute.distances import Distance, distances


def measured(
    a: torch.Tensor, b: torch.Tensor, folder: Path, *, rtol: float = 0.0, atol: float = 0.0
) -> Distance | None:
    paths = save({"w": a}, folder / "a.pth"), save({"w": b}, folder / "b.pth")
    with read(paths[0]) as first, read(paths[1]) as second:
        pair = next(first.all_tensors), next(second.all_tensors)
        return distances({"w": pair}, rtol=rtol, atol=atol, threads=2)["w"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32])
def test_sums_over_pieces_are_those_of_the_whole(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    monkeypatch.setattr(module, "RUN", 20)
    torch.manual_seed(0)
    a = (torch.randn(50) * 10).to(dtype)
    b = torch.where(torch.arange(50) % 3 == 0, a, (a.double() + 2).to(dtype))
    found = measured(a, b, tmp_path, atol=1.0)
    assert found is not None
    x, y = a.double(), b.double()
    size, larger = (x - y).abs(), torch.maximum(x.abs(), y.abs())
    assert (found.numbers, found.changed) == (50, int((size > 0).sum()))
    assert found.outside == int((size > 1.0).sum())
    assert found.max_abs == float(size.max())
    assert found.max_rel == pytest.approx(float((size / larger.clamp(min=1e-300)).max()))
    assert found.norm_change == pytest.approx(float((x - y).norm()))
    assert found.relative_change == pytest.approx(float((x - y).norm() / max(x.norm(), y.norm())))
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=0)
    assert found.cosine == pytest.approx(float(cosine))


def test_what_is_not_finite(tmp_path: Path) -> None:
    nan = float("nan")
    a = torch.tensor([nan, inf, 1.0, inf, 2.0])
    assert measured(a, a.clone(), tmp_path) == Distance(5, square_a=5.0, square_b=5.0, product=5.0)
    found = measured(a, torch.tensor([nan, inf, nan, -inf, 3.0]), tmp_path, atol=5.0)
    assert found is not None
    assert (found.changed, found.outside, found.max_abs) == (3, 2, inf)
    assert found.norm_change == 1.0


def test_the_last_bits_of_large_integers(tmp_path: Path) -> None:
    a = torch.tensor([2**60, 5])
    found = measured(a, a + torch.tensor([1, 0]), tmp_path)
    assert found is not None
    assert (found.changed, found.max_abs) == (1, 1.0)


def test_numbers_of_two_types(tmp_path: Path) -> None:
    found = measured(torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.1]).half(), tmp_path)
    assert found is not None
    assert found.changed == 1


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert measured(torch.ones(2), torch.ones(3), tmp_path) is None
    assert measured(torch.ones(2), torch.ones(2, dtype=torch.complex64), tmp_path) is None
    assert measured(torch.empty(0), torch.empty(0), tmp_path) == Distance()
    assert Distance().cosine is None
    assert Distance().relative_change == 0.0
