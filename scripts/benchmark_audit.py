"""What `verify`, `hash` and `diff` cost beside `sha256sum` and the loops that people write."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark_measure import CKPT, MB, Command, Result, Target, compare, in_turn

TORCH_DIFF = """
import sys, torch
a, b = (torch.load(path, weights_only=True) for path in sys.argv[1:])
for name in a:
    change = (a[name].double() - b[name].double()).abs().max().item()
    print(name, torch.allclose(a[name], b[name]), change)
"""
TORCH_ALONE = 230 * MB
"""What a process takes that has imported torch."""


def bench_audit(file: Path, rounds: int) -> Iterator[Result]:
    """Read a large file whole beside `sha256sum`, and compare it with its copy."""
    other = file.with_name("copy.pth")
    shutil.copyfile(file, other)
    pair = [str(file), str(other)]
    commands = [
        Command("verify", [*CKPT, "verify", str(file)]),
        Command("hash", [*CKPT, "hash", "--threads", "2", str(file)]),
        Command("sha256sum", ["sha256sum", str(file)]),
        Command("diff", [*CKPT, "diff", *pair]),
        Command("diff --values", [*CKPT, "diff", "--values", *pair]),
        Command("torch", [sys.executable, "-c", TORCH_DIFF, *pair]),
    ]
    targets = [
        Target("verify", "sha256sum", 0.6, 60 * MB),
        Target("hash", "sha256sum", 1.1),
        Target("diff", "torch", seconds=0.3),
        Target("diff --values", "torch", 1 / 3, 300 * MB + TORCH_ALONE),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    yield from compare(f"audit of {file.stat().st_size / 1e9:.2g} GB", costs, targets)
    other.unlink()
