"""What a file keeps of how it came about: torch and safetensors load it, inspect shows it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

import ckpt_surgery
from ckpt_surgery.cli.main import cli


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"model": {"a.w": torch.ones(2, 3), "b.w": torch.zeros(2)}}, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def steps(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(ckpt("inspect", path, "--json").stdout)[
        "provenance"
    ]
    return found


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_says_how_it_came_about_and_loads(file, suffix, tmp_path):
    out, again = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
    line = ("strip", file, "b.w", "--state-dict-only", "-o", out, "--provenance")
    result = ckpt(*line, "--record", tmp_path / "r.json")
    assert result.exit_code == 0, result.stderr
    assert "provenance: kept in the file" in result.stdout
    (step,) = steps(out)
    assert step["version"] == ckpt_surgery.__version__
    assert step["command"] == "strip"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert step["inputs"] == [{"file": str(file), "sha256": digest}]
    assert step["plan"][0] == {"edit": "drop", "state_dict": "model", "name": "b.w"}
    assert (
        f"ckpt {ckpt_surgery.__version__}: strip of '{file}', 2 edits"
        in ckpt("inspect", out).stdout
    )
    assert ckpt("apply", tmp_path / "r.json", "-o", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()
    if suffix == "pth":
        assert list(torch.load(out, weights_only=True)) == ["a.w"]
        assert list(torch.load(out, weights_only=True, mmap=True)) == ["a.w"]
        assert zipfile.ZipFile(out).testzip() is None
        assert ckpt("verify", out).exit_code == 0
    else:
        with safe_open(out, "pt") as opened:
            assert json.loads(opened.metadata()["ckpt_provenance"]) == [step]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_history_is_carried_and_grows(file, suffix, tmp_path):
    files = [tmp_path / f"{number}.{suffix}" for number in range(3)]
    ckpt("strip", file, "b.w", "--state-dict-only", "-o", files[0], "--provenance")
    ckpt("rename", files[0], "--add-prefix", "net", "-o", files[1])
    assert steps(files[1]) == steps(files[0])
    assert ckpt("edit", files[1], "--scale", "net=2", "-o", files[2], "--provenance").exit_code == 0
    first, second = steps(files[2])
    assert [first] == steps(files[0])
    assert second["command"] == "edit"
    assert ckpt("rename", files[2], "--strip-prefix", "net", "-i", "--provenance").exit_code == 0
    assert [step["command"] for step in steps(files[2])] == ["strip", "edit", "rename"]


def test_every_verb_that_writes_keeps_it(file, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[inputs]\na = "{file}"\n[[steps]]\nrename = {{ add-prefix = "x" }}\n'
        f'[[outputs]]\nfile = "{tmp_path / "apply.pth"}"\nprovenance = true\n'
    )
    for command, line in {
        "convert": ("convert", file),
        "merge": ("merge", file, file, "-m", "linear"),
        "fit": ("fit", file, "--like", file),
        "set": ("set", file, "epoch=3"),
    }.items():
        out = tmp_path / f"{command}.pth"
        assert ckpt(*line, "-o", out, "--provenance").exit_code == 0
        assert [step["command"] for step in steps(out)] == [command]
    assert ckpt("apply", recipe, "--record", tmp_path / "r.json").exit_code == 0
    written = (tmp_path / "apply.pth").read_bytes()
    assert ckpt("apply", tmp_path / "r.json", "--force").exit_code == 0
    assert (tmp_path / "apply.pth").read_bytes() == written
    (step,) = steps(tmp_path / "apply.pth")
    assert [edit["edit"] for edit in step["plan"]] == ["rename", "rename"]


def test_format_that_cannot_keep_it_refuses(file, tmp_path):
    line = ("convert", file, "--state-dict-only", "--format", "safetensors-index", "--provenance")
    result = ckpt(*line, "-o", tmp_path / "dir")
    assert result.exit_code == 2
    assert "'--provenance': " in result.stderr
    assert "hint: --record keeps the report" in result.stderr


@pytest.mark.parametrize("text", ["{", "3", "[3]", '[{"a": 1}]', '[{"command": 3}]', "[" * 9000])
def test_text_of_another_form_is_nothing(text, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, file, metadata={"ckpt_provenance": text})
    assert steps(file) == []


def test_odd_steps_are_shown_as_far_as_they_go(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "x.safetensors"
    text = json.dumps([{"command": "a\x1b", "inputs": 3}, {"command": "b", "inputs": [3, {}]}])
    save_file({"a": torch.ones(1)}, file, metadata={"ckpt_provenance": text})
    assert "made by ckpt ?: a" in ckpt("inspect", file).stdout
    assert "\x1b" not in ckpt("inspect", file).stdout
