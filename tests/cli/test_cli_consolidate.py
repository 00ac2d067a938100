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


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (["--format", "safetensors", "--metadata", "author=me", "--allow-loss"], "a", "b"),
        (["--allow-loss", "--format", "safetensors-index"], "a", "b"),
        (["--provenance", "--plain", "--device", "cpu"], "a.pth", "b.pth"),
    ],
)
def test_what_its_output_was_is_done_again(options, first, second, ranks, invoke):
    invoke("consolidate", "tp", *AXES, "-o", first, *options, "--record", "log.json")
    again = invoke("apply", "log.json", "-o", second, "--record", "again.json")
    assert again.exit_code == 0, again.stderr
    plans = [json.loads(Path(name).read_text())["plan"] for name in ("log.json", "again.json")]
    assert plans[0] == plans[1]
    assert contents(second) == contents(first)


def contents(name):
    files = sorted(Path(name).iterdir()) if Path(name).is_dir() else [Path(name)]
    return [each.read_bytes() for each in files]


def test_files_of_ranks_that_changed_are_not_put_together_again(ranks, invoke):
    invoke("consolidate", "tp", *AXES, "-o", "whole.pth", "--record", "log.json")
    before = Path("tp/rank1.pth").read_bytes()
    torch.save({"model": {"w": torch.zeros(2, 2), "norm": torch.ones(2)}}, "tp/rank1.pth")
    said = invoke("apply", "log.json", "-o", "again.pth")
    assert (said.exit_code, Path("again.pth").exists()) == (2, False)
    assert "'tp/rank1.pth': is not the file that it was when this was recorded" in said.stderr
    assert invoke("apply", "log.json", "tp", "-o", "again.pth").exit_code == 0
    Path("tp/rank1.pth").write_bytes(before)
    Path("tp/rank2.pth").write_bytes(before)
    said = invoke("apply", "log.json", "-o", "more.pth")
    assert "'tp/rank2.pth': was not there when this was recorded" in said.stderr


def test_its_report_is_not_written_over(ranks, invoke):
    invoke("consolidate", "tp", *AXES, "-o", "whole.pth", "--record", "log.json")
    before = Path("log.json").read_bytes()
    said = invoke("apply", "log.json", "-o", "log.json", "--format", "torch-zip", "--force")
    assert (said.exit_code, Path("log.json").read_bytes()) == (2, before)


def test_its_report_may_come_through_a_pipe(ranks, invoke):
    document = invoke("consolidate", "tp", *AXES, "-o", "whole.pth", "--json").stdout_bytes
    done = invoke("apply", "-", "-o", "again.pth", stdin=document)
    assert done.exit_code == 0, done.stderr
    assert Path("again.pth").read_bytes() == Path("whole.pth").read_bytes()


@pytest.mark.parametrize(
    ("field", "value"), [("axes", 5), ("axes", [5]), ("files", []), ("files", 5), ("files", None)]
)
def test_a_report_that_was_changed_is_refused(field, value, ranks, invoke):
    plan = {"edit": "consolidate", "files": ["tp"], "axes": []} | {field: value}
    Path("log.json").write_text(json.dumps({"command": "consolidate", "plan": [plan]}))
    said = invoke("apply", "log.json", "-o", "again.pth")
    assert (said.exit_code, f"'{field}'" in said.stderr or "files" in said.stderr) == (2, True)
    assert "bug" not in said.stderr


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
