"""Dropping names and entries: what stays, and whose tensors they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckpt_surgery as ckpt
from ckpt_surgery.edits.drop import DropOther
from ckpt_surgery.edits.inputs import Inputs


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Two entries beside the weights that hold one tensor; the first is said to have it."""
    tensor = torch.arange(3.0)
    path = tmp_path / "shared.pth"
    torch.save({"model": {"w": torch.ones(2)}, "a": [tensor], "b": [tensor], "epoch": 1}, path)
    return path


def held(checkpoint: ckpt.Checkpoint) -> dict[str, int]:
    return {other.path: len(other.tensors) for other in checkpoint.others}


def test_a_shared_tensor_is_of_an_entry_that_stays(shared: Path) -> None:
    with ckpt.read(shared) as checkpoint:
        assert held(checkpoint) == {"a": 1, "b": 0, "epoch": 0}
        left = DropOther.apply_all([DropOther("a")], checkpoint, Inputs())
        assert held(left) == {"b": 1, "epoch": 0}
        assert held(DropOther("b").apply(checkpoint, Inputs())) == {"a": 1, "epoch": 0}
