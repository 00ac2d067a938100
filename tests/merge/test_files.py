"""Choosing the files of a merge: directories, patterns, numbers, metrics."""

from __future__ import annotations

import pytest
import torch

from ckpt_surgery import Output, convert, merge
from ckpt_surgery.errors import UsageError
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.merge.choosing import best, expand, last


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for number in (2, 10, 9):
        name = f"run/checkpoint{number}.pt"
        score = torch.tensor(float(number % 10))
        torch.save({"state_dict": {"w": torch.zeros(1)}, "loss": -number, "acc": score}, name)
    torch.save({"w": torch.zeros(1)}, "run/checkpoint_best.pt")
    (tmp_path / "run" / "log.txt").write_text("no checkpoint")
    return tmp_path


def test_a_directory_is_its_checkpoints_in_order_of_their_numbers(run):
    assert expand(["run"]) == [f"run/checkpoint{n}.pt" for n in (2, 9, 10)] + [
        "run/checkpoint_best.pt"
    ]


def test_a_directory_that_is_one_checkpoint_stands_for_itself(run):
    most = LayoutOptions(max_shard_size=50)
    torch.save({"a": torch.ones(9), "b": torch.zeros(9)}, "net.pth")
    for kind in ("safetensors-index", "torch-index", "dcp"):
        options = LayoutOptions() if kind == "dcp" else most
        convert("net.pth", Output(kind, format=kind, options=options))
        assert expand([kind]) == [kind]
        merge(expand([kind, "net.pth"]), Output(f"{kind}.pth"), method="average")
        assert torch.load(f"{kind}.pth")["a"].tolist() == [1.0] * 9


def test_a_pattern_is_the_files_that_match(run):
    assert expand(["run/checkpoint?.pt", "-", "other.pth"]) == [
        "run/checkpoint2.pt", "run/checkpoint9.pt", "-", "other.pth",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["empty", "run/*.nothing"])
def test_what_stands_for_no_file_is_an_error(run, name):
    (run / "empty").mkdir()
    with pytest.raises(UsageError):
        expand([name])


def test_last_takes_the_highest_numbers(run):
    assert last(expand(["run"]), 2) == ["run/checkpoint9.pt", "run/checkpoint10.pt"]


@pytest.mark.parametrize(
    ("files", "count", "message"),
    [
        (["a1.pt", "a2.pt"], 3, "2 files with a number"),
        (["a1.pt", "b2.pt"], 1, "not numbered alike"),
        (["a1.pt"], 0, "no number of files"),
    ],
)
def test_last_refuses_what_has_no_order(files, count, message):
    with pytest.raises(UsageError, match=message):
        last(files, count)


def test_best_compares_a_number_inside_the_files(run):
    files = expand(["run/checkpoint[0-9]*.pt"])
    assert best(files, 2, "loss", higher=False) == ["run/checkpoint10.pt", "run/checkpoint9.pt"]
    assert best(files, 1, "acc", higher=True) == ["run/checkpoint9.pt"]


def test_best_needs_a_finite_number_in_every_file(run):
    files = expand(["run/checkpoint[0-9]*.pt"])
    with pytest.raises(UsageError, match="no number at 'los'") as caught:
        best(files, 2, "los", higher=True)
    assert "'loss'" in caught.value.hint
    with pytest.raises(UsageError, match="no number at 'acc'"):
        best(expand(["run"]), 2, "acc", higher=True)
    with pytest.raises(UsageError, match="there are 3 files"):
        best(files, 4, "acc", higher=True)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "loss": float("nan")}, "nan.pt")
    with pytest.raises(UsageError, match="no finite number"):
        best([*files, "nan.pt"], 1, "loss", higher=True)
