"""Laws of running again: a file that holds the same already is no error, and is let alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckpt_surgery as ckpt
from ckpt_surgery.fileio.unchanged import holds, write_unless_same
from ckpt_surgery.formats.base import LayoutOptions

OLD = 1_000_000_000  # seconds, long ago


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A training checkpoint of 40 kB, written into tmp_path."""
    torch.manual_seed(0)
    path = tmp_path / "train.pth"
    torch.save({"state_dict": {"w": torch.randn(100, 100)}, "optimizer": {"lr": 0.1}}, path)
    return path


def strip(file: Path, out: Path, **how: bool) -> ckpt.EditReport:
    wanted = ckpt.StripRequest(training_state=True)
    return ckpt.strip(file, ckpt.Output(out, **how), wanted)


def aged(path: Path) -> bytes:
    os.utime(path, (OLD, OLD))
    return path.read_bytes()


def test_the_same_under_an_existing_name_is_no_error_and_the_file_counts_as_new(file, tmp_path):
    out = tmp_path / "w.pth"
    strip(file, out)
    before, place = aged(out), out.stat().st_ino
    report = strip(file, out)
    assert report.warnings == (f"'{out}' holds this already",)
    assert (out.read_bytes(), out.stat().st_ino) == (before, place)
    assert out.stat().st_mtime > OLD


def test_if_changed_leaves_the_same_alone_and_replaces_what_differs(file, tmp_path):
    out = tmp_path / "w.pth"
    strip(file, out)
    before = aged(out)
    strip(file, out, if_changed=True)
    assert (out.read_bytes(), out.stat().st_mtime) == (before, OLD)
    out.write_bytes(before[:-1] + b"x")  # of the same size
    assert strip(file, out, if_changed=True).warnings == ()
    assert out.read_bytes() == before
    out.write_bytes(b"")
    strip(file, out, if_changed=True)
    assert out.read_bytes() == before


def test_another_content_is_refused_as_before(file, tmp_path):
    out = tmp_path / "w.pth"
    strip(file, out)
    changed = bytearray(out.read_bytes())
    changed[2000] ^= 1
    out.write_bytes(changed)
    with pytest.raises(ckpt.WriteError, match="already exists"):
        strip(file, out)
    assert out.read_bytes() == changed


def test_in_place_with_if_changed_writes_nothing_where_nothing_changes(file):
    strip(file, file.with_name("w.pth"))
    out = file.with_name("w.pth")
    aged(out)
    same = ckpt.ConvertRequest()
    ckpt.convert(out, ckpt.Output(in_place=True, if_changed=True), same)
    assert out.stat().st_mtime == OLD
    ckpt.convert(out, ckpt.Output(in_place=True), same)
    assert out.stat().st_mtime > OLD


def test_what_is_computed_is_compared_too_and_counted_once(tmp_path):
    torch.save({"w": torch.full((64,), 1.0001)}, tmp_path / "a.pth")
    torch.save({"w": torch.full((64,), 3.0001)}, tmp_path / "b.pth")
    request = ckpt.MergeRequest("average", dtype="float16")
    sources = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for _ in range(2):
        report = ckpt.merge(sources, ckpt.Output(tmp_path / "m.pth", if_changed=True), request)
        (cast,) = report.to_dict()["casts"]
        assert cast["elements"] == 64
    assert report.warnings[-1].endswith("holds this already")


def test_directories_are_compared_file_by_file(file, tmp_path):
    out = tmp_path / "shards"
    how = {"format": "torch-index", "options": LayoutOptions(max_shard_size=20_000)}
    wanted = ckpt.ConvertRequest(state_dict_only=True, at="state_dict")
    ckpt.convert(file, ckpt.Output(out, **how), wanted)
    names = sorted(each.name for each in out.iterdir())
    report = ckpt.convert(file, ckpt.Output(out, **how), wanted)
    assert report.warnings[-1] == f"'{out}' holds this already"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ckpt.WriteError, match="already exists"):
        ckpt.convert(file, ckpt.Output(out, **how), wanted)
    assert sorted(each.name for each in out.iterdir()) == sorted([*names, "notes.txt"])


def test_small_files_likewise(tmp_path):
    path = tmp_path / "plan.toml"
    write_unless_same(path, b"a = 1\n")
    aged(path)
    write_unless_same(path, b"a = 1\n", if_changed=True)
    assert path.stat().st_mtime == OLD
    write_unless_same(path, b"a = 1\n")
    assert path.stat().st_mtime > OLD
    with pytest.raises(ckpt.WriteError, match="already exists"):
        write_unless_same(path, b"a = 2\n")
    write_unless_same(path, b"a = 2\n", if_changed=True)
    assert path.read_bytes() == b"a = 2\n"
    assert not holds(tmp_path, 0, lambda sink: sink.write(b""))


def test_make_runs_twice(file, tmp_path):
    line = f"{sys.executable} -m ckpt_surgery strip $< --training-state -q -o $@"
    (tmp_path / "Makefile").write_text(f"w.pth: train.pth\n\t{line}\n")
    for _ in range(2):
        done = subprocess.run(["make", "-s"], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        os.utime(file)
    (tmp_path / "w.pth").stat()


def test_a_run_that_changes_nothing_does_not_say_that_it_wrote(file, tmp_path):
    from click.testing import CliRunner

    from ckpt_surgery.cli.main import cli

    for verb in (["convert", str(file)], ["merge", str(file), str(file), "-m", "average"]):
        out = str(tmp_path / f"{verb[0]}.pth")
        first, second = (CliRunner().invoke(cli, [*verb, "-o", out]).stdout for _ in range(2))
        assert f"written to {out}" in first
        assert f"{out} is as it was" in second
        assert "written to" not in second
