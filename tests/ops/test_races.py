"""What another program does to the files while they are read and written."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ckpt_surgery
from ckpt_surgery import Output, selection
from ckpt_surgery.errors import CkptError, ReadError, WriteError

STATE = {"conv.weight": torch.ones(1 << 17), "fc.weight": torch.zeros(1 << 17)}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, "train.pth")
    torch.save(STATE, "other.pth")
    return tmp_path / "train.pth"


def once(action):
    """A progress bar that does `action` after the first bytes are written."""

    @contextmanager
    def bar(_nbytes):
        left = [action]
        yield lambda _: left and left.pop()()

    return bar


def touch(path):
    with Path(path).open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    os.utime(path, ns=(5, 5))


@pytest.mark.parametrize("where", [{"path": "out.pth"}, {"in_place": True}])
@pytest.mark.parametrize("verb", ["strip", "rename", "convert", "fit"])
def test_a_file_that_changes_while_it_is_copied_is_no_source(verb, where, file):
    output = Output(**where, progress=once(lambda: touch("train.pth")))
    edits = {
        "strip": lambda: ckpt_surgery.strip("train.pth", output, selection(prefix="fc")),
        "rename": lambda: ckpt_surgery.rename(
            "train.pth", output, [ckpt_surgery.AddPrefix("module.")]
        ),
        "convert": lambda: ckpt_surgery.convert("train.pth", output),
        "fit": lambda: ckpt_surgery.fit("train.pth", output, like="other.pth"),
    }
    with pytest.raises(ReadError, match=r"'train\.pth': another program changed it"):
        edits[verb]()
    assert {path.name for path in file.parent.iterdir()} == {"train.pth", "other.pth"}
    assert file.stat().st_mtime_ns == 5


@pytest.mark.parametrize("method", ["overlay", "average"])
def test_every_file_of_a_merge_is_looked_at(method, file):
    output = Output("out.pth", progress=once(lambda: touch("other.pth")))
    with pytest.raises(ReadError, match=r"'other\.pth': another program changed it"):
        ckpt_surgery.merge(["train.pth", "other.pth"], output, method)
    assert not Path("out.pth").exists()


def test_of_two_edits_at_once_none_is_lost(file):
    """The second finds the first's file where the one that it read was."""

    def first():
        ckpt_surgery.strip("train.pth", Output(in_place=True), selection(prefix="fc"))

    second = Output(in_place=True, progress=once(first))
    with pytest.raises(WriteError, match="another program replaced it"):
        ckpt_surgery.rename("train.pth", second, [ckpt_surgery.AddPrefix("module.")])
    assert list(torch.load("train.pth")) == ["conv.weight"]


def test_a_file_that_is_read_no_longer_matters_may_go(file):
    """An open file stays what it was when another takes its name."""

    def replace():
        torch.save({"new": torch.ones(1)}, "theirs.pth")
        Path("theirs.pth").replace("train.pth")

    output = Output("out.pth", progress=once(replace))
    ckpt_surgery.strip("train.pth", output, selection(prefix="fc"))
    assert torch.equal(torch.load("out.pth")["conv.weight"], STATE["conv.weight"])


def test_a_target_that_is_the_map_is_refused_before_the_map_is_written(file):
    before = Path("other.pth").read_bytes()
    for dry_run in (False, True):
        output = Output("out.pth", force=True, dry_run=dry_run)
        with pytest.raises(CkptError, match="'--emit-map' is the input"):
            ckpt_surgery.fit("train.pth", output, like="other.pth", emit_map="other.pth")
    assert Path("other.pth").read_bytes() == before
