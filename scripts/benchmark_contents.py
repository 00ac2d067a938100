"""Benchmarks of what edits do to contents: ten steps in one pass, matrices turned, a cast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark_measure import CKPT, CKPT_EDIT, MB, Command, Result, Target, compare, in_turn

_TURN = """
import sys, torch
state = torch.load(sys.argv[1])
state = {name: t.t().contiguous() if t.dim() == 2 else t for name, t in state.items()}
torch.save(state, sys.argv[2])
"""
_CAST = """
import sys, torch
state = torch.load(sys.argv[1])
torch.save({name: t.to(torch.bfloat16) for name, t in state.items()}, sys.argv[2])
"""
_RECIPE = """
[inputs]
a = "{source}"

[[steps]]
expect = {{ keys = "**.weight", dtype = "float32" }}
[[steps]]
rename = {{ add-prefix = "one" }}
[[steps]]
rename = {{ sub = ["weight$", "kernel"] }}
[[steps]]
rename = {{ sub = ["bias$", "offset"] }}
[[steps]]
rename = {{ strip-prefix = "one" }}
[[steps]]
strip = {{ prefix = "{gone}" }}
[[steps]]
rename = {{ sub = ["kernel$", "weight"] }}
[[steps]]
rename = {{ add-prefix = "two" }}
[[steps]]
rename = {{ add-prefix = "three" }}
[[steps]]
expect = {{ keys = "three.two.**", no-keys = "**.kernel" }}

[[outputs]]
file = "{output}"
"""


def bench_contents(file: Path, rounds: int) -> Iterator[Result]:
    """A recipe of ten steps beside one rename; matrices turned, and a cast, beside the idioms."""
    source, output = str(file), file.with_name("output.pth")
    size_gb = file.stat().st_size / 1e9
    recipe = file.with_name("ten.toml")
    gone = CKPT_EDIT["strip"][-1]
    recipe.write_text(_RECIPE.format(source=source, output=output, gone=gone), encoding="utf-8")
    commands = [
        Command("apply, ten steps", [*CKPT, "apply", str(recipe), "-q"], output),
        Command(
            "rename", [*CKPT, "rename", source, *CKPT_EDIT["rename"], "-o", str(output)], output
        ),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    # the start of a process outweighs copying less
    most = 1.2 if size_gb > 1.5 else None
    yield from compare(
        f"ten steps on {size_gb:.2g} GB", costs, [Target("apply, ten steps", "rename", most)]
    )
    turn = ["--transpose", r"pattern:(?<!norm)\.weight$", "-q", "-o", str(output)]
    commands = [
        Command("edit --transpose", [*CKPT, "edit", source, *turn], output),
        Command("torch", [sys.executable, "-c", _TURN, source, str(output)], output),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("edit --transpose", "torch", 1 / 2, 800 * MB)]
    yield from compare(f"matrices of {size_gb:.2g} GB turned", costs, targets)
    cast = ["--dtype", "bf16", "--no-keep-norms", "-q", "-o", str(output)]
    commands = [
        Command("convert --dtype bf16", [*CKPT, "convert", source, *cast], output),
        Command("torch", [sys.executable, "-c", _CAST, source, str(output)], output),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("convert --dtype bf16", "torch", 1 / 2, 800 * MB)]
    yield from compare(f"float32 to bfloat16, {size_gb:.2g} GB", costs, targets)
