"""Shapes that differ: refused, left out, taken from the base, or merged where they overlap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery.errors import MismatchError
from ckpt_surgery.merge.policies import SHAPE_POLICIES, Region, agree, leading

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 4), st.sampled_from(SHAPE_POLICIES))
def test_equal_shapes_are_merged_whatever_the_policy(shape, count, policy):
    assert agree("w", [shape] * count, policy) == Region("merge", shape)


def test_the_error_names_both_shapes_and_files():
    with pytest.raises(MismatchError) as caught:
        agree("fc.weight", [(10, 4), (10, 4), (5, 4)], labels=["a.pth", "b.pth", "c.pth"])
    message = "'fc.weight' has the shapes (10, 4) and (5, 4) in 'a.pth' and 'c.pth'"
    assert message in str(caught.value)
    assert caught.value.entry == "fc.weight"
    assert "--on-shape" in caught.value.hint


def test_skip_and_base_do_what_they_say():
    shapes = [(10, 4), (5, 4)]
    assert agree("w", shapes, "skip").action == "skip"
    assert agree("w", shapes, "base") == Region("base", (10, 4))


@settings(deadline=None)
@given(st.lists(SHAPES, min_size=2, max_size=4))
def test_overlap_is_the_largest_block_in_all(shapes):
    region = agree("w", shapes, "overlap")
    if all(shape == shapes[0] for shape in shapes):
        assert region.action == "merge"
    elif any(len(shape) != len(shapes[0]) for shape in shapes):
        assert region.action == "base"
    else:
        blocks = [torch.zeros(shape)[leading(region.shape)].shape for shape in shapes]
        if region.action == "overlap":
            assert all(tuple(block) == region.shape for block in blocks)
            assert torch.zeros(region.shape).numel() > 0
        else:
            assert any(0 in shape for shape in shapes)


def test_a_scalar_has_the_empty_index():
    assert torch.tensor(3.0)[leading(())] == 3.0
