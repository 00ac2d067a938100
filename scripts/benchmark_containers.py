"""Checkpoints of many files: shards, and directories of torch.distributed.checkpoint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark_measure import CKPT, MB, Command, Result, Target, compare, in_turn

TENSORS = 10_000
MAKE_MANY = """
import sys, torch
torch.save({f"model.layers.{n // 10}.block.{n % 10}.weight": torch.zeros(64)
            for n in range(int(sys.argv[1]))}, sys.argv[2])
"""
TORCH_FROM_DCP = """
import sys
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], sys.argv[2])
"""
TORCH_TO_DCP = """
import sys
from torch.distributed.checkpoint.format_utils import torch_save_to_dcp
torch_save_to_dcp(sys.argv[1], sys.argv[2])
"""
LIST_SHARDS = """
import sys
from pathlib import Path
from safetensors import safe_open
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(file, "pt") as shard:
        for name in shard.keys():
            part = shard.get_slice(name)
            print(name, part.get_shape(), part.get_dtype())
"""


def bench_containers(file: Path, rounds: int) -> Iterator[Result]:
    """Everything about checkpoints of many files."""
    yield from _shards(file, rounds)
    yield from _distributed(file, rounds)
    yield from _many_tensors(file.parent, rounds)


def _shards(file: Path, rounds: int) -> Iterator[Result]:
    """Shards of safetensors as one file, beside what only puts their bytes together."""
    size_gb = file.stat().st_size / 1e9
    shards, output = file.with_name("shards"), file.with_name("whole.safetensors")
    most = str(file.stat().st_size // 4)
    form = ["--format", "safetensors-index", "--max-shard-size", most]
    subprocess.run([*CKPT, "convert", str(file), "-q", *form, "-o", str(shards)], check=True)
    joined = f"cat '{shards}'/*.safetensors > '{output}'"
    commands = [
        Command("convert", [*CKPT, "convert", str(shards), "-q", "-o", str(output)], output),
        Command("cat", ["sh", "-c", joined], output),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    # the start of a process outweighs the bytes of a small file
    targets = [Target("convert", "cat", 1.1 if size_gb > 1.5 else None, 60 * MB)]
    yield from compare(f"shards to one file, {size_gb:.2g} GB", costs, targets)
    shutil.rmtree(shards)


def _distributed(file: Path, rounds: int) -> Iterator[Result]:
    """A distributed checkpoint as one file and back, beside torch's own two tools."""
    size_gb = file.stat().st_size / 1e9
    folder, output = file.with_name("dcp"), file.with_name("whole.pth")
    written = [str(file), "-q", "--format", "dcp", "-o", str(folder)]
    back = [
        Command("convert", [*CKPT, "convert", *written], folder),
        Command(
            "torch_save_to_dcp",
            [sys.executable, "-W", "ignore", "-c", TORCH_TO_DCP, str(file), str(folder)],
            folder,
        ),
    ]
    costs = in_turn({command.name: command.run for command in back}, rounds)
    targets = [Target("convert", "torch_save_to_dcp", 1 / 3, 100 * MB)]
    yield from compare(f".pth to DCP, {size_gb:.2g} GB", costs, targets)
    subprocess.run([*CKPT, "convert", *written], check=True)
    commands = [
        Command("convert", [*CKPT, "convert", str(folder), "-q", "-o", str(output)], output),
        Command(
            "dcp_to_torch_save",
            [sys.executable, "-W", "ignore", "-c", TORCH_FROM_DCP, str(folder), str(output)],
            output,
        ),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("convert", "dcp_to_torch_save", 1 / 3, 100 * MB)]
    yield from compare(f"DCP to .pth, {size_gb:.2g} GB", costs, targets)
    shutil.rmtree(folder)


def _many_tensors(folder: Path, rounds: int) -> Iterator[Result]:
    """`ckpt inspect` of many tensors in shards, beside listing them with their library."""
    source, shards = folder / "many.pth", folder / "many"
    subprocess.run([sys.executable, "-c", MAKE_MANY, str(TENSORS), str(source)], check=True)
    form = ["--format", "safetensors-index", "--max-shard-size", "300KB"]
    subprocess.run([*CKPT, "convert", str(source), "-q", *form, "-o", str(shards)], check=True)
    commands = [
        Command("inspect", [*CKPT, "inspect", str(shards)]),
        Command("safe_open", [sys.executable, "-c", LIST_SHARDS, str(shards)]),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("inspect", "safe_open", seconds=0.3)]
    yield from compare(f"{TENSORS:,} tensors in shards", costs, targets)
    shutil.rmtree(shards)
    source.unlink()
