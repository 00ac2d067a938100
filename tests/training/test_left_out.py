"""Optimizers that are to be left out of containers that hold other things, or nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from ckpt_surgery.cli.main import cli


def training(*more: Any) -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "stuff": [optimizer.state_dict(), *more]}


def left_out(folder: Path, saved: dict[str, Any]) -> tuple[Result, Path]:
    torch.save(saved, folder / "train.pth")
    out = folder / "out.pth"
    line = ["strip", str(folder / "train.pth"), "1.bias", "--optimizer", "drop", "-o", str(out)]
    return CliRunner().invoke(cli, line), out


def test_container_of_nothing_else_goes_with_the_optimizer(tmp_path: Path) -> None:
    done, out = left_out(tmp_path, training())
    assert done.exit_code == 0, done.output
    assert list(torch.load(out)) == ["model"]


@pytest.mark.parametrize("beside", ["kept", [1, 2]])
def test_container_of_other_things_is_not_left_out(tmp_path: Path, beside: Any) -> None:
    done, out = left_out(tmp_path, training(beside))
    assert done.exit_code == 2
    assert "holds other things too" in done.stderr
    assert not out.exists()
