"""Element types: which to work in, and one rounding on the way back."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery import dtypes
from ckpt_surgery.compute import casting

NARROW = [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


def neighbours(dtype):
    """Every finite value of a narrow type, as exact fractions with their bits."""
    bits = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int64)
    signed = bits.to(torch.int16 if dtype.itemsize == 2 else torch.uint8)
    values = signed.view(dtype).float()
    return sorted({float(v) for v in values[values.isfinite()]})


TABLE = {dtype: neighbours(dtype) for dtype in NARROW}


def nearest_even(value, dtype):
    """The correctly rounded value, by exact comparison; None if it overflows."""
    import bisect

    table = TABLE[dtype]
    place = bisect.bisect_left(table, value)
    if place == 0 or place == len(table):
        return value if place < len(table) and table[place] == value else None
    low, high = table[place - 1], table[place]
    to_low = Fraction(value) - Fraction(low)
    to_high = Fraction(high) - Fraction(value)
    if to_low != to_high:
        return low if to_low < to_high else high
    even = torch.tensor([low, high]).to(dtype)
    raw = even.view(torch.int16 if dtype.itemsize == 2 else torch.uint8)
    return low if int(raw[0]) % 2 == 0 else high


@settings(deadline=None)
@given(
    st.sampled_from(NARROW),
    st.integers(0, 2**16 - 2),
    st.floats(0, 1),
    st.sampled_from([0.0, 2.0**-40, -(2.0**-40), 2.0**-52]),
)
def test_float64_is_rounded_once(dtype, place, share, nudge):
    table = TABLE[dtype]
    low, high = (table[min(place + i, len(table) - 2 + i) % len(table)] for i in range(2))
    if high < low:
        low, high = table[0], table[1]
    middle = low + (high - low) * (max(share, 0.5))
    value = middle * (1 + nudge)
    expected = nearest_even(value, dtype)
    if expected is not None:
        rounded = casting.round_to(torch.tensor([value], dtype=torch.float64), dtype)
        assert float(rounded.float()) == expected


def test_torch_alone_rounds_twice():
    """The reason for rounding to odd: just above the middle, by less than float32 can say."""
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert float(value.to(torch.bfloat16)) == 1.0
    assert float(casting.round_to(value, torch.bfloat16)) == 1 + 2.0**-7


def test_infinity_nan_and_overflow_survive_rounding():
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e300, -1e300, -0.0])
    values = values.double()
    rounded = casting.round_to(values, torch.bfloat16)
    assert rounded[:2].tolist() == [float("inf"), float("-inf")]
    assert rounded[2].isnan()
    assert rounded[3:5].tolist() == [float("inf"), float("-inf")]
    assert rounded[5] == 0
    assert rounded[5].signbit()


def test_to_float32_and_wider_is_a_plain_cast():
    values = torch.randn(100, dtype=torch.float64)
    assert torch.equal(casting.round_to(values, torch.float32), values.float())
    assert torch.equal(casting.round_to(values.float(), torch.float64), values.float().double())


def test_work_type_has_twice_the_digits():
    assert casting.work_dtype([torch.bfloat16, torch.float16]) == torch.float32
    assert casting.work_dtype([torch.float8_e4m3fn]) == torch.float32
    assert casting.work_dtype([torch.bfloat16, torch.float32]) == torch.float64
    assert casting.work_dtype([torch.float64]) == torch.float64


@pytest.mark.parametrize("dtype", dtypes.BY_NAME.values(), ids=lambda d: d.name)
def test_every_element_type_has_a_category(dtype):
    category = casting.category(dtype)
    if dtype.kind in {"quantized", "bits"}:
        assert category == "opaque"
    if category in {"real", "complex"}:
        assert casting.torch_dtype(dtype).is_floating_point or category == "complex"
        values = torch.ones(2).to(casting.torch_dtype(dtype))
        assert casting.real_view(values).to(torch.float32).numel() in {2, 4}
    if category == "integer":
        assert torch.ones(2).to(casting.torch_dtype(dtype)).long().tolist() == [1, 1]


def test_packed_types_are_opaque():
    for name in ("float4_e2m1fn_x2", "float8_e8m0fnu", "uint4", "int3", "quint4x2"):
        assert casting.category(dtypes.BY_NAME[name]) == "opaque"


def test_real_dtype_of_complex_types():
    assert casting.real_dtype(torch.complex64) == torch.float32
    assert casting.real_dtype(torch.float16) == torch.float16
