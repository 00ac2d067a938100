"""Rules of values on small checkpoints: what they make, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckpt_surgery as ckpt
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.parts import Concat
from ckpt_surgery.edits.rearrange import Permute, Reshape
from ckpt_surgery.edits.share import Tie
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import PlanError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    weights = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(2, 3),
        "long": torch.zeros(3, 2),
        "i": torch.zeros(2, 3, dtype=torch.int32),
        "odd": torch.zeros(3, 3),
    }
    torch.save(weights, path)
    return path


@pytest.mark.parametrize(("how", "value"), [("zeros", 0.0), ("ones", 1.0), ("constant:2", 2.0)])
def test_fill_puts_the_constant_that_its_word_means(file: Path, how: str, value: float) -> None:
    with ckpt.read(file) as checkpoint:
        (edit,) = ValueRule("fill", f"a={how}").edits(checkpoint.state_dicts[0])
    assert (edit.how, edit.value) == ("constant", value)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["zeros:1", "constant", "nothing"])
def test_fill_in_no_way_there_is_is_refused(file: Path, how: str) -> None:
    with ckpt.read(file) as checkpoint, pytest.raises(UsageError, match="is no way to fill"):
        ValueRule("fill", f"a={how}").edits(checkpoint.state_dicts[0])


@pytest.mark.parametrize("dims", [(0, 0), (0,), (0, 1, 2), (1, -1)])
def test_permute_takes_each_axis_once(dims: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=r"is no order of the axes of|there is no dim"):
        Permute("", "a", dims).shape((2, 3))
    assert Permute("", "a", (1, 0)).shape((2, 3)) == (3, 2)


def test_reshape_infers_one_size_and_no_more() -> None:
    assert Reshape("", "a", (3, -1)).shape((2, 3)) == (3, 2)
    assert Reshape("", "a", (-1,)).shape(()) == (1,)
    for sizes in ((-1, -1), (-2, 3), (4, -1), (5,), (0, -1)):
        with pytest.raises(PlanError):
            Reshape("", "a", sizes).shape((2, 3))


def test_tied_names_have_one_shape_and_type(file: Path) -> None:
    with ckpt.read(file) as checkpoint:
        tied = Tie("", "b", "a").apply(checkpoint, Inputs())
        tensors = dict(tied.state_dicts[0].tensors)
        assert tensors["a"] is tensors["b"]
        for other in ("long", "i"):
            with pytest.raises(PlanError, match="cannot be tied to"):
                Tie("", other, "a").apply(checkpoint, Inputs())


def test_parts_that_the_heads_do_not_divide_are_not_joined(file: Path) -> None:
    with ckpt.read(file) as checkpoint:
        with pytest.raises(PlanError, match="are no multiples of 2 heads"):
            Concat("", ("a", "odd"), "joined", 0, heads=2).apply(checkpoint, Inputs())
        joined = Concat("", ("a", "b"), "joined", 0, heads=2).apply(checkpoint, Inputs())
        assert dict(joined.state_dicts[0].tensors)["joined"].shape == (4, 3)
