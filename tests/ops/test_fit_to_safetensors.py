"""What is computed is written as safetensors directly, and beside it nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_surgery import Output, fit, merge
from ckpt_surgery.errors import LossyEditError


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = tmp_path / "train.pth"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return path


def test_fit_writes_weights_alone_if_wanted(trained: Path, tmp_path: Path) -> None:
    like, out = tmp_path / "like.pth", tmp_path / "out.safetensors"
    torch.save(torch.nn.Linear(3, 2).state_dict(), like)
    with pytest.raises(LossyEditError, match="'optimizer'"):
        fit(trained, out, like=like)
    report = fit(trained, out, like=like, state_dict_only=True)
    assert report.format == "safetensors"
    assert report.dropped_others == ("optimizer",)
    assert report.optimizers == ()
    expected = torch.load(trained)["model"]
    assert {n: t.tolist() for n, t in load_file(out).items()} == {
        n: t.tolist() for n, t in expected.items()
    }
    assert json.loads(json.dumps(report.to_dict()))["plan"][-1]["edit"] == "convert"


def test_fit_writes_one_of_several_alone(tmp_path: Path) -> None:
    path, like = tmp_path / "two.pth", tmp_path / "like.pth"
    first, second = torch.nn.Linear(3, 2).state_dict(), torch.nn.Linear(3, 2).state_dict()
    torch.save({"model": first, "ema": second}, path)
    torch.save(first, like)
    out = tmp_path / "o.pth"
    report = fit(path, out, like=like, at=["ema"], state_dict_only=True)
    assert report.warnings == ()
    assert torch.equal(torch.load(out)["weight"], second["weight"])


def test_merge_writes_what_it_computes(tmp_path: Path) -> None:
    files = []
    for value in (1.0, 3.0):
        files.append(tmp_path / f"{value}.pth")
        torch.save({"b": torch.full((2, 3), value), "a": torch.full((4,), value)}, files[-1])
    out = tmp_path / "o.safetensors"
    report = merge(files, Output(out), method="average")
    assert report.format == "safetensors"
    assert {name: t.unique().tolist() for name, t in load_file(out).items()} == {
        "a": [2.0],
        "b": [2.0],
    }
