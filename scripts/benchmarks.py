"""Measure ckpt against torch and cp: ratios within one run, in time and in memory.

Each comparison runs its commands in turn, A B A B, after a round that warms caches up. A ratio is
the median over the rounds of one command's time through that of the other just beside it, so what
else the machine does mostly cancels out. Files are written without fsync by all sides, and come
from the page cache; on file systems that share blocks between files, so do cp and ckpt.

A missed target is shown and is no failure: the exit code is 0 unless something cannot be measured.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmark_measure import (
    CKPT,
    CKPT_EDIT,
    MB,
    ROOT,
    SCRIPTS,
    TORCH_LIST,
    Command,
    Cost,
    Result,
    Target,
    compare,
    in_turn,
)

TORCH_LOAD = """
import sys, torch
state_dict = torch.load(sys.argv[1], mmap=sys.argv[3] == "mmap", weights_only=True)
"""
TORCH_EDIT = {
    "strip": f"""{TORCH_LOAD}
for key in [key for key in state_dict if key.startswith("embed.")]:
    del state_dict[key]
torch.save(state_dict, sys.argv[2])
""",
    "rename": f"""{TORCH_LOAD}
torch.save({{"module." + key: tensor for key, tensor in state_dict.items()}}, sys.argv[2])
""",
}
TO_SAFETENSORS = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""
# fairseq's average_checkpoints.py: load one after the other, add up, divide
TORCH_AVERAGE = """
import sys, torch
total, files = {}, sys.argv[1:-1]
for file in files:
    for key, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        if key in total:
            total[key] += tensor
        else:
            total[key] = tensor.clone()
for key, tensor in total.items():
    tensor.div_(len(files)) if tensor.is_floating_point() else tensor.floor_divide_(len(files))
torch.save(total, sys.argv[-1])
"""
TORCH_STATS = """
import sys, torch
for key, tensor in torch.load(sys.argv[1], mmap=True, weights_only=True).items():
    tensor = tensor.float()
    facts = (tensor.min(), tensor.max(), tensor.mean(), tensor.std(), tensor.isnan().sum(),
             tensor.isinf().sum(), (tensor == 0).sum())
    print(key, tuple(tensor.shape), *(fact.item() for fact in facts), torch.histc(tensor, 16))
"""
MERGEKIT_CONFIG = """merge_method: linear
dtype: float32
out_dtype: {dtype}
models:
{models}
"""


def bench_inspect(files: dict[str, Path], rounds: int) -> Iterator[Result]:
    """`ckpt inspect` beside loading the file into torch without its storages."""
    for name, file in files.items():
        path = str(file)
        commands = [
            Command("inspect --keys", [*CKPT, "inspect", "--keys", path]),
            Command("torch.load, mmap", [sys.executable, "-c", TORCH_LIST, path]),
            Command("inspect, to a pipe", [*CKPT, "inspect", path]),
            Command("inspect, on a terminal", [*CKPT, "inspect", path], on_terminal=True),
        ]
        targets = [
            Target("inspect --keys", "torch.load, mmap", 1 / 10, 60 * MB),
            Target("inspect, to a pipe", "torch.load, mmap", 1 / 6, 60 * MB),
            Target("inspect, on a terminal", "torch.load, mmap", 1 / 6, 60 * MB),
        ]
        costs = in_turn({command.name: command.run for command in commands}, rounds)
        yield from compare(f"inspect {name}", costs, targets)


def bench_edit(verb: str, file: Path, rounds: int) -> Iterator[Result]:
    """An edit of a large file beside copying it, and beside load, edit and save in torch."""
    source, output = str(file), file.with_name("output.pth")
    torch_line = [sys.executable, "-c", TORCH_EDIT[verb], source, str(output)]
    commands = [
        Command(verb, [*CKPT, verb, source, *CKPT_EDIT[verb], "-o", str(output)], output),
        Command("cp", ["cp", source, str(output)], output),
        Command("torch", [*torch_line, "read"], output),
        Command("torch, mmap", [*torch_line, "mmap"], output),
    ]
    size_gb = file.stat().st_size / 1e9
    targets = [
        # the start of a process outweighs copying less
        Target(verb, "cp", 1.25 if size_gb > 1.5 else None, 80 * MB),
        Target(verb, "torch", 1 / 3, 80 * MB),
        Target(verb, "torch, mmap", 1 / 3, 80 * MB),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    yield from compare(f"{verb} {size_gb:.2g} GB", costs, targets)


def bench_stats(file: Path, rounds: int) -> Iterator[Result]:
    """Statistics of every tensor beside the loop over a loaded state dict."""
    commands = [
        Command("inspect --stats", [*CKPT, "inspect", "--stats", str(file)]),
        Command("torch", [sys.executable, "-c", TORCH_STATS, str(file)]),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("inspect --stats", "torch", 1 / 2)]
    yield from compare(f"statistics of {file.stat().st_size / 1e9:.2g} GB", costs, targets)


def bench_safetensors(file: Path, rounds: int) -> Iterator[Result]:
    """A large file as safetensors beside copying it, and beside load and save by the library."""
    source, output = str(file), file.with_name("output.safetensors")
    commands = [
        Command("convert", [*CKPT, "convert", source, "-q", "-o", str(output)], output),
        Command("cp", ["cp", source, str(output)], output),
        Command(
            "load and save_file",
            [sys.executable, "-c", TO_SAFETENSORS, source, str(output)],
            output,
        ),
    ]
    size_gb = file.stat().st_size / 1e9
    targets = [
        # the start of a process outweighs copying less
        Target("convert", "cp", 1.0 if size_gb > 1.5 else None, 60 * MB),
        Target("convert", "load and save_file", 1 / 4, 60 * MB),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    yield from compare(f".pth to safetensors, {size_gb:.2g} GB", costs, targets)


def bench_average(
    folder: Path, size_gb: float, dtype: str, rounds: int, mergekit: str | None
) -> Iterator[Result]:
    """The average of three files beside fairseq's script, and mergekit where it is installed."""
    files = [str(folder / f"{dtype}-{number}.pth") for number in range(3)]
    maker = [sys.executable, str(SCRIPTS / "benchmark_torch.py"), "make", str(size_gb)]
    for file in files:
        subprocess.run([*maker, file, dtype], cwd=ROOT, check=True)
    output = folder / "average.pth"
    ours = [*CKPT, "merge", *files, "-m", "average", "-q", "-o", str(output)]
    sums = [sys.executable, "-c", TORCH_AVERAGE, *files, str(output)]
    commands = [Command("average", ours, output), Command("load and sum", sums, output)]
    targets = [Target("average", "load and sum", 1 / 2, 500 * MB)]
    if mergekit is not None:
        config, merged = folder / "mergekit.yml", folder / "merged"
        models = "\n".join(f"- {{model: {file}, parameters: {{weight: 1}}}}" for file in files)
        config.write_text(MERGEKIT_CONFIG.format(dtype=dtype, models=models), encoding="utf-8")
        line = [mergekit, str(config), str(merged)]
        commands.append(Command("mergekit", line, merged))
        targets.append(Target("average", "mergekit", 1 / 4, 500 * MB))
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    yield from compare(f"average of three {dtype}, {size_gb:g} GB each", costs, targets)
    for file in files:
        Path(file).unlink()


def bench_overlay(folder: Path, size_gb: float, rounds: int) -> Iterator[Result]:
    """One file laid over another beside copying as many bytes as that writes."""
    files = [str(folder / f"{name}.pth") for name in ("under", "over")]
    maker = [sys.executable, str(SCRIPTS / "benchmark_torch.py"), "make", str(size_gb)]
    for file in files:
        subprocess.run([*maker, file], cwd=ROOT, check=True)
    output = folder / "output.pth"
    line = [*CKPT, "merge", *files, "--prefix", "layers", "-q", "-o", str(output)]
    commands = [
        Command("overlay", line, output),
        Command("cp", ["cp", files[0], str(output)], output),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("overlay", "cp", 1.25, 500 * MB)]
    yield from compare(f"overlay of two files, {size_gb:g} GB each", costs, targets)
    for file in files:
        Path(file).unlink()


def bench_lora(folder: Path, size_gb: float, rounds: int) -> Iterator[Result]:
    """An adapter folded into its base beside PEFT's ``merge_and_unload``, if that is installed."""
    if importlib.util.find_spec("peft") is None:
        print("peft is not installed: the fold of an adapter is left out", file=sys.stderr)
        return
    script = [sys.executable, str(SCRIPTS / "benchmark_lora.py")]
    subprocess.run([*script, "make", str(size_gb), str(folder)], cwd=ROOT, check=True)
    base, adapter, output = folder / "base", folder / "adapter", folder / "folded"
    line = [*CKPT, "merge", "-m", "lora", str(base), str(adapter), "-q", "-o", str(output)]
    commands = [
        Command("merge -m lora", [*line, "--format", "safetensors-index"], output),
        Command("peft", [*script, "fold", str(folder), str(output)], output),
    ]
    costs = in_turn({command.name: command.run for command in commands}, rounds)
    targets = [Target("merge -m lora", "peft", 1 / 3, 600 * MB)]
    yield from compare(f"adapter into a base of {size_gb:g} GB", costs, targets)
    shutil.rmtree(base)
    shutil.rmtree(adapter)


def bench_parse(tensors: int, rounds: int) -> Iterator[Result]:
    """Our parser beside other unpicklers, in one process that only this is done in."""
    line = [sys.executable, str(SCRIPTS / "benchmark_torch.py"), "parse", str(tensors), str(rounds)]
    found = json.loads(subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    costs = {name: [Cost(*pair) for pair in pairs] for name, pairs in found["seconds"].items()}
    targets = [
        Target("parse", "C unpickler, stubs", 6),
        Target("parse", "torch, weights_only", 1 / 2),
        Target("walk", "C unpickler, stubs"),
        Target("emit", "C unpickler, stubs"),
    ]
    yield from compare(f"pickle of {found['operations']} operations", costs, targets)


def bench_merge(
    folder: Path, size_gb: float, rounds: int, options: argparse.Namespace
) -> Iterator[Result]:
    """Everything about `ckpt merge`."""
    found = options.mergekit or shutil.which("mergekit-pytorch")
    for dtype in ("float32", "bfloat16"):
        yield from bench_average(folder, size_gb, dtype, rounds, found)
    yield from bench_overlay(folder, size_gb, rounds)


def make_files(folder: Path, size_gb: float, wanted: str | None) -> tuple[dict[str, Path], Path]:
    """The checkpoints to measure on, as torch writes them; some may not be `wanted`."""
    small, large = folder / "resnet34.pth", folder / "large.pth"
    if wanted in {None, "inspect"}:
        subprocess.run([sys.executable, SCRIPTS / "make_resnet34.py", small], cwd=ROOT, check=True)
    if wanted not in {"parse", "merge", "lora", "help", "many"}:
        line = [
            sys.executable,
            str(SCRIPTS / "benchmark_torch.py"),
            "make",
            str(size_gb),
            str(large),
        ]
        subprocess.run(line, cwd=ROOT, check=True)
    return {"resnet34": small, f"{size_gb:g} GB": large}, large


def run(options: argparse.Namespace) -> tuple[list[Result], int]:
    """Make the files, take all measurements wanted, and remove the files.

    One that fails is said and spares the others; how many did comes with the results.
    """
    from benchmark_audit import bench_audit
    from benchmark_containers import bench_containers
    from benchmark_contents import bench_contents
    from benchmark_terminal import bench_help, bench_many

    quick, wanted, size_gb = options.quick, options.only, options.size_gb
    benchmarks: dict[str, Callable[[], Iterator[Result]]] = {
        "inspect": lambda: bench_inspect(small_and_large, 3 if quick else 9),
        "parse": lambda: bench_parse(3_000 if quick else 15_000, 3 if quick else 7),
        "strip": lambda: bench_edit("strip", large, 3 if quick else 5),
        "rename": lambda: bench_edit("rename", large, 3 if quick else 5),
        "stats": lambda: bench_stats(large, 3),
        "audit": lambda: bench_audit(large, 3 if quick else 5),
        "safetensors": lambda: bench_safetensors(large, 3 if quick else 5),
        "containers": lambda: bench_containers(large, 3 if quick else 5),
        "contents": lambda: bench_contents(large, 3 if quick else 5),
        "merge": lambda: bench_merge(Path(folder), size_gb / 2, 3 if quick else 5, options),
        "help": lambda: bench_help(3 if quick else 7),
        "many": lambda: bench_many(Path(folder), 3),
        "lora": lambda: bench_lora(Path(folder), size_gb, 3),
    }
    results: list[Result] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=options.dir) as folder:
        free, needed = shutil.disk_usage(folder).free, int(3.2e9 * size_gb) + 1_000_000_000
        if wanted not in {"parse", "help", "many"} and free < needed:
            raise RuntimeError(
                f"{needed / 1e9:.1f} GB are needed in '{folder}', {free / 1e9:.1f} free"
            )
        small_and_large, large = make_files(Path(folder), size_gb, wanted)
        for name, benchmark in benchmarks.items():
            if wanted in {None, name}:
                print(f"measuring {name} …", file=sys.stderr, flush=True)
                try:
                    results += benchmark()
                except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                    print(f"error: {name} not measured: {error}", file=sys.stderr)
                    failed += 1
    return results, failed


def show(results: Sequence[Result]) -> None:
    """Print the results as a table."""
    head = ("benchmark", "ours", "s", "CPU s", "peak MB", "theirs", "s", "CPU s", "peak MB")
    table = [(*head, "ratio", "of CPU", "of best", "target", "met")]
    for result in results:
        target = result.target
        wanted = [] if target.ratio is None else [f"≤ {target.ratio:.3g}"]
        if target.peak is not None:
            wanted.append(f"≤ {target.peak // MB} MB")
        if target.seconds is not None:
            wanted.append(f"≤ {target.seconds:g} s")
        table.append(
            (
                *(result.benchmark, target.ours, *_cells(result.ours)),
                *(target.theirs, *_cells(result.theirs)),
                *(
                    f"{result.wall_ratio:.3f}",
                    f"{result.cpu_ratio:.3f}",
                    f"{result.best_ratio:.3f}",
                ),
                *(", ".join(wanted), {True: "yes", False: "NO", None: ""}[result.met]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell.ljust(width)
            if title in {"benchmark", "ours", "theirs", "target"}
            else cell.rjust(width)
            for cell, width, title in zip(row, widths, table[0], strict=True)
        )
        print("  ".join(cells).rstrip())


def _cells(cost: Cost) -> tuple[str, str, str]:
    peak = "" if cost.peak is None else f"{cost.peak / MB:.1f}"
    return f"{cost.wall:.3f}", f"{cost.cpu:.3f}", peak


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a smaller file and fewer rounds")
    names = ["inspect", "parse", "strip", "rename", "stats", "audit", "safetensors", "containers"]
    names += ["contents", "merge", "lora", "help", "many"]
    parser.add_argument("--only", choices=names)
    parser.add_argument("--size-gb", type=float, metavar="N", help="the large file (default: 2)")
    parser.add_argument("--dir", type=Path, help="where the files are made (default: TMPDIR)")
    parser.add_argument("--mergekit", help="its mergekit-pytorch, to compare with (default: PATH)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.size_gb is None:
        options.size_gb = 0.25 if options.quick else 2.0
    # as pip leaves an installed package; here the environment may forbid Python to do it
    compileall.compile_dir(ROOT / "ckpt_surgery", quiet=1)
    load = [os.getloadavg()[0]]
    try:
        results, failed = run(options)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: not measured: {error}", file=sys.stderr)
        return 2
    load.append(os.getloadavg()[0])
    if options.json:
        print(
            json.dumps({"load": load, "results": [asdict(result) for result in results]}, indent=1)
        )
    else:
        show(results)
        print(f"load of the machine: {load[0]:.2f} before, {load[1]:.2f} after")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
