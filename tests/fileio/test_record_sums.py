"""Checksums computed piece by piece are those of the whole."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import ByteRange, FileSource, MemorySource, record_sums
from ckpt_surgery.fileio.parallel import Tally
from ckpt_surgery.fileio.record_sums import crc32_of


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_every_range_has_its_own(threads: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sums, "_PIECE", piece)
    monkeypatch.setattr(record_sums, "_BUFFER", 5)
    data = bytes(range(256))
    source = MemorySource(data, name="memory")
    ranges = [ByteRange(source, *place) for place in ((0, 256), (3, 0), (10, 100), (255, 1))]
    told: list[int] = []
    found = list(crc32_of(ranges, threads=threads, tally=Tally(told.append)))
    assert found == [zlib.crc32(data[r.offset : r.offset + r.nbytes]) for r in ranges]
    assert sum(told) == 357


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    with FileSource.open(path) as source:
        path.write_bytes(b"")
        with pytest.raises(DamagedFileError):
            list(crc32_of([ByteRange(source, 0, 100)]))
