"""Records found by their marks, whatever the directory says."""

from __future__ import annotations

import io
import zipfile
import zlib

import pytest
from memory_sink import MemorySink

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.fileio import Bytes, MemorySource, zip_salvage
from ckpt_surgery.fileio.zip_salvage import FoundRecord, find_records
from ckpt_surgery.fileio.zip_write import lay_out

RECORDS = {"data.pkl": b"pickle", "data/0": b"PK\x03\x04 inside" * 3, "empty": b"", "version": b"3"}


def archive() -> bytes:
    sink = MemorySink()
    lay_out("root", [(name, Bytes(data)) for name, data in RECORDS.items()]).write(sink)
    return bytes(sink.data)


def found(data: bytes) -> dict[str, FoundRecord]:
    return {each.name: each for each in find_records(MemorySource(data, name="memory"))}


def whole(data: bytes) -> list[str]:
    """Names below the root of the records whose bytes and checksum are as they were."""
    records = found(data)
    return [
        name
        for name, content in RECORDS.items()
        if (each := records.get(f"root/{name}")) is not None
        and each.stored_nbytes == each.nbytes == len(content)
        and data[each.start : each.start + len(content)] == content
        and (not content or zlib.crc32(content) in each.crc32)
    ]


def test_every_record_of_a_whole_archive_is_found() -> None:
    assert whole(archive()) == list(RECORDS)


def test_without_its_directory_every_record_is_found() -> None:
    data = archive()
    assert whole(data[: data.index(b"PK\x01\x02")]) == list(RECORDS)


@pytest.mark.parametrize("mark", [b"PK\x07\x08", b"PK\x03\x04root/data.pkl"[:4]])
def test_with_its_directory_no_other_mark_is_needed(mark: bytes) -> None:
    data = archive()
    assert whole(data.replace(mark, b"XXXX", 1)) == list(RECORDS)


def test_a_record_that_is_cut_has_no_length() -> None:
    data = archive()
    cut = found(data[: data.index(b"PK\x03\x04 inside") + 5])
    assert cut["root/data/0"].stored_nbytes is None
    assert cut["root/data/0"].crc32 == ()


@pytest.mark.parametrize("nbytes", [0, 3, 30, 45])
def test_any_beginning_can_be_looked_at(nbytes: int) -> None:
    assert not [each for each in found(archive()[:nbytes]).values() if each.stored_nbytes]


def test_archives_of_other_programs() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("a/b", b"x" * 1000)
    record = found(buffer.getvalue())["a/b"]
    assert (record.method, record.nbytes) == (8, 1000)
    assert record.stored_nbytes is not None
    assert record.stored_nbytes < 1000


def test_marks_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_salvage, "_MOST", 10)
    with pytest.raises(LimitExceededError, match="more than 10 signatures"):
        found(b"PK\x03\x04" * 11)


def test_marks_are_found_across_the_border_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (5, 6, 7, 64):
        monkeypatch.setattr(zip_salvage, "CHUNK", chunk)
        assert whole(archive()) == list(RECORDS)
