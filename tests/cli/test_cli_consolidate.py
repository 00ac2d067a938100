"""Laws of ``ckpt consolidate`` as a command: what it says, and where its output goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ckpt_surgery.formats import read


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tp").mkdir()
    for rank in range(2):
        state = {"w": torch.full((2, 2), float(rank)), "norm": torch.ones(2)}
        torch.save({"model": state, "epoch": rank}, f"tp/rank{rank}.pth")


AXES = ("--axis", "w=1", "--axis", "norm=copies")


def test_it_says_how_tensors_were_joined_and_what_differs(ranks, invoke):
    result = invoke("consolidate", "tp", *AXES, "-o", "whole.pth")
    assert result.stdout.splitlines()[:4] == [
        "2 files: files of ranks",
        "1 tensor: joined along axis 1",
        "1 tensor: the same on every rank",
        "carried over: epoch",
    ]
    assert "first one's value is kept: epoch" in result.stdout
    assert torch.load("whole.pth")["model"]["w"].tolist() == [[0, 0, 1, 1]] * 2


def test_what_the_format_cannot_hold_is_named(ranks, invoke):
    refused = invoke("consolidate", "tp", *AXES, "-o", "whole.safetensors")
    assert refused.exit_code == 2
    assert "'epoch' (int)" in refused.stderr
    assert not Path("whole.safetensors").exists()
    result = invoke("consolidate", "tp", *AXES, "-o", "whole.safetensors", "--allow-loss")
    assert "removed beside them: epoch" in result.stdout


def test_a_dry_run_and_a_record_say_the_same(ranks, invoke):
    line = ("consolidate", "tp", *AXES)
    dry = invoke(*line, "-o", "whole.pth", "--dry-run", "--json")
    assert not Path("whole.pth").exists()
    invoke(*line, "-o", "whole.pth", "--record", "log.json")
    said, log = json.loads(dry.stdout), json.loads(Path("log.json").read_text())
    assert said["joined"] == log["joined"]
    assert said["joined"][0] == {"name": "model/w", "how": 1, "parts": 2}
    assert said["nbytes_after"] == Path("whole.pth").stat().st_size


def test_its_report_is_applied_again(ranks, invoke):
    invoke("consolidate", "tp", *AXES, "-o", "whole.pth", "--record", "log.json")
    again = invoke("apply", "log.json", "-o", "again.pth")
    assert again.exit_code == 0, again.stderr
    assert Path("again.pth").read_bytes() == Path("whole.pth").read_bytes()
    Path("other").mkdir()
    for rank in range(2):
        state = {"w": torch.full((2, 2), rank + 5.0), "norm": torch.zeros(2)}
        torch.save({"model": state, "epoch": rank}, f"other/rank{rank}.pth")
    invoke("apply", "log.json", "other", "-o", "others.pth")
    assert torch.load("others.pth")["model"]["w"].tolist() == [[5, 5, 6, 6]] * 2


@pytest.mark.parametrize("more", [["--var", "a=1"], ["--input", "base=tp"]])
def test_its_report_has_no_names_to_set(more, ranks, invoke):
    invoke("consolidate", "tp", *AXES, "-o", "whole.pth", "--record", "log.json")
    assert invoke("apply", "log.json", "-o", "again.pth", *more).exit_code == 2


def test_a_report_without_its_plan_is_refused(ranks, invoke):
    Path("log.json").write_text('{"command": "consolidate"}')
    said = invoke("apply", "log.json", "-o", "again.pth")
    assert (said.exit_code, "has no plan to apply" in said.stderr) == (2, True)


def test_it_writes_into_a_pipe(ranks, ckpt):
    done = ckpt("consolidate", "tp", *AXES)
    Path("piped.pth").write_bytes(done.stdout)
    assert b"2 files" in done.stderr
    with read("piped.pth") as checkpoint:
        assert [name for name, _ in checkpoint.tensors] == ["model/w", "model/norm"]


def test_no_rank_is_written_to(ranks, invoke):
    before = Path("tp/rank0.pth").read_bytes()
    result = invoke("consolidate", "tp", *AXES, "-o", "tp/rank0.pth", "--force")
    assert result.exit_code == 2
    assert Path("tp/rank0.pth").read_bytes() == before
