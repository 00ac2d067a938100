"""Blocks of shell, TOML, YAML and Python in README.md and docs/ are run as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from docs_sessions import Shell, fenced
from help_files import save, training
from safetensors.torch import save_file

_REPOSITORY = Path(__file__).resolve().parents[1]
_PAGES = [_REPOSITORY / "README.md", _REPOSITORY / "CONTRIBUTING.md"]
_PAGES += sorted((_REPOSITORY / "docs").glob("*.md"))
_LANGUAGES = ("sh", "bash", "toml", "yaml", "make", "python")
# What a test does not run: it installs, fetches, is a run of all tests, or is another program's.
NOT_RUN = {
    "pip install .",
    "pip install click rich && pip install --no-deps .             # pip",
    "pipx install --pip-args=--no-deps . && pipx inject ckpt-surgery click rich",
    "uv venv && uv pip install click rich && uv pip install --no-deps .   # uv",
    "pip install 'ckpt-surgery[sign]'",
    "./scripts/demo    # make a ResNet-34 checkpoint and do the jobs above on it",
    "./scripts/setup              # .venv with this project and the tested versions of everything",
    "./scripts/test    # lint, types, and all tests",
    "./scripts/test               # lint, types, import contracts, all tests with coverage",
    "./scripts/test -k rename     # the first three, then some tests",
    (
        "./scripts/safetensors_suite  # the safetensors project's own tests, with our reader "
        "and writer behind them"
    ),
    "./scripts/bench              # against torch and cp, in the same run; --only rename, --quick",
    "git show HEAD~1:model.pth | git lfs smudge | ckpt diff - model.pth",
    "dvc get . model.pth --rev HEAD~1 -o before.pth",
}
# Blocks that tests/test_docs.py runs, or whose lines are for other programs than a shell.
_ELSEWHERE = {("README.md", "yaml"), ("verify.md", "yaml")}


def net() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict([("encoder.weight", torch.ones(2, 2)), ("encoder.bias", torch.zeros(2))])


def _completion(folder: Path) -> None:
    (folder / ".config/fish/completions").mkdir(parents=True)


def _repository(folder: Path) -> None:
    run = ["git", "-C", str(folder), "init", "-q"]
    subprocess.run(run, check=True)
    save(net(), "before.pth")
    save(net() | {"encoder.bias": torch.ones(2)}, "model.pth")


def _recipe(folder: Path) -> None:
    save_file(net(), "a.safetensors")
    save_file(net(), "b.safetensors")
    lines = "models:\n  - model: a.safetensors\n  - model: b.safetensors\nmerge_method: linear\n"
    (folder / "config.yaml").write_text(f"{lines}parameters:\n  weight: 0.5\n")


def _signed(folder: Path) -> None:
    del folder
    pytest.importorskip("model_signing")
    pytest.importorskip("cyclonedx")
    save_file(net(), "model.safetensors")
    save(training(), "run.pth")


FILES: dict[str, Callable[[Path], None]] = {
    "commands.md": _completion,
    "diff.md": _repository,
    "merge.md": _recipe,
    "signing.md": _signed,
}


def lines_of(page: Path) -> list[str]:
    """Return every command in a page's blocks of shell, those that go over several lines as one."""
    found = []
    for language in ("sh", "bash"):
        for _, text in fenced(page.read_text("utf-8"), language):
            found += [line for line in text.replace("\\\n", "").splitlines() if line.strip()]
    return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    here, programs = tmp_path / "here", tmp_path / "programs"
    here.mkdir()
    programs.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    return Shell(here, programs)


@pytest.mark.parametrize("page", FILES)
def test_blocks_of_shell_run_as_they_are_printed(page: str, shell: Shell) -> None:
    FILES[page](shell.folder)
    lines = [ln for ln in lines_of(_REPOSITORY / "docs" / page) if ln not in NOT_RUN]
    assert lines
    for line in lines:
        if "completion zsh" in line:
            if not shutil.which("zsh") and not os.environ.get("CI"):
                continue
            printed = shell.run(
                f"zsh -fc {_quoted(f'autoload -Uz compinit; compinit -u -D; {line}')}"
            )
        else:
            printed = shell.run(line)
        says_no = shell.status == 1 and line.startswith("ckpt diff ")
        assert not shell.status or says_no, f"$ {line}\n{printed}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_what_is_not_run_is_exactly_what_is_listed() -> None:
    """Every line of shell is run above, or listed with a reason; nothing is listed in vain."""
    found = {page.name: lines_of(page) for page in _PAGES}
    elsewhere = {line for name, lines in found.items() if name not in FILES for line in lines}
    skipped = {line for lines in found.values() for line in lines if line in NOT_RUN}
    assert elsewhere <= NOT_RUN
    assert skipped == NOT_RUN


def test_every_block_is_of_a_language_that_a_test_knows() -> None:
    known = {*_LANGUAGES, "console", "json", "pycon"}
    for page in _PAGES:
        text = page.read_text("utf-8")
        assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) <= known, page.name
        for language in ("toml", "yaml", "make", "python"):
            if list(fenced(text, language)):
                assert (page.name, language) in {
                    *_ELSEWHERE,
                    ("verify.md", "toml"),
                    ("freeze-plan.md", "python"),
                }


def test_the_tools_of_the_other_blocks_are_named_as_they_are() -> None:
    """Scripts that the pages name are there, and may be run."""
    for line in NOT_RUN:
        program = line.split()[0]
        if program.startswith("./"):
            assert os.access(_REPOSITORY / program, os.X_OK), program


def test_the_policy_of_the_page_is_one(shell: Shell) -> None:
    ((_, policy),) = fenced((_REPOSITORY / "docs/verify.md").read_text("utf-8"), "toml")
    assert tomllib.loads(policy)
    (shell.folder / "policy.toml").write_text(policy)
    save({"epoch": 1, "state_dict": net()}, "good.pth")
    save({"epoch": 1, "state_dict": {"decoder.lora_a.w": torch.ones(1).double()}}, "bad.pth")
    assert "error" not in shell.run("ckpt verify good.pth --policy policy.toml")
    assert shell.status == 0
    document = json.loads(shell.run("ckpt verify bad.pth --policy policy.toml --json"))
    assert shell.status == 1
    assert {f["rule"] for f in document["files"][0]["findings"]} >= {"policy"}


def test_the_step_of_the_workflow_runs(shell: Shell) -> None:
    ((_, workflow),) = fenced((_REPOSITORY / "docs/verify.md").read_text("utf-8"), "yaml")
    ((_, policy),) = fenced((_REPOSITORY / "docs/verify.md").read_text("utf-8"), "toml")
    (shell.folder / "policy.toml").write_text(policy)
    save({"epoch": 1, "state_dict": net()}, "checkpoints/1.pth")
    (line,) = re.findall(r"^- run: (.*)$", workflow, re.MULTILINE)
    assert shell.run(line) == ""
    assert shell.status == 0
    assert json.loads((shell.folder / "ckpt.sarif").read_text())["version"] == "2.1.0"


def test_the_loop_of_the_plan_trains(shell: Shell) -> None:
    ((_, loop),) = fenced((_REPOSITORY / "docs/freeze-plan.md").read_text("utf-8"), "python")
    model = torch.nn.Sequential(
        OrderedDict(conv=torch.nn.Conv2d(1, 2, 1), head=torch.nn.Linear(2, 2))
    )
    save(model.state_dict(), "net.pth")
    assert "plan.json" in shell.run(
        "ckpt freeze-plan net.pth --train head --emit json -o plan.json"
    )
    names = {"torch": torch, "model": model, "epochs": 2}
    exec(compile(loop, "freeze-plan.md", "exec"), names)  # noqa: S102 - what the page prints
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
