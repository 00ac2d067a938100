"""Policies for integers and bools: exact, or refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery.errors import LossyEditError, MismatchError, UsageError
from ckpt_surgery.merge.integers import merge_integers
from ckpt_surgery.merge.policies import INTEGER_POLICIES

SIGNED = {torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


@st.composite
def integers(draw):
    dtype = draw(st.sampled_from([*SIGNED, torch.uint8, torch.uint16, torch.uint32]))
    info = torch.iinfo(dtype)
    count = draw(st.integers(1, 5))
    number = st.one_of(
        st.integers(info.min, info.max),
        st.sampled_from([info.min, info.max, 0, 1]),
        st.integers(max(info.min, -5), 5),
    )
    rows = [draw(st.lists(number, min_size=3, max_size=3)) for _ in range(count)]
    return dtype, rows


def merged(policy, dtype, rows, name="steps"):
    return merge_integers(name, [torch.tensor(row, dtype=dtype) for row in rows], policy)


@settings(deadline=None)
@given(integers())
def test_max_mean_and_sum_are_exact_in_whole_numbers(made):
    dtype, rows = made
    columns = list(zip(*rows, strict=True))
    assert merged("max", dtype, rows).tolist() == [max(column) for column in columns]
    # Python's round() of a fraction goes to the nearest, ties to even
    from fractions import Fraction

    means = [round(Fraction(sum(column), len(column))) for column in columns]
    assert merged("mean", dtype, rows).tolist() == means
    sums = [sum(column) for column in columns]
    info = torch.iinfo(dtype)
    if all(info.min <= total <= info.max for total in sums):
        result = merged("sum", dtype, rows)
        assert result.tolist() == sums
        assert result.dtype == dtype
    else:
        with pytest.raises(LossyEditError, match="the sum of 'steps' does not fit"):
            merged("sum", dtype, rows)


def test_a_sum_may_pass_the_limit_on_its_way():
    top = torch.iinfo(torch.int64).max
    assert merged("sum", torch.int64, [[top], [1], [-1]]).tolist() == [top]
    assert merged("sum", torch.int64, [[-top], [-5], [5]]).tolist() == [-top]


def test_the_counter_of_batches_comes_from_the_base_and_others_must_agree():
    name = "layer1.0.bn1.num_batches_tracked"
    assert merged("auto", torch.int64, [[5], [9]], name).tolist() == [5]
    assert merged("auto", torch.int64, [[5], [5]]).tolist() == [5]
    with pytest.raises(MismatchError) as caught:
        merge_integers("ids", [torch.tensor(1), torch.tensor(2)], labels=["a.pth", "b.pth"])
    assert "the int64 tensor 'ids' differs in 'a.pth' and 'b.pth'" in str(caught.value)
    assert "--int" in caught.value.hint


def test_error_refuses_the_counter_too():
    with pytest.raises(MismatchError):
        merged("error", torch.int64, [[5], [9]], "bn.num_batches_tracked")


def test_base_takes_the_first_and_copies_it():
    first = torch.tensor([1, 2])
    result = merge_integers("x", [first, torch.tensor([3, 4])], "base")
    assert result.tolist() == [1, 2]
    result += 1
    assert first.tolist() == [1, 2]


def test_bools_vote():
    votes = [torch.tensor(row) for row in ([True, False, True], [True, False, False])]
    assert merge_integers("m", votes, "max").tolist() == [True, False, True]
    assert merge_integers("m", votes, "sum").tolist() == [True, False, True]
    assert merge_integers("m", votes, "mean").tolist() == [True, False, True]
    assert merge_integers("m", votes[::-1], "mean").tolist() == [True, False, False]
    third = torch.tensor([False, True, False])
    assert merge_integers("m", [*votes, third], "mean").tolist() == [True, False, False]


def test_integers_of_different_widths():
    wide, narrow = torch.tensor([300, 5]), torch.tensor([7, 5], dtype=torch.int8)
    assert merge_integers("x", [wide, narrow], "max").tolist() == [300, 7 - 2]
    with pytest.raises(LossyEditError, match="does not fit int8"):
        merge_integers("x", [narrow, wide], "max")
    assert merge_integers("x", [narrow[1:], wide[1:]], "error").dtype == torch.int8
    with pytest.raises(LossyEditError, match="does not fit bool"):
        merge_integers("x", [torch.tensor([True]), torch.tensor([2])], "max")


def test_unsigned_64_bits():
    top = 2**64 - 1
    made = [torch.tensor([top, 3], dtype=torch.uint64), torch.tensor([1, 9], dtype=torch.uint64)]
    assert merge_integers("x", made, "max").tolist() == [top, 9]
    assert merge_integers("x", made, "base").tolist() == [top, 3]
    assert merge_integers("x", [made[0], made[0].clone()], "error").tolist() == [top, 3]
    for policy in ("sum", "mean"):
        with pytest.raises(UsageError, match=f"the uint64 tensor 'x' has no {policy}"):
            merge_integers("x", made, policy)
    with pytest.raises(MismatchError):
        merge_integers("x", made)
    with pytest.raises(MismatchError):  # no common type to compare in
        merge_integers("x", [made[0], torch.tensor([1, 3])])


@pytest.mark.parametrize("policy", INTEGER_POLICIES)
def test_shapes_that_differ_are_refused(policy):
    with pytest.raises(MismatchError, match="shapes"):
        merge_integers("x", [torch.tensor([1]), torch.tensor([1, 2])], policy)


@pytest.mark.parametrize("policy", INTEGER_POLICIES)
def test_scalars_and_empty_tensors_pass(policy):
    for made in (torch.tensor(4), torch.zeros(0, 3, dtype=torch.int64)):
        result = merge_integers("x", [made, made.clone()], policy)
        assert result.shape == made.shape
        assert result.dtype == made.dtype
