"""Of what an edit computes it is said what it has no longer; a parameter stays one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from ckpt_surgery.cli.main import cli


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


MADE_ANEW = [
    ("--scale", "w=2"),
    ("--transpose", "w"),
    ("--reshape", "w=12"),
    ("--fill", "w=zeros"),
    ("--cast", "w=float16"),
    ("--clone", "w"),
    ("--untie", "w"),
    ("--copy", "w=v"),
    ("--split", "w=x,y"),
    ("--concat", "{w,v}=z"),
]


@pytest.mark.parametrize("rule", MADE_ANEW, ids=[option for option, _ in MADE_ANEW])
def test_a_parameter_made_anew_stays_one_and_attributes_that_go_are_said(rule, tmp_path):
    weight, other = (nn.Parameter(torch.rand(4, 3), requires_grad=False) for _ in range(2))
    weight.note = "kept by hand"
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"w": weight} if rule[0] == "--copy" else {"w": weight, "v": other}, source)
    done = ckpt("edit", source, *rule, "-o", target)
    assert done.exit_code == 0, done.output
    assert "without the class or the attributes before: 'w'" in done.output
    found = torch.load(target, weights_only=False)
    assert all(isinstance(each, nn.Parameter) for each in found.values())
    assert not any(each.requires_grad for each in found.values())


def test_a_parameter_that_fit_converts_stays_one_and_its_attributes_are_said(tmp_path):
    weight = nn.Parameter(torch.rand(4, 3), requires_grad=False)
    weight.note = "kept by hand"
    torch.save({"w": weight}, tmp_path / "a.pth")
    torch.save({"w": weight.data.half()}, tmp_path / "like.pth")
    paths = (tmp_path / "a.pth", "--like", tmp_path / "like.pth", "-o", tmp_path / "b.pth")
    done = ckpt("fit", *paths)
    assert done.exit_code == 0, done.output
    assert "without the class or the attributes before: 'w'" in done.output
    found = torch.load(tmp_path / "b.pth", weights_only=False)["w"]
    assert isinstance(found, nn.Parameter)
    assert torch.equal(found.data, weight.data.half())
