"""Compressed records: bounded, exact, and only where they are allowed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from zip_builder import Part, build, deflated

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import FileSource, ZipArchive, read_zip


def read(data: bytes, tmp_path: Path) -> ZipArchive:
    path = tmp_path / "archive.pt"
    path.write_bytes(data)
    return read_zip(FileSource.open(path))


def inflating(data: bytes, stored: bytes, **central: Any) -> bytes:
    values = {"crc": zlib.crc32(data), "stored": len(stored), "nbytes": len(data)} | central
    part = Part(b"a/code/x.py", data, stored, 0x0800, 8, local=values, central=values)
    return build(part, Part(name=b"a/constants.pkl"))


@pytest.mark.parametrize("size", [0, 1, 99, 3 << 20])
def test_compressed_record_inflates(size: int, tmp_path: Path) -> None:
    data = b"x" * size
    record = read(inflating(data, deflated(data)), tmp_path).records[0]
    assert record.compressed
    assert record.data.crc32 is None  # the directory's is that of the decoded bytes
    assert record.crc32 == zlib.crc32(data)
    assert record.read(size) == data


def test_incompressible_record_of_several_chunks_inflates(tmp_path: Path) -> None:
    data = struct.pack("<700000Q", *((i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(700000)))
    record = read(inflating(data, deflated(data)), tmp_path).records[0]
    assert record.data.nbytes > 2 << 20
    assert record.read(len(data)) == data


def test_record_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    archive = read(build(Part()), tmp_path)
    with pytest.raises(LimitExceededError, match="6 bytes, more than 5"):
        archive.records[0].read(5)


@pytest.mark.parametrize(
    ("stored", "claimed", "message"),
    [
        (deflated(b"x" * 1000), 10, "does not inflate to the 10 bytes"),  # a bomb
        (deflated(b"x" * 10), 11, "does not inflate to the 11 bytes"),
        (deflated(b"x" * 10)[:-1], 10, "does not inflate to the 10 bytes"),
        (deflated(b"x" * 10) + b"more", 10, "does not inflate to the 10 bytes"),
        (deflated(b"x" * 10) + bytes(2 << 20), 10, "does not inflate to the 10 bytes"),
        (b"\xff\xff\xff", 10, "cannot be inflated"),
        (b"", 10, "does not inflate to the 10 bytes"),
    ],
)
def test_record_that_inflates_otherwise_is_refused(
    stored: bytes, claimed: int, message: str, tmp_path: Path
) -> None:
    record = read(inflating(b"", stored, nbytes=claimed), tmp_path).records[0]
    with pytest.raises(DamagedFileError, match=message):
        record.read(1 << 20)
