"""Where a new parameter of a model belongs among the groups of its optimizer."""

from __future__ import annotations

import pytest

from ckpt_surgery.training.optimizers.homes import UNCERTAIN, Homes

NEW = "new"


def home(known: list[object], ndims: list[int], groups: int = 2) -> int | None:
    """The group of the one that is NEW."""
    own = [None if k == NEW else k for k in known]
    homes = Homes(own, [k == NEW for k in known], ndims, groups)  # type: ignore[arg-type]
    return homes.of(known.index(NEW))


@pytest.mark.parametrize(
    ("known", "ndims", "wanted"),
    [
        ([1, 0, NEW, 1, 0], [2, 1, 2, 2, 1], 1),  # split by axes
        ([1, 0, NEW, 1, 0], [2, 1, 1, 2, 1], 0),
        ([NEW, 1, 0, 1, 0], [4, 2, 1, 2, 1], 1),  # also where there is no neighbour
        ([1, 0, 1, 1, NEW, 1], [2, 1, 2, 2, 1, 2], 0),  # rather than by neighbours
        ([1, 0, 1, None, NEW, None], [2, 1, 2, 2, 2, 2], None),  # among frozen ones
        ([0, 0, NEW, 1, 1], [2, 2, 2, 1, 1], UNCERTAIN),  # one after the other
        ([0, NEW, 0, 1, 1], [2, 1, 2, 1, 1], 0),
        ([1, 0, NEW, 1, 0], [2, 2, 2, 2, 1], UNCERTAIN),  # matrices in both
        ([1, 0, UNCERTAIN, NEW, 1], [2, 1, 2, 2, 2], UNCERTAIN),
        ([1, 1, NEW, UNCERTAIN], [2, 1, 2, 2], UNCERTAIN),
        ([0, 0, NEW], [2, 1, 2], 0),
        ([None, NEW], [2, 2], None),
        ([NEW], [2], UNCERTAIN),
    ],
)
def test_a_new_parameter_has_the_home_of_its_like(known, ndims, wanted) -> None:
    assert home(known, ndims) == wanted


def test_one_group_takes_what_is_new() -> None:
    assert home([NEW], [2], groups=1) == 0


@pytest.mark.parametrize(
    ("names", "known", "wanted"),
    [
        (["b.0.w", "b.0.n", "b.1.w", "b.1.n", "b.2.w", "head.w"], [0, 1, 0, 1, NEW, 2], 0),
        (["b.0.w", "b.0.n", "b.1.w", "b.1.n", "b.2.n", "head.w"], [0, 1, 0, 1, NEW, 2], 1),
        (["s.0.b.0.w", "s.0.b.1.w", "s.1.b.0.w", "s.1.b.1.w"], [0, 0, 1, NEW], UNCERTAIN),
        (["b.0.w", "b.1.w", "b.2.w", "head.w"], [0, 1, NEW, 2], UNCERTAIN),  # one a block
        (["b.0.w", "b.1.w", "head.w"], [0, NEW, 1], UNCERTAIN),  # perhaps as well
        (["b.0.w", "b.1.w", "b.2.w", "head.w"], [None, None, NEW, 0], UNCERTAIN),  # frozen
        (["b.0.w", "b.1.w", "b.2.w", "head.w"], [0, UNCERTAIN, NEW, 1], UNCERTAIN),
        (["a.w", "c.w", "head.w"], [0, NEW, 1], UNCERTAIN),
    ],
)
def test_a_new_block_has_the_homes_of_all_other_blocks(names, known, wanted) -> None:
    """Where a head has a group of its own, neither axes nor neighbours tell."""
    own = [None if k == NEW else k for k in known]
    homes = Homes(own, [k == NEW for k in known], [2] * len(known), 3, names)
    assert homes.of(known.index(NEW)) == wanted
