"""What one run of a command takes, and the ratio of two that ran in turn; see `benchmarks`."""

from __future__ import annotations

import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# No torch in this process: Linux counts the memory of one that starts a command as the command's.

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
INSTALLED = Path(sys.executable).with_name("ckpt")
CKPT = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "ckpt_surgery"]
MB = 1_000_000

TORCH_LIST = """
import sys, torch
for key, tensor in torch.load(sys.argv[1], mmap=True, weights_only=True).items():
    print(key, tuple(tensor.shape))
"""
CKPT_EDIT = {"strip": ["--prefix", "embed"], "rename": ["--add-prefix", "module"]}


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds of the clock, of the processors, and bytes at the peak."""

    wall: float
    cpu: float
    peak: int | None = None


@dataclass(frozen=True)
class Command:
    """A command line to measure; one on a terminal has a pseudo-terminal as standard output."""

    name: str
    line: Sequence[str]
    writes: Path | None = None
    on_terminal: bool = False

    def run(self) -> Cost:
        """Run it once. What it wrote is removed, so that no later run pays for writing it."""
        cost = measure(self.line, on_terminal=self.on_terminal)
        if self.writes is not None:
            shutil.rmtree(self.writes) if self.writes.is_dir() else self.writes.unlink()
            os.sync()
        return cost


@dataclass(frozen=True)
class Target:
    """Ours is to take at most `ratio` of what `theirs` takes, `peak` bytes of memory, `seconds`."""

    ours: str
    theirs: str
    ratio: float | None = None
    peak: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Result:
    """The medians of both sides, the medians of the rounds' ratios, and how the target fared.

    `best_ratio` is between the fastest run of each side, which disturbances hardly touch; the
    target is about `wall_ratio`.
    """

    benchmark: str
    target: Target
    ours: Cost
    theirs: Cost
    wall_ratio: float
    cpu_ratio: float
    best_ratio: float
    met: bool | None


def measure(line: Sequence[str], *, on_terminal: bool = False) -> Cost:
    """Run a command, and ask the system what it took. Raises `RuntimeError` if it fails."""
    screen, stdout = pty.openpty() if on_terminal else (-1, subprocess.DEVNULL)
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(line, cwd=ROOT, stdout=stdout, stderr=errors)
        if on_terminal:
            os.close(stdout)
            with suppress(OSError):  # Linux reports the end of a terminal as an error
                while os.read(screen, 1 << 16):
                    pass
            os.close(screen)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(line)}\n{errors.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def in_turn(jobs: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """What `jobs` took, run one after the other in every round; the first round is left out."""
    costs = [{name: job() for name, job in jobs.items()} for _ in range(rounds + 1)][1:]
    return {name: [of_round[name] for of_round in costs] for name in jobs}


def compare(
    benchmark: str, costs: dict[str, list[Cost]], targets: Sequence[Target]
) -> Iterator[Result]:
    """The result of each target."""
    for target in targets:
        ours, theirs = costs[target.ours], costs[target.theirs]
        pairs = list(zip(ours, theirs, strict=True))
        wall_ratio = statistics.median(a.wall / b.wall for a, b in pairs)
        total = _total(ours)
        met = [] if target.ratio is None else [wall_ratio <= target.ratio]
        if target.peak is not None and total.peak is not None:
            met.append(total.peak <= target.peak)
        if target.seconds is not None:
            met.append(total.wall <= target.seconds)
        yield Result(
            benchmark,
            target,
            total,
            _total(theirs),
            wall_ratio,
            statistics.median(a.cpu / b.cpu for a, b in pairs),
            min(cost.wall for cost in ours) / min(cost.wall for cost in theirs),
            all(met) if met else None,
        )


def _total(costs: Sequence[Cost]) -> Cost:
    peaks = [cost.peak for cost in costs if cost.peak is not None]
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        max(peaks) if peaks else None,
    )
