"""What a conversion did to numbers is counted exactly, whatever the two types."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery.compute.casting import cast, count_cast
from ckpt_surgery.compute.casts import CastCount, CastTally, tallies_of
from ckpt_surgery.compute.lazy import _LazyBytes
from ckpt_surgery.errors import LossyEditError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
          torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]  # fmt: skip
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.uint16, torch.uint32, torch.uint64]  # fmt: skip
TYPES = [*FLOATS, *INTEGERS, torch.bool]
NUMBERS = [0, 1, -1, 2, 3, 127, 128, -128, -129, 255, 256, 2047, 2049, 32767, -32769, 65504, 65535,
           65536, 2**24 + 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**62, 2**63 - 1, -(2**63),
           2**63, 2**64 - 1, 2**64 - 2**11, 0.5, -0.5, 1.5, 1e-3, 1e-8, 1e-30, 1e-310, 1e6, -7e4,
           1e30, 1e300, math.inf, -math.inf, math.nan]  # fmt: skip


def tensor_of(number, dtype):
    """A tensor of one number, or None if the type does not have it."""
    try:
        found = torch.tensor([number], dtype=dtype)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None
    return found if _same(exact(found), number) else None


def exact(tensor):
    """The number in a tensor of one: an int, a fraction, or what is not finite."""
    value = tensor.double().item() if tensor.is_floating_point() else int(tensor.item())
    return value if isinstance(value, int) or not math.isfinite(value) else Fraction(value)


def _same(one, other):
    return one == other or (one != one and other != other)


def expected(before, after, target):
    """The category of one number, by exact comparison."""
    finite = isinstance(before, int | Fraction)
    if target.is_floating_point:
        if not finite:
            return CastCount()
        if not isinstance(after, int | Fraction):
            return CastCount(infinite=1)
        if isinstance(before, int):
            return CastCount(rounded=int(after != before))
        return CastCount(zero=int(before != 0 and after == 0))
    if before != before:
        return CastCount(nan=1)
    if target == torch.bool:
        return CastCount(rounded=int(before not in (0, 1)))
    bounds = torch.iinfo(target)
    if not finite or not bounds.min <= math.trunc(before) <= bounds.max:
        return CastCount(wrapped=1)
    return CastCount(rounded=int(math.trunc(before) != before))


@pytest.mark.parametrize("target", TYPES, ids=str)
@pytest.mark.parametrize("source", TYPES, ids=str)
def test_every_number_of_every_type_is_counted_rightly(source, target):
    tensors = [found for n in NUMBERS if (found := tensor_of(n, source)) is not None]
    assert tensors
    total = CastCount()
    for tensor in tensors:
        result, count = cast(tensor, target)
        wanted = CastCount()
        if source != target:
            wanted = expected(exact(tensor), exact(result), target)
        assert count == wanted, (tensor, result)
        total += count
    together = torch.cat(tensors)
    assert count_cast(together, together.to(target)) == total


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1), st.sampled_from(FLOATS))
def test_parts_add_up(numbers, target):
    values = torch.tensor(numbers)
    result, whole = cast(values, target)
    parts = [count_cast(values[i : i + 3], result[i : i + 3]) for i in range(0, len(values), 3)]
    assert sum(parts, CastCount()) == whole


def test_complex_numbers_count_as_two():
    values = torch.tensor([complex(1e300, 1), complex(1e-300, 1e300)], dtype=torch.complex128)
    result, count = cast(values, torch.complex64)
    assert (result.dtype, count) == (torch.complex64, CastCount(infinite=2, zero=1))
    assert cast(torch.tensor([1e300], dtype=torch.float64), torch.complex64)[1] == CastCount(
        infinite=1
    )
    assert count_cast(values, values.to(torch.complex64), zeros=False) == CastCount(infinite=2)


def test_float64_is_rounded_once_in_a_cast():
    value = torch.tensor([1 + 2**-11 + 2**-40], dtype=torch.float64)
    assert cast(value, torch.float16)[0].item() == 1 + 2**-10  # by way of float32 it is 1


def test_a_loss_is_refused_and_zeros_are_not():
    tally = CastTally("w", "float32", "int8", 9)
    tally.add(CastCount(zero=2))
    for lossy in ("infinite", "wrapped", "nan", "rounded"):
        with pytest.raises(LossyEditError, match="not all numbers fit the element type int8") as e:
            tally.add(CastCount(**{lossy: 1}))
        assert (e.value.entry, "--allow-loss" in str(e.value.hint)) == ("w", True)
    tally.allow_loss = True
    tally.add(CastCount(infinite=3, nan=1))
    assert tally.cast.count.words == "3 become infinite, 1 is NaN"


def test_what_is_computed_twice_counts_once():
    tally = CastTally("w", "float32", "float16", 9)
    assert tally.cast.to_dict() == {
        "name": "w", "from": "float32", "to": "float16", "elements": 9,
        "infinite": None, "zero": None, "wrapped": None, "nan": None, "rounded": None,
            "error": None,
    }  # fmt: skip
    for _ in range(2):  # a digest of the output, then the output
        tally.add(CastCount(zero=1), part=0)
        tally.add(CastCount(zero=2), part=5)
    assert tally.cast.count == CastCount(zero=3)
    assert tally.cast.to_dict()["zero"] == 3
    assert tally.cast.changes_type
    assert not CastTally("w", "float16", "float16", 9).cast.changes_type


def test_the_tallies_of_sources_are_found_once():
    tally = CastTally("w", "float32", "float16", 1)
    source = _LazyBytes(2, lambda: torch.zeros(1).half(), tally=tally)
    assert tallies_of([source, b"", _LazyBytes(2, lambda: torch.zeros(1)), source]) == [tally]
