"""Names from a checkpoint, completed in real shells on a pseudo-terminal, run nothing."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Each with what a shell might do with it; all share the part that is typed.
HOSTILE = (
    "fc$(touch pwned)",
    "fc`touch pwned`",
    "fc;touch pwned",
    "fc|touch pwned",
    "fc&touch pwned",
    "fc\ntouch pwned\n",
    "fc>pwned",
    "fc(touch pwned)",
    "fc' 'touch pwned",
    "fc*",
    "fc{a,b}",
    "fc\\",
    "fc!!",
    "fc~",
    "fc[a]",
    "fc #",
)
MARKER = "ready>"
_SECONDS = 30

START = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "-i"],
}
SETUP = {
    "bash": f"PS1='{MARKER}'; eval \"$(ckpt completion bash)\"",
    "zsh": f"autoload -Uz compinit; compinit -u -d ./dump; PROMPT='{MARKER}'; "
    'unsetopt zle_bracketed_paste; eval "$(ckpt completion zsh)"',
    "fish": f"function fish_prompt; echo -n '{MARKER}'; end; ckpt completion fish | source",
}


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, shell: str, folder: Path) -> None:
        path = f"{folder}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8"}
        self.pid, self.fd = pty.fork()
        if not self.pid:  # pragma: no cover (the child)
            os.chdir(folder)
            line = [shell, *START[shell]]
            os.execve(shutil.which(shell) or shell, line, environment)  # noqa: S606 (to test it)
        self.seen = ""

    def type(self, line: str) -> None:
        os.write(self.fd, line.encode())

    def until(self, wanted: str, seconds: float = _SECONDS) -> str:
        """Everything that comes until `wanted` does; fails if it does not."""
        start, end = len(self.seen), time.monotonic() + seconds
        while wanted not in self.seen[start:]:
            left = end - time.monotonic()
            assert left > 0, (wanted, self.seen[-2000:])
            self._read(left)
        return self.seen[start:]

    def rest(self, quiet: float = 1.5) -> str:
        """Everything that comes until nothing has come for a while."""
        start = len(self.seen)
        while self._read(quiet):
            pass
        return self.seen[start:]

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # the shell has ended
            return False
        if b"\x1b[c" in data or b"\x1b[0c" in data:  # fish asks what terminal this is
            os.write(self.fd, b"\x1b[?1;2c")
        self.seen += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Terminal, Path]]:
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    script = tmp_path / "ckpt"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckpt_surgery "$@"\n')
    script.chmod(0o755)
    names = {name: torch.ones(1) for name in HOSTILE}
    torch.save(names | {"other.w": torch.ones(1)}, tmp_path / "hostile.pth")
    torch.save({"fc.weight": torch.ones(1), "other.w": torch.ones(1)}, tmp_path / "honest.pth")
    opened = Terminal(shell, tmp_path)
    try:
        opened.rest()
        opened.type(SETUP[shell] + "\n")
        opened.until(MARKER)
        opened.rest()
        yield opened, tmp_path
    finally:
        opened.close()


@pytest.mark.parametrize("terminal", START, indirect=True)
def test_hostile_names_are_not_put_on_the_line(terminal: tuple[Terminal, Path]) -> None:
    shell, folder = terminal
    before = set(folder.iterdir())
    shell.type("ckpt strip hostile.pth --prefix fc\t")
    assert "pwned" not in shell.rest(3)
    shell.type("\t\t")
    assert "pwned" not in shell.rest(3)
    shell.type(" --dry-run\n")
    shell.until(MARKER)
    shell.rest()
    assert not (folder / "pwned").exists()
    assert {path.name for path in set(folder.iterdir()) - before} <= {"dump", ".config", ".local"}


@pytest.mark.parametrize("terminal", START, indirect=True)
def test_honest_names_are_completed(terminal: tuple[Terminal, Path]) -> None:
    """Otherwise the test above could not fail."""
    shell, _ = terminal
    shell.type("ckpt strip honest.pth --prefix f\t")
    shell.rest(3)
    shell.type(" --dry-run\n")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shell.until("removed"))
    assert "--prefix fc: matched 1 name" in shown
