"""A checkpoint in a compressed stream is read through it, up to a bound."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import torch
from torch_checks import assert_same

from ckpt_surgery import (
    DamagedFileError,
    LimitExceededError,
    MissingDependencyError,
    ReadError,
    UnknownFormatError,
    UsageError,
    convert,
    inspect,
    read,
    selection,
    strip,
)
from ckpt_surgery.formats import streams
from ckpt_surgery.writing.output import Output

STATE = {"w": torch.arange(1000.0), "b": torch.ones(3)}


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_stream_is_read_as_what_it_holds(compress, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_IN_MEMORY", in_memory)
    plain, packed = tmp_path / "w.pth", tmp_path / "w.pth.packed"
    torch.save(STATE, plain)
    packed.write_bytes(compress(plain.read_bytes()))
    report = inspect(packed)
    assert (report.format, report.size) == ("torch-zip", plain.stat().st_size)
    convert(packed, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == plain.read_bytes()
    strip(packed, tmp_path / "less.pth", selection(name="b"))
    assert_same(torch.load(tmp_path / "less.pth", weights_only=True), {"w": STATE["w"]})


def test_stream_cannot_be_edited_in_place(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    packed = tmp_path / "w.pth.gz"
    packed.write_bytes(gzip.compress((tmp_path / "w.pth").read_bytes()))
    before = packed.read_bytes()
    with pytest.raises(UsageError, match="edited in place"):
        strip(packed, Output(in_place=True), selection(name="b"))
    assert packed.read_bytes() == before


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_stream_is_said(compress, damage, tmp_path):
    torch.save({"w": torch.randn(5000)}, tmp_path / "w.pth")
    data = bytearray(compress((tmp_path / "w.pth").read_bytes()))
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0xFF
    path = tmp_path / "w.packed"
    path.write_bytes(data)
    with pytest.raises(DamagedFileError):
        inspect(path)


def test_cut_stream_of_zstd_is_no_checkpoint(tmp_path):
    """Its library does not tell the end of a stream from the end of a file."""
    torch.save({"w": torch.randn(50_000)}, tmp_path / "w.pth")
    path = tmp_path / "w.zst"
    data = zstd((tmp_path / "w.pth").read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError):
        inspect(path)


def test_header_of_zstd_that_makes_no_sense_is_damage(tmp_path):
    pytest.importorskip("zstandard")
    path = tmp_path / "w.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 30)
    with pytest.raises(DamagedFileError, match="the zstd stream is damaged"):
        read(path)


def test_stream_that_is_far_more_than_it_seems_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_ALWAYS", 1 << 16)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(LimitExceededError, match="far more than it is"):
        inspect(path)


def test_stream_of_something_else_says_what(tmp_path):
    path: Path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"some words, and no weights at all"))
    with pytest.raises(UnknownFormatError, match="this is text"):
        inspect(path)


def test_missing_module_is_named(tmp_path, monkeypatch):
    path = tmp_path / "w.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(40))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match="needs the package 'zstandard'"):
        inspect(path)
