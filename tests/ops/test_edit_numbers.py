"""Numbers that edits compute: what an element type does not hold is said, with leave written."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ckpt_surgery.cli.main import cli


def run(*line: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in line])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(
        {
            "half": torch.full((2, 3), 1000.0).half(),
            "wide": torch.tensor([1e308, 1.0], dtype=torch.float64),
            "ids": torch.arange(4),
            "large": torch.tensor([2**60 + 1]),
            "small": torch.full((3,), 100, dtype=torch.int8),
            "mask": torch.tensor([True]),
            "z": torch.tensor([1 + 2j]),
            "big": torch.full((3, 4), 1e9),
        },
        tmp_path / "in.pth",
    )
    return tmp_path / "in.pth"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("--scale half=1000", "6 become infinite"),
        ("--add half=70000", "6 become infinite"),
        ("--fill half=constant:1e9", "6 become infinite"),
        ("--fill half=normal:1e9:1", "6 become infinite"),
        ("--pad half=0:3:1e9", "3 become infinite"),
        ("--scale wide=100", "1 becomes infinite"),
        ("--scale ids=0.5", "2 are rounded"),
        ("--add ids=0.5", "4 are rounded"),
        ("--fill ids=constant:0.5", "4 are rounded"),
        ("--fill ids=constant:nan", "4 are NaN"),
        ("--repeat ids=0:2:mean", "4 are rounded"),
        ("--scale large=2", "1 is rounded"),
        ("--scale small=2", "3 wrap around"),
        ("--pad small=0:4:300", "1 wraps around"),
        ("--scale mask=2", "1 is rounded"),
    ],
)
def test_a_number_that_the_type_does_not_hold_is_refused_without_leave(rule, said, file, tmp_path):
    error = run("edit", file, *rule.split(), "-o", tmp_path / "out.pth", code=2)
    assert said in error
    assert "in.pth" in error
    assert rule.split()[1].partition("=")[0] in error
    assert not (tmp_path / "out.pth").exists()
    report = run("edit", file, *rule.split(), "--allow-loss", "-o", tmp_path / "out.pth")
    assert said.partition(" ")[2].split()[-1] in report


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("--fill half=constant:-inf", torch.full((2, 3), -torch.inf).half()),
        ("--pad half=0:3:inf", torch.tensor([[1000.0] * 3] * 2 + [[torch.inf] * 3]).half()),
        ("--scale ids=3", torch.arange(4) * 3),
        ("--scale z=2", torch.tensor([2 + 4j])),
        ("--add half=0.25", torch.full((2, 3), 1000.0).half() + 0.25),
        ("--fill mask=ones", torch.tensor([True])),
    ],
)
def test_what_the_type_holds_needs_no_leave(rule, wanted, file, tmp_path):
    run("edit", file, *rule.split(), "-o", tmp_path / "out.pth")
    name = rule.split()[1].partition("=")[0]
    assert torch.equal(torch.load(tmp_path / "out.pth")[name], wanted)


@pytest.mark.parametrize(
    "rules",
    [
        "--cast big=float16 --transpose big",
        "--cast big=float16 --cast big=float32",
        "--cast big=float16 --split big=a,b,c",
        "--cast big=float16 --concat big,big2=c",
        "--cast big=float16 --transpose big --copy big=other",
    ],
)
def test_leave_reaches_numbers_that_others_are_made_of(rules, file, tmp_path):
    more = ["--copy", "big=big2", "--cast", "big2=float16"] if "big2" in rules else []
    line = ["edit", file, *more, *rules.split(), "-o", tmp_path / "out.pth"]
    assert "in.pth" in run(*line, code=2)
    assert "12 become infinite" in run(*line, "--allow-loss")
    assert (tmp_path / "out.pth").exists()


def test_a_fold_that_makes_infinity_is_refused(tmp_path):
    net = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval()
    state = net.half().state_dict()
    state["1.running_var"].fill_(0)
    state["1.weight"].fill_(60000)
    torch.save(state, tmp_path / "in.pth")
    line = ["edit", tmp_path / "in.pth", "--fold-batch-norm", "0=1", "-o", tmp_path / "out.pth"]
    assert "infinite" in run(*line, code=2)
    run(*line, "--allow-loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a weight norm of this style
        normed = nn.utils.weight_norm(nn.Linear(2, 1))
    normed.weight_v.data.zero_()
    torch.save(normed.state_dict(), tmp_path / "zero.pth")
    line = ["edit", tmp_path / "zero.pth", "--fold-weight-norm", "**", "-o", tmp_path / "no.pth"]
    assert "2 become infinite" in run(*line, code=2)


@pytest.mark.parametrize(
    "rules",
    ["--transpose 2.weight", "--transpose 0.weight", "--cast 2.*=float64", "--copy 0.bias=x"],
)
def test_the_file_is_what_torch_saves_of_the_edited_object(rules, tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3)).state_dict(),
               tmp_path / "net.pth")  # fmt: skip
    (tmp_path / "out").mkdir()
    run("edit", tmp_path / "net.pth", *rules.split(), "-o", tmp_path / "out" / "net.pth")
    torch.save(torch.load(tmp_path / "out" / "net.pth"), tmp_path / "net.pth")
    assert (tmp_path / "out" / "net.pth").read_bytes() == (tmp_path / "net.pth").read_bytes()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("--scale half=nan", "'nan' is no finite number"),
        ("--scale half=two", "'two' is no number"),
        ("--slice half=0", "'0' is not of that form"),
        ("--slice half=0:a:b", "'a' is no whole number"),
        ("--take half=0", "'0' is not of that form"),
        ("--take half=0:1,y", "'y' is no whole number"),
        ("--unsqueeze half=5", "no axis can be put in before axis 5 of [2, 3]"),
    ],
)
def test_what_is_no_rule_is_said_in_words(rule, said, file, tmp_path):
    assert said in run("edit", file, *rule.split(), "-o", tmp_path / "out.pth", code=2)
