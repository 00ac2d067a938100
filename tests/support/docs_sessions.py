"""Sessions in Markdown: shell commands after ``$``, each with exactly what it prints.

    $ ckpt inspect --keys model.pth
    conv1.weight
    …

A line that is just ``…`` stands for one or more lines that are left out. Standard output and
standard error are shown together, as on a terminal. ``$?`` is the exit code of the command before.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LEFT_OUT = "…"


@dataclass(frozen=True)
class Step:
    """A command and what it should print; `line` is where it stands in its document."""

    command: str
    expected: tuple[str, ...]
    line: int

    def difference(self, printed: str) -> str:
        """Nothing if `printed` is what was expected, otherwise how it differs."""
        pattern = "".join(
            "(?:.*\n)+?" if line == _LEFT_OUT else re.escape(line) + "\n" for line in self.expected
        )
        if re.fullmatch(pattern, printed):
            return ""
        return "\n".join(difflib.ndiff(self.expected, printed.splitlines()))


def fenced(document: str, language: str) -> Iterator[tuple[int, str]]:
    """Blocks of a language: the number of the first line inside, and the text."""
    for match in _FENCED.finditer(document):
        if match[1] == language:
            yield document.count("\n", 0, match.start(2)) + 1, match[2]


def steps(document: str) -> Iterator[Step]:
    """The commands of every ``console`` block, in order."""
    for first, block in fenced(document, "console"):
        command: list[str] = []
        expected: list[str] = []
        start = first
        for number, line in enumerate(block.splitlines(), first):
            if line.startswith("$ "):
                if command:
                    yield Step("\n".join(command), tuple(expected), start)
                command, expected, start = [line[2:]], [], number
            elif not command:
                raise ValueError(f"line {number} of the document: a session starts with '$ '")
            elif line.startswith("> ") and not expected and command[-1].endswith("\\"):
                command.append(line[2:])
            else:
                expected.append(line)
        yield Step("\n".join(command), tuple(expected), start)


class Shell:
    """Runs commands in a folder where ``ckpt`` and ``python`` are this project's."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.status = 0
        repository = Path(__file__).resolve().parents[2]
        for name, arguments in (("ckpt", "-m ckpt_surgery "), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
            program.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        self._environment = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(repository),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
        }

    def run(self, command: str) -> str:
        """What `command` prints; the next one finds its exit code in ``$?``."""
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; (exit {self.status}); {command}"],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            encoding="utf-8",
        )
        self.status = done.returncode
        return done.stdout
