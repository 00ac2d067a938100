"""Statistics are those that torch computes, for every type of element."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_checks import quiet, save

from ckpt_surgery import LimitExceededError, MissingDependencyError, read
from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.compute import stats as stats_module
from ckpt_surgery.compute.elements import load_elements, require_torch
from ckpt_surgery.compute.stats import _BINS, TensorStats, _tensor_stats, all_stats
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import Bytes


def stats_of(value: Any, path: Path) -> TensorStats | None:
    with read(save({"w": value, "v": torch.ones(1), "u": torch.ones(1)}, path)) as checkpoint:
        return _tensor_stats(dict(checkpoint.tensors)["w"])


def expected(value: torch.Tensor) -> TensorStats:
    """By torch, over all elements at once."""
    flat = value.detach().resolve_conj().resolve_neg().reshape(-1)
    flat = (flat.to(torch.complex128).abs() if flat.is_complex() else flat).double()
    finite = flat[flat.isfinite()]
    counts = int(flat.isnan().sum()), int(flat.isinf().sum()), int((flat == 0).sum())
    if not finite.numel():
        return TensorStats(None, None, None, None, *counts)
    low, high = float(finite.min()), float(finite.max())
    bins = [0] * _BINS
    for number in finite.tolist():
        bins[min(int((number - low) / ((high - low) or 1) * _BINS), _BINS - 1)] += 1
    mean, std = float(finite.mean()), float(finite.std(unbiased=False))
    return TensorStats(low, high, mean, std, *counts, tuple(bins))


def assert_same_stats(found: TensorStats | None, wanted: TensorStats) -> None:
    assert found is not None
    assert (found.mean, found.std) == close(wanted)
    assert replace(found, mean=0, std=0) == replace(wanted, mean=0, std=0)


def close(wanted: TensorStats, tolerance: float = 1e-12) -> Any:
    if wanted.mean is None or wanted.std is None:
        return None, None
    return tuple(pytest.approx(x, rel=1e-7, abs=tolerance) for x in (wanted.mean, wanted.std))


VALUES = [0.0, 1.0, 3.5, 0.25, 2.0, 0.0, 7.0]
FLOATS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)
INTS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bool),
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.tensor([*VALUES, -4.0, nan, nan, inf, -inf]).to(dtype)
    assert_same_stats(stats_of(value, tmp_path / "w.pth"), expected(value))


def test_magnitude_beyond_the_halves_is_finite(tmp_path: Path) -> None:
    with quiet():
        value = torch.tensor([60_000 + 60_000j], dtype=torch.complex64).to(torch.complex32)
    found = stats_of(value, tmp_path / "w.pth")
    assert found is not None
    assert (found.inf, found.max) == (0, pytest.approx(60_000 * 2**0.5))


@pytest.mark.parametrize("dtype", INTS, ids=str)
def test_integers(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.tensor([0, 1, 0, 5, 100, 3], dtype=torch.int64).to(dtype)
    assert_same_stats(stats_of(value, tmp_path / "w.pth"), expected(value))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.complex32], ids=str)
def test_complex_numbers_are_measured_by_magnitude(dtype: torch.dtype, tmp_path: Path) -> None:
    with quiet():
        value = torch.tensor([3 + 4j, 0, -1j, 2], dtype=torch.complex64).to(dtype)
    found = stats_of(value, tmp_path / "w.pth")
    assert_same_stats(found, expected(value))
    assert found is not None
    assert (found.min, found.max, found.zeros) == (0.0, 5.0, 1)


def test_exponents_alone(tmp_path: Path) -> None:
    value = torch.tensor([126, 127, 128, 255], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    found = stats_of(value, tmp_path / "w.pth")
    assert found is not None
    assert (found.min, found.max, found.nan) == (0.5, 2.0, 1)


SPECIAL: dict[str, Any] = {
    "empty": lambda: torch.empty(0, 3),
    "scalar": lambda: torch.tensor(3.0),
    "all NaN": lambda: torch.full((3,), nan),
    "infinite": lambda: torch.tensor([inf, -inf, nan]),
    "constant": lambda: torch.full((5,), -2.0),
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "a slice": lambda: torch.arange(100.0)[10:50:7],
    "expanded": lambda: torch.tensor([1.0, 2.0]).expand(3, 2),
    "conjugated": lambda: torch.tensor([1 + 2j, 3j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3j]).conj().imag,
    "parameter": lambda: torch.nn.Parameter(torch.arange(3.0)),
    "large mean": lambda: torch.randn(500).add(1000).to(torch.bfloat16),
    "large halves": lambda: torch.tensor([3e38 + 3e38j, 1]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_tensors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    value = SPECIAL[name]()
    assert_same_stats(stats_of(value, tmp_path / "w.pth"), expected(value))


def test_quantised_numbers_are_the_stored_ones(tmp_path: Path) -> None:
    for dtype in (torch.quint8, torch.qint8, torch.qint32):
        with quiet():
            value = torch.quantize_per_tensor(torch.arange(3.0), 0.5, 2, dtype)
        assert_same_stats(stats_of(value, tmp_path / "w.pth"), expected(value.int_repr()))


def test_sparse_tensor_is_measured_by_its_values(tmp_path: Path) -> None:
    value = torch.tensor([0.0, 5.0, 0.0, 7.0]).to_sparse()
    found = stats_of(value, tmp_path / "w.pth")
    assert_same_stats(found, expected(torch.tensor([5.0, 7.0])))


def test_bits_are_measured_as_integers(tmp_path: Path) -> None:
    value = torch.tensor([1, 2, 300], dtype=torch.int16).view(torch.bits16)
    found = stats_of(value, tmp_path / "w.pth")
    assert found is not None
    assert (found.min, found.max) == (1.0, 300.0)


@pytest.mark.parametrize(
    "dtype",
    [torch.bits1x8, torch.bits2x4, torch.bits4x2, torch.float4_e2m1fn_x2, torch.int4, torch.uint1],
    ids=str,
)
def test_packed_elements_have_no_statistics(dtype: torch.dtype) -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", Bytes(bytes(8)), untyped=True)
    name = str(dtype).removeprefix("torch.")
    assert _tensor_stats(Tensor((4,), BY_NAME[name], (1,), 0, storage)) is None


def test_what_has_no_elements_here_has_no_statistics(tmp_path: Path) -> None:
    assert stats_of(torch.empty(3, device="meta"), tmp_path / "w.pth") is None
    packed = Storage("0", BY_NAME["quint4x2"], "cpu", Bytes(bytes(8)))
    assert _tensor_stats(Tensor((4,), packed.dtype, (1,), 0, packed)) is None


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.5, -2.0, 1e10]),
        torch.tensor([1, 2, -300], dtype=torch.int16),
        torch.tensor([1 + 2j, -3.5]),
        torch.tensor([1, 2], dtype=torch.uint8),
    ],
    ids=lambda value: str(value.dtype),
)
def test_big_endian_elements_are_swapped(value: torch.Tensor) -> None:
    """A complex number is swapped half by half, as `torch.load` does."""
    swapped = value.clone()
    swapped.untyped_storage().byteswap(value.dtype)
    dtype = BY_NAME[str(value.dtype).removeprefix("torch.")]
    data = Bytes(bytes(swapped.untyped_storage().tolist()))
    tensor = Tensor(
        tuple(value.shape), dtype, (1,), 0, Storage("0", dtype, "cpu", data, False, True)
    )
    elements = load_elements(tensor)
    assert elements is not None
    assert torch.equal(elements, value)


def in_memory(values: torch.Tensor, shape: Any, stride: Any, offset: int = 0) -> Tensor:
    dtype = BY_NAME["float32"]
    data = Bytes(values.numpy().tobytes())
    return Tensor(shape, dtype, stride, offset, Storage("0", dtype, "cpu", data))


def test_elements_are_read_from_memory_too() -> None:
    values = torch.arange(10.0)
    elements = load_elements(in_memory(values, (3, 2), (2, 1), 3))
    assert elements is not None
    assert elements.tolist() == values.as_strided((3, 2), (2, 1), 3).flatten().tolist()


def test_only_the_bytes_of_the_view_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    path = save({"w": torch.arange(10_000.0)[5000:5010], "v": torch.ones(1)}, tmp_path / "w.pth")
    with read(path) as checkpoint:
        tensor = dict(checkpoint.tensors)["w"]
        seen: list[int] = []
        original = type(checkpoint.file).read_into
        monkeypatch.setattr(
            type(checkpoint.file),
            "read_into",
            lambda self, at, buffer: seen.append(buffer.nbytes) or original(self, at, buffer),
        )
        assert _tensor_stats(tensor) is not None
    assert seen == [40]


def test_absurd_repetition_is_refused() -> None:
    tensor = in_memory(torch.ones(4), (10**12,), (0,))
    with pytest.raises(LimitExceededError, match="repeats 1 elements to 1000000000000"):
        _tensor_stats(tensor)
    assert _tensor_stats(in_memory(torch.ones(4), (1000,), (0,))) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([nan, inf, 0.0]), max_size=40))
def test_pieces_add_up_to_the_whole(values: list[float]) -> None:
    """The formula for combining pieces, with pieces of three elements."""
    tensor = in_memory(torch.tensor(values, dtype=torch.float32), (len(values),), (1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats_module, "PIECE", 3)
        patch.setattr(stats_module, "RUN", 7)
        found = _tensor_stats(tensor)
    wanted = expected(torch.tensor(values, dtype=torch.float32))
    assert found is not None
    assert (found.mean, found.std) == close(wanted, 1e-6)
    assert (found.min, found.max, found.histogram) == (wanted.min, wanted.max, wanted.histogram)
    assert (found.nan, found.inf, found.zeros) == (wanted.nan, wanted.inf, wanted.zeros)


@pytest.mark.parametrize("threads", [1, 3])
def test_statistics_of_many_tensors_do_not_depend_on_threads(threads, tmp_path, monkeypatch):
    """Large ones are shared by the threads, run by run; what they measure is told in bytes."""
    monkeypatch.setattr(stats_module, "RUN", 1000)
    monkeypatch.setattr(stats_module, "PIECE", 300)
    torch.manual_seed(0)
    values = {
        "large": torch.randn(4321),
        "complex": torch.randn(1500, dtype=torch.complex64),
        "view": torch.randn(50, 60).t(),
        "small": torch.tensor([1.0, nan, -inf]),
        "empty": torch.empty(0),
    }
    seen: list[int] = []
    with read(save(values, tmp_path / "w.pth")) as checkpoint:
        tensors = dict(checkpoint.tensors)
        found = all_stats(tensors, threads=threads, advance=seen.append)
    assert list(found) == list(values)
    for name, value in values.items():
        assert_same_stats(found[name], expected(value))
    assert sum(seen) == sum(value.nbytes for value in values.values())


def test_numbers_near_the_largest_have_a_mean(tmp_path):
    value = torch.tensor([1e308, -1e308, 1.5e308], dtype=torch.float64)
    found = stats_of(value, tmp_path / "w.pth")
    assert found is not None
    assert found.mean == pytest.approx(0.5e308)


def test_missing_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_torch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs torch") as caught:
        require_torch()
    assert caught.value.hint == "pip install torch"
