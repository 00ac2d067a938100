"""``ckpt diff`` from the outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def two(folder):
    """Two files that differ in one tensor, in the epoch, and in a name."""
    weights = {f"layers.{i}.weight": torch.arange(4.0) + i for i in range(6)}
    changed = {name: tensor + 0.5 for name, tensor in weights.items()}
    torch.save({"model": {**weights, "a": torch.ones(3)}, "epoch": 1}, "one.pth")
    torch.save({"model": {**changed, "b": torch.ones(3)}, "epoch": 2}, "two.pth")


def test_what_differs_is_listed(two, invoke):
    done = invoke("diff", "one.pth", "two.pth")
    assert (done.exit_code, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a: one.pth (torch-zip, ")
    assert "    a -> b" in lines
    assert "    layers.0.weight: values differ" in lines
    assert lines[-1] == "  epoch: 1 -> 2"
    assert invoke("diff", "one.pth", "two.pth", "-q").stdout == ""


def test_nothing_differs(two, invoke):
    done = invoke("diff", "one.pth", "one.pth")
    assert (done.exit_code, done.stdout) == (0, "no difference: 7 tensors equal\n")


def test_values_are_measured_and_drawn(two, invoke):
    done = invoke("diff", "one.pth", "two.pth", "--values")
    assert "100.00% of values differ, by at most 0.5" in done.stdout
    assert "change by layer, as a share of its norm:" in done.stdout
    assert "█" in done.stdout
    close = invoke("diff", "one.pth", "two.pth", "--values", "--atol", "1", "--at", "model")
    assert "close" in close.stdout


def test_other_forms(two, invoke):
    names = invoke("diff", "one.pth", "two.pth", "--names-only").stdout.splitlines()
    assert names[:2] == ["model/a", "model/b"]
    assert names[-1] == "epoch"
    stat = invoke("diff", "one.pth", "two.pth", "--stat").stdout
    assert "  1 renamed, 6 changed" in stat
    folded = invoke("diff", "one.pth", "two.pth", "--fold").stdout
    assert "    layers.{0..5}.weight (6): values differ" in folded
    document = json.loads(invoke("diff", "one.pth", "two.pth", "--json").stdout)
    assert (document["command"], document["exit_code"]) == ("diff", 1)
    assert document["pairs"][0]["renamed"] == [["a", "b"]]
    assert document["others"] == [{"path": "epoch", "change": "changed", "old": 1, "new": 2}]


def test_a_map_of_names(two, folder, invoke):
    (folder / "map.toml").write_text('"layers.0.weight" = "layers.1.weight"\n')
    done = invoke("diff", "one.pth", "two.pth", "--map", "map.toml", "--names-only")
    assert done.exit_code in {1, 2}
    (folder / "map.toml").write_text('"nothing" = "x"\n')
    refused = invoke("diff", "one.pth", "two.pth", "--map", "map.toml")
    assert (refused.exit_code, "there is no 'nothing'" in refused.stderr) == (2, True)


def test_standard_input(two, folder, invoke):
    done = invoke("diff", "one.pth", "-", stdin=(folder / "one.pth").read_bytes())
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["one.pth"], "two files are compared"),
        (["one.pth", "two.pth", "one.pth"], "two files are compared"),
        (["-", "-"], "standard input is named twice"),
        (["one.pth", "gone.pth"], "cannot be read"),
        (["one.pth", "two.pth", "--stat", "--json"], "contradict each other"),
        (["one.pth", "two.pth", "--fold", "--names-only"], "contradict each other"),
        (["one.pth", "two.pth", "--values", "--structure"], "contradict each other"),
        (["one.pth", "two.pth", "--rtol", "0.1"], "--values"),
        (["one.pth", "two.pth", "--textconv"], "'--textconv' prints one file"),
    ],
)
def test_what_makes_no_sense_is_refused(two, invoke, args, message):
    done = invoke("diff", *args)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_git_diff_shows_what_changed(two, folder, environment):
    def git(*args):
        settings = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", *settings, *args]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, check=True, text=True
        ).stdout

    git("init", "-q")
    (folder / ".gitattributes").write_text("*.pth diff=ckpt\n")
    git("config", "diff.ckpt.textconv", f"{sys.executable} -m ckpt_surgery diff --textconv")
    shutil.copy("one.pth", "model.pth")
    git("add", "model.pth", ".gitattributes")
    git("commit", "-q", "-m", "one")
    shutil.copy("two.pth", "model.pth")
    shown = git("diff", "--no-color").splitlines()
    assert "-epoch: 1" in shown
    assert "+epoch: 2" in shown
    assert any(line.startswith("-model/layers.0.weight: float32 [4] ") for line in shown)
