"""Tensor bytes are neither read nor held: neither grows with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt_surgery import Output, StripPrefix, inspect, rename, selection, strip
from ckpt_surgery.fileio import FileSource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measured as Linux counts")

REPOSITORY = Path(__file__).resolve().parents[1]
MEBIBYTE = 1 << 20


def sparse_checkpoint(path: Path, tensors: int, mebibytes: int) -> Path:
    """An archive of torch.save whose tensors are holes of the file: `mebibytes` in all."""
    numel = mebibytes * MEBIBYTE // 4 // tensors
    with torch.serialization.skip_data():
        state_dict = OrderedDict(
            (f"module.layers.{i}.weight", torch.empty(numel)) for i in range(tensors)
        )
        torch.save(state_dict, path)
    assert path.stat().st_blocks * 512 < path.stat().st_size // 4
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sparse")
    return {size: sparse_checkpoint(folder / f"{size}.pth", 50, size) for size in (50, 200, 1000)}


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of every read that goes through the package."""
    counted: list[int] = []
    read_at = FileSource.read_at

    def counting(self: FileSource, offset: int, nbytes: int) -> bytes:
        counted.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", counting)
    return counted


def test_reading_never_reads_tensor_bytes(files: dict[int, Path], bytes_read: list[int]) -> None:
    report = inspect(files[200])
    assert report.totals.nbytes > 190 * MEBIBYTE
    assert 0 < sum(bytes_read) < MEBIBYTE


def test_planning_never_reads_tensor_bytes(files: dict[int, Path], bytes_read: list[int]) -> None:
    dry_run = Output(dry_run=True)
    assert strip(files[200], dry_run, selection(prefix="module.layers.7")).removed
    assert strip(files[200], dry_run, compact=True).plan
    assert rename(files[200], dry_run, [StripPrefix("module.")]).renamed
    assert 0 < sum(bytes_read) < 2 * MEBIBYTE


def test_a_rewrite_leaves_tensor_bytes_to_the_kernel(bytes_read: list[int], tmp_path: Path) -> None:
    """Of a file with checksums, which are known then; those of a sparse one must be computed."""
    torch.save({"module.weight": torch.zeros(10 * MEBIBYTE)}, tmp_path / "in.pth")
    rename(tmp_path / "in.pth", tmp_path / "out.pth", [StripPrefix("module.")])
    assert (tmp_path / "out.pth").stat().st_size > 40 * MEBIBYTE
    assert sum(bytes_read) < 2 * MEBIBYTE


def test_inspect_of_an_open_file_reads_kilobytes(files: dict[int, Path]) -> None:
    """As the kernel counts it, for the whole process and whatever way it reads."""
    script = (
        "from pathlib import Path; import sys\n"
        "from ckpt_surgery.cli.main import cli\n"
        "def read(): return int(Path('/proc/self/io').read_text().split()[1])\n"
        "import ckpt_surgery.cli.commands.inspect, ckpt_surgery.formats.torch_zip, csv, json\n"
        "sys.stdout = open('/dev/null', 'w')\n"
        "before = read()\n"
        "try: cli.main(['inspect', '--json', sys.argv[1]])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "sys.__stdout__.write(str(read() - before))\n"
    )
    if not Path("/proc/self/io").exists():
        pytest.skip("the kernel does not count")
    done = subprocess.run(
        [sys.executable, "-c", script, str(files[1000])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 2 * MEBIBYTE


def peak(*line: str) -> int:
    """The most bytes that were resident while a command ran in its own process."""
    script = (
        "import os, resource, subprocess, sys, json\n"
        "done = subprocess.run([sys.executable, '-m', 'ckpt_surgery', *sys.argv[1:]],"
        " stdout=subprocess.DEVNULL)\n"
        "usage = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, usage.ru_maxrss * 1024]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *line],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    code, resident = json.loads(done.stdout)
    assert code == 0, done.stderr
    return int(resident)


@pytest.mark.parametrize(
    "line",
    [
        ["inspect"],
        ["strip", "--prefix", "module.layers.7"],
        ["strip", "--prefix", "module.layers.7", "--compact"],
        ["rename", "--strip-prefix", "module."],
    ],
    ids=["inspect", "strip", "strip and compact", "rename"],
)
def test_peak_memory_does_not_grow_with_the_file(
    line: list[str], files: dict[int, Path], tmp_path: Path
) -> None:
    peaks = {}
    for size in (50, 1000):
        out = tmp_path / f"{size}.pth"
        output = [] if line == ["inspect"] else ["-o", str(out)]
        peaks[size] = peak(*line, str(files[size]), *output)
        out.unlink(missing_ok=True)
    assert peaks[1000] - peaks[50] < 10 * MEBIBYTE
    assert peaks[1000] < 100 * MEBIBYTE


def test_peak_memory_of_distributed_checkpoints_does_not_grow(
    files: dict[int, Path], tmp_path: Path
) -> None:
    peaks: dict[int, list[int]] = {}
    for size in (50, 200):
        folder, back = str(tmp_path / f"{size}"), str(tmp_path / f"{size}.pth")
        peaks[size] = [
            peak("convert", str(files[size]), "--format", "dcp", "-o", folder),
            peak("convert", folder, "-o", back),
        ]
    assert max(b - a for a, b in zip(peaks[50], peaks[200], strict=True)) < 10 * MEBIBYTE
    assert max(peaks[200]) < 100 * MEBIBYTE


def test_columns_of_ranks_are_put_together_in_less_memory_than_they_have(tmp_path: Path) -> None:
    for rank in range(2):
        with torch.serialization.skip_data():
            torch.save({"w": torch.empty(1000, 25_000)}, tmp_path / f"rank{rank}.pt")
    line = ("consolidate", str(tmp_path), "--axis", "w=1", "-o", str(tmp_path / "whole.pth"))
    assert peak(*line) < 50_000_000  # of 200 MB
    assert (tmp_path / "whole.pth").stat().st_size > 200_000_000
