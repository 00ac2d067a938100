"""Benchmarks of what people wait for at a terminal: help, and many small files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark_measure import CKPT, TORCH_LIST, Command, Result, Target, compare, in_turn

from ckpt_surgery.cli.main import COMMANDS

_FILES = 1000
_MAKE = """
import sys, torch
for number in range(int(sys.argv[2])):
    state = {f"layers.{i}.weight": torch.full((16, 16), float(number)) for i in range(12)}
    torch.save(state, f"{sys.argv[1]}/epoch_{number:04}.pth")
"""


def bench_help(rounds: int) -> Iterator[Result]:
    """The help of every command, beside starting the interpreter."""
    commands = [Command("python -c pass", [sys.executable, "-c", "pass"])]
    commands += (Command(f"{name} --help", [*CKPT, name, "--help"]) for name in COMMANDS)
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [
        Target(f"{name} --help", "python -c pass", seconds=0.15, peak=None) for name in COMMANDS
    ]
    yield from compare("help", costs, targets)


def bench_many(folder: Path, rounds: int) -> Iterator[Result]:
    """A thousand small files in one call, beside one of the thousand runs of the torch idiom."""
    files = folder / "many"
    files.mkdir()
    subprocess.run([sys.executable, "-c", _MAKE, files, str(_FILES)], check=True)
    one = str(files / "epoch_0000.pth")
    commands = [
        Command("inspect of all", [*CKPT, "inspect", str(files)]),
        Command("inspect of all, -j 2", [*CKPT, "inspect", str(files), "-j", "2"]),
        Command("torch.load of one", [sys.executable, "-c", TORCH_LIST, one]),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    # a twentieth of a thousand runs
    targets = [Target(c.name, "torch.load of one", ratio=_FILES / 20) for c in commands[:2]]
    yield from compare(f"{_FILES:,} files", costs, targets)
