"""Every example in the help of every command is run as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import help_files
import pytest
import torch
from click.testing import CliRunner

from ckpt_surgery.cli.main import COMMANDS, cli

_SIGNS_OF_A_SHELL = re.compile(r"[|<>$#]")
# Their answer may be no, with exit code 1: what differs, and a file that was cut.
_MAY_SAY_NO = ("ckpt diff", "ckpt verify cut.pth")


def examples(command: click.Command) -> list[str]:
    """The commands below ``Examples:``, each on one line."""
    _, _, text = (command.help or "").partition("Examples:")
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip()]


def all_examples() -> Iterator[tuple[str, list[str]]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found = examples(command)
        if found:
            yield name, found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ckpt").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckpt_surgery "$@"\n')
    (programs / "ckpt").chmod(0o755)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{here}")
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("KEY_PASSWORD", "of the key")
    monkeypatch.syspath_prepend(str(here))
    return here


def test_every_command_with_examples_has_its_files() -> None:
    found = dict(all_examples())
    assert found.keys() == help_files.MAKE.keys()
    assert all(len(lines) >= 2 for lines in found.values())


@pytest.mark.parametrize("name", help_files.MAKE)
def test_examples_run_as_they_are_printed(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in {"sign", "verify"}:
        pytest.importorskip("model_signing")
    torch.manual_seed(0)
    help_files.MAKE[name]()
    for line in dict(all_examples())[name]:
        _make_room(line)
        if name == "verify" and '"$DIGEST"' in line:
            digest = CliRunner().invoke(cli, ["hash", "model.pth"]).stdout.partition(" ")[0]
            monkeypatch.setenv("DIGEST", digest)
        code, said = _run(line)
        allowed = {0, 1} if line.startswith(_MAY_SAY_NO) else {0}
        assert code in allowed, f"$ {line}\n{said}"


def _make_room(line: str) -> None:
    """Remove what an example before this one has written where this one writes."""
    words = shlex.split(line, comments=True)
    outputs = [words[at + 1] for at, word in enumerate(words[:-1]) if word in {"-o", "--emit-map"}]
    for output in map(Path, outputs):
        if output.is_dir():
            shutil.rmtree(output)
        else:
            output.unlink(missing_ok=True)


def _run(line: str) -> tuple[int, str]:
    """Exit code and what was said: in this process, unless it takes a shell."""
    program, *words = shlex.split(line, posix=False)
    patterns = any(re.search(r"[*?]", word) for word in words if word[0] not in "'\"")
    if program != "ckpt" or patterns or _SIGNS_OF_A_SHELL.search(line):
        return _in_a_shell(line)
    done = CliRunner().invoke(cli, shlex.split(line)[1:])
    return done.exit_code, done.output


def _in_a_shell(line: str) -> tuple[int, str]:
    if "jq" in line and not shutil.which("jq") and not os.environ.get("CI"):
        return 0, ""
    start = ["bash", "-c", f"set -o pipefail; {line}"]
    if "completion zsh" in line:
        if not shutil.which("zsh") and not os.environ.get("CI"):
            return 0, ""
        start = ["zsh", "-f", "-c", f"autoload -Uz compinit; compinit -u -D\n{line}"]
    done = subprocess.run(
        start, capture_output=True, encoding="utf-8", timeout=120, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr
