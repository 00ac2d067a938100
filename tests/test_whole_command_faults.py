"""Whatever happens to a command, its destination is the old file or the whole new one."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and fork")

RUNNER = Path(__file__).with_name("support") / "fault_runner.py"
REPOSITORY = RUNNER.parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
SIGNALS = ("kill", "interrupt", "terminate")
ERRORS = ("no space", "i/o error", "not permitted")
EXIT_CODES = {"kill": -9, "interrupt": 130, "terminate": 143}

EDITS = {
    "strip": ["strip", "in.pth", "--prefix", "block.1"],
    "rename": ["rename", "in.pth", "--add-prefix", "module."],
    "convert": ["convert", "in.pth", "--state-dict-only"],
}
WAYS = {
    "in place": ["--in-place"],
    "forced": ["-o", "out.pth", "--force"],
    "new": ["-o", "out.pth"],
}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint with tensors large enough for the kernel's copies, and small ones."""
    path = tmp_path_factory.mktemp("faults") / "train.pth"
    weights = OrderedDict((f"block.{i}.weight", torch.full((30_000,), float(i))) for i in range(3))
    torch.save({"epoch": 1, "state_dict": weights | {"bias": torch.ones(3)}}, path)
    return path


def disturbed(small_file: Path, edit: str, way: str, faults: tuple[str, ...]) -> Iterator[Any]:
    job = {
        "line": [*EDITS[edit], *WAYS[way]],
        "input": str(small_file),
        "output": None if way == "in place" else "out.pth",
        "exists": way == "forced",
        "faults": faults,
    }
    done = subprocess.run(
        [sys.executable, str(RUNNER)],
        input=json.dumps([job]),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    undisturbed, *results = map(json.loads, done.stdout.splitlines())
    assert undisturbed["code"] == 0
    publishing = {"link"} if way == "new" else {"fsync", "replace"}
    assert {"open", "write"} | publishing <= set(undisturbed["calls"])
    assert len(results) == len(undisturbed["calls"]) * len(faults) > 8
    yield from results


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edit", EDITS)
def test_ended_command_leaves_the_old_file_or_the_new_one(
    edit: str, way: str, small_file: Path
) -> None:
    """Killed, interrupted or terminated after each system call."""
    states = set()
    for result in disturbed(small_file, edit, way, SIGNALS):
        assert result["destination"] in {"old", "new"}, result
        assert result["input_kept"] or way == "in place", result
        finished = result["destination"] == "new" and result["code"] == 0
        assert finished or result["code"] == EXIT_CODES[result["fault"]], result
        if result["fault"] == "kill":  # nobody is left to remove it, and no name is taken
            assert len(result["left"]) <= 1, result
            assert all(n.startswith(".") and n.endswith(".tmp") for n in result["left"]), result
        else:
            assert result["left"] == [], result
        states.add(result["destination"])
    assert states == {"old", "new"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edit", EDITS)
def test_failed_system_call_leaves_the_old_file_and_nothing_else(
    edit: str, way: str, small_file: Path
) -> None:
    """Where the call can be done without (a copy by the kernel, the mode), the new file."""
    codes = set()
    for result in disturbed(small_file, edit, way, ERRORS):
        assert result["left"] == [], result
        wanted = {0: "new", 2: "old"}
        assert result["destination"] == wanted.get(result["code"]), result
        codes.add(result["code"])
    assert 2 in codes


@pytest.mark.parametrize("way", WAYS)
def test_memory_that_does_not_suffice_leaves_the_old_file_and_nothing_else(
    way: str, small_file: Path
) -> None:
    for result in disturbed(small_file, "rename", way, ("no memory",)):
        assert result["left"] == [], result
        published = way != "new" and result["call"] == "fsync" and result["destination"] == "new"
        assert result["destination"] == "old" or published, result
        assert result["code"] == 2, result


def run(folder: Path, *line: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckpt_surgery", *line],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


def test_full_disk_leaves_the_old_file_and_says_so(small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.pth").write_bytes(small_file.read_bytes())
    (tmp_path / "out.pth").write_bytes(b"old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run(tmp_path, *EDITS["rename"], *WAYS["forced"], preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'out.pth': cannot be written: ")
    assert (tmp_path / "out.pth").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.pth"}


@pytest.mark.parametrize("line", [["inspect", "bomb"], ["rename", "bomb", "--add-prefix", "a"]])
def test_file_that_fills_the_memory_is_bad_input(line: list[str], tmp_path: Path) -> None:
    """Every byte of this pickle makes a dictionary, as many as the budget still allows."""
    pickle = b"\x80\x02(" + b"}" * 1_900_000 + b"t."
    with zipfile.ZipFile(tmp_path / "bomb", "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/version", b"3\n")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))

    done = run(tmp_path, *line, *WAYS["new"][: 2 * (line[0] == "rename")], preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'bomb': out of memory: ")
    assert {path.name for path in tmp_path.iterdir()} == {"bomb"}


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic link", "hard link"])
@pytest.mark.parametrize("edit", EDITS)
def test_output_that_is_the_input_is_refused_through_links(
    edit: str, link: Any, small_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.pth").write_bytes(small_file.read_bytes())
    link(tmp_path / "in.pth", tmp_path / "out.pth")
    done = run(tmp_path, *EDITS[edit], *WAYS["forced"])
    assert done.returncode == 2
    assert "the output is the input" in done.stderr
    assert (tmp_path / "in.pth").read_bytes() == small_file.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.pth"}


def test_killed_at_any_time_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """60 MB, by the clock instead of by system calls."""
    state_dict = OrderedDict((f"block.{i}.weight", torch.rand(750_000)) for i in range(20))
    original = tmp_path / "original.pth"
    torch.save(state_dict, original)
    old = original.read_bytes()
    (tmp_path / "in.pth").write_bytes(old)
    start = time.monotonic()
    assert run(tmp_path, *EDITS["strip"], "-o", "new.pth").returncode == 0
    whole = time.monotonic() - start
    new = (tmp_path / "new.pth").read_bytes()
    rng = random.Random(0)
    for _ in range(6):
        (tmp_path / "in.pth").write_bytes(old)
        line = [sys.executable, "-m", "ckpt_surgery", *EDITS["strip"], "--in-place"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, **quiet) as process:
            time.sleep(rng.uniform(0.5, 1.0) * whole)
            process.kill()
        assert (tmp_path / "in.pth").read_bytes() in (old, new)
