"""Reading by position, and the ways in which it fails."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ckpt_surgery.errors import CkptError, DamagedFileError, ReadError
from ckpt_surgery.fileio import (
    CHUNK,
    ByteRange,
    Bytes,
    ByteSource,
    FileSource,
    MemorySource,
    PartSource,
    Source,
)
from ckpt_surgery.fileio.sources import is_at

DATA = bytes(range(256)) * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.write_bytes(DATA)
    return path


def feed(fd: int, data: bytes) -> threading.Thread:
    def run() -> None:
        with os.fdopen(fd, "wb") as out:
            out.write(data)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_file_is_read_by_position(path: Path) -> None:
    with FileSource.open(path) as file:
        assert (file.name, file.path, file.size) == (str(path), str(path), len(DATA))
        assert file.read_at(5, 7) == DATA[5:12]
        assert file.read_at(0, 3) == DATA[:3]
        assert file.read_at(len(DATA), 0) == b""
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0


def test_short_reads_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: pread(fd, min(n, 3), offset))
    assert FileSource.open(path).read_at(1, 100) == DATA[1:101]


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, len(DATA) + 1), (len(DATA), 1), (-1, 2), (5, -1)]
)
def test_read_beyond_the_end_is_refused(path: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(DamagedFileError, match=f"the file ends at byte {len(DATA)}"):
        FileSource.open(path).read_at(offset, nbytes)


def test_file_that_shrinks_while_it_is_read_is_refused(path: Path) -> None:
    file = FileSource.open(path)
    os.truncate(path, 10)
    with pytest.raises(DamagedFileError, match="the file ends at byte 10,"):
        file.read_at(4, 100)


def test_read_that_fails_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ReadError, match="cannot be read: input/output error"):
        FileSource.open(path).read_at(0, 1)


def test_closed_file_is_refused(path: Path) -> None:
    file = FileSource.open(path)
    file.close()
    file.close()
    with pytest.raises(ReadError, match="the file is closed"):
        file.read_at(0, 1)
    assert repr(file) == f"FileSource({str(path)!r}, {len(DATA)} bytes)"


def test_forgotten_file_is_closed(path: Path) -> None:
    file = FileSource.open(path)
    fd = file.fileno()
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pth", "no such file"),
        ("weights.pth/below", "not a directory"),
        (".", "is a directory"),
        ("null\0byte", "cannot be read"),
        ("/dev/null", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_what_cannot_be_opened_is_refused(path: Path, name: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        FileSource.open(path.parent / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_file_is_refused(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(ReadError, match="permission denied"):
        FileSource.open(path)


def test_file_that_becomes_a_device_while_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda _name, flags: real("/dev/zero", flags))
    with pytest.raises(ReadError, match="is not a regular file"):
        FileSource.open(path)


def test_named_pipe_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = DATA * 1000
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    with FileSource.open(path) as file:
        thread.join()
        assert (file.name, file.path, file.size) == (str(path), None, len(data))
        assert file.read_at(0, len(data)) == data


def test_redirected_file_is_used_directly(path: Path) -> None:
    with path.open("rb") as stream, FileSource.from_stream(stream) as file:
        assert is_at(file, path)
        assert (file.name, file.path) == ("<stdin>", None)
        stream.close()
        assert file.read_at(0, len(DATA)) == DATA


def test_file_whose_start_was_consumed_is_copied_from_there(path: Path) -> None:
    with path.open("rb") as stream:
        stream.read(100)
        with FileSource.from_stream(stream, "rest") as file:
            assert not is_at(file, path)
            assert file.name == "rest"
            assert file.read_at(0, file.size) == DATA[100:]


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK, 3 * CHUNK + 1])
def test_pipe_is_copied(nbytes: int) -> None:
    data = os.urandom(nbytes)
    source, target = os.pipe()
    thread = feed(target, data)
    with os.fdopen(source, "rb") as stream, FileSource.from_stream(stream) as file:
        thread.join()
        assert file.path is None
        assert file.read_at(0, file.size) == data


def test_non_blocking_pipe_is_read_to_its_end() -> None:
    source, target = os.pipe()
    os.set_blocking(source, False)
    release = threading.Timer(0.05, lambda: (os.write(target, DATA), os.close(target)))
    release.start()
    with os.fdopen(source, "rb") as stream, FileSource.from_stream(stream) as file:
        assert file.read_at(0, file.size) == DATA
    release.join()


def test_stream_without_a_descriptor_is_copied() -> None:
    file = FileSource.from_stream(io.BytesIO(DATA))
    assert file.read_at(0, file.size) == DATA


def test_copy_leaves_no_name_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with FileSource.from_stream(io.BytesIO(DATA)) as file:
        assert list(tmp_path.iterdir()) == []
        assert file.read_at(0, file.size) == DATA


def test_short_writes_of_the_copy_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    file = FileSource.from_stream(io.BytesIO(DATA))
    assert file.read_at(0, file.size) == DATA


def test_copy_without_space_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(ReadError, match="no space left on device") as caught:
        FileSource.from_stream(io.BytesIO(DATA))
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint


def test_missing_directory_for_the_copy_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ReadError, match="temporary file") as caught:
        FileSource.from_stream(io.BytesIO(DATA))
    assert caught.value.hint is not None


class _Failing(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_stream_that_fails_is_reported() -> None:
    stream: Any = _Failing()
    with pytest.raises(ReadError, match="cannot be read: input/output error"):
        FileSource.from_stream(stream)


def test_closed_stream_is_reported(path: Path) -> None:
    stream: BinaryIO = path.open("rb")
    stream.close()
    with pytest.raises(ReadError, match="closed file"):
        FileSource.from_stream(stream)


def test_same_file_is_seen_through_links(path: Path, tmp_path: Path) -> None:
    symbolic, hard, other = tmp_path / "symbolic", tmp_path / "hard", tmp_path / "other"
    symbolic.symlink_to(path)
    hard.hardlink_to(path)
    other.write_bytes(DATA)
    file = FileSource.open(path)
    assert is_at(file, path)
    assert is_at(file, symbolic)
    assert is_at(file, hard)
    assert not is_at(file, other)
    assert not is_at(file, tmp_path / "missing")
    assert not is_at(file, "null\0byte")


@pytest.fixture(params=["file", "part", "part of a part", "memory", "part of memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """The bytes `DATA` as a source of each kind."""
    (tmp_path / "outer").write_bytes(b"before" + DATA + b"behind")
    sources: dict[str, Source] = {"memory": MemorySource(DATA, name="memory")}
    (tmp_path / "inner").write_bytes(DATA)
    sources["file"] = FileSource.open(tmp_path / "inner")
    outer = FileSource.open(tmp_path / "outer")
    sources["part"] = PartSource(outer, 6, len(DATA), name="outer:part")
    wide = PartSource(FileSource.open(tmp_path / "outer"), 2, len(DATA) + 8, name="outer:wide")
    sources["part of a part"] = PartSource(wide, 4, len(DATA), name="outer:wide:part")
    more = MemorySource(b"x" + DATA + b"y", name="memory")
    sources["part of memory"] = PartSource(more, 1, len(DATA), name="memory:part")
    yield sources[request.param]
    for each in sources.values():
        each.close()


class TestEverySource:
    def test_reads_the_same_bytes_in_every_way(self, source: Source) -> None:
        assert source.size == len(DATA)
        assert source.read_at(5, 300) == DATA[5:305]
        assert source.read_at(len(DATA), 0) == b""
        buffer = memoryview(bytearray(100))
        source.read_into(len(DATA) - 100, buffer)
        assert buffer == DATA[-100:]
        ranges = [(700, 9), (0, 1), (3, 0), (len(DATA) - 1, 1)]
        assert source.read_ranges(ranges) == [DATA[at : at + n] for at, n in ranges]
        assert source.read_ranges([]) == []
        assert ByteRange(source, 1, 900).slice(2, 3).read() == DATA[3:6]

    @pytest.mark.parametrize(
        ("offset", "nbytes"), [(0, len(DATA) + 1), (len(DATA), 1), (-1, 2), (1 << 70, 1)]
    )
    def test_refuses_what_lies_outside(self, source: Source, offset: int, nbytes: int) -> None:
        outside = pytest.raises(DamagedFileError, match=f"the file ends at byte {len(DATA)}")
        with outside as caught:
            source.read_at(offset, nbytes)
        assert str(caught.value.path) == source.name
        with outside:
            source.read_into(offset, memoryview(bytearray(nbytes)))
        with outside:
            source.read_ranges([(0, 1), (offset, nbytes)])
        with outside:
            ByteRange(source, offset, nbytes)

    def test_refuses_to_be_read_once_closed(self, source: Source) -> None:
        source.close()
        source.close()
        with pytest.raises(ReadError, match="the file is closed"):
            source.read_at(0, 1)
        with pytest.raises(ReadError, match="the file is closed"):
            source.read_into(0, memoryview(bytearray(1)))

    def test_tells_the_kernel_where_its_bytes_lie(self, source: Source) -> None:
        place = source.descriptor_at(100)
        if source.identity is None:
            assert place is None
        else:
            assert place is not None
            fd, offset = place
            assert os.pread(fd, 50, offset) == DATA[100:150]

    def test_is_printed_with_its_name_and_size(self, source: Source) -> None:
        assert repr(source) == f"{type(source).__name__}({source.name!r}, {len(DATA)} bytes)"


def test_part_lies_in_the_file_of_the_whole(path: Path) -> None:
    whole = FileSource.open(path)
    part = PartSource(whole, 10, 20, name="weights.pth:part")
    assert part.path is None
    assert is_at(part, path)
    part.close()
    with pytest.raises(ReadError, match="the file is closed"):
        whole.read_at(0, 1)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, len(DATA) + 1), (5, -1)])
def test_part_outside_the_whole_cannot_exist(path: Path, offset: int, size: int) -> None:
    with FileSource.open(path) as whole, pytest.raises(DamagedFileError, match="ends at byte"):
        PartSource(whole, offset, size, name="part")


def test_memory_remembers_the_file_that_it_was_made_from(path: Path) -> None:
    with FileSource.open(path) as file:
        made = MemorySource(zlib.compress(DATA), name="weights.pth", origin=file)
    assert is_at(made, path)
    assert not is_at(MemorySource(DATA, name="weights.pth"), path)


def test_range_knows_its_bytes(path: Path) -> None:
    file = FileSource.open(path)
    crc32 = zlib.crc32(DATA[10:1010])
    whole: ByteSource = ByteRange(file, 10, 1000, crc32)
    assert isinstance(whole, ByteRange)
    assert whole.read() == DATA[10:1010]
    assert whole.crc32 == crc32
    assert [len(chunk) for chunk in whole.chunks(300)] == [300, 300, 300, 100]
    assert b"".join(whole.chunks(300)) == DATA[10:1010]
    assert list(ByteRange(file, 0, 0).chunks()) == []


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(-1, 1), (0, -1), (0, 2049), (2048, 1), (1 << 70, 1)]
)
def test_range_outside_the_file_cannot_exist(path: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(DamagedFileError, match="ends at byte 2048"):
        ByteRange(FileSource.open(path), offset, nbytes)


def test_slice_of_a_range_is_a_range(path: Path) -> None:
    whole = ByteRange(FileSource.open(path), 10, 1000, crc32=7)
    part = whole.slice(5, 20)
    assert part.read() == DATA[15:35]
    assert part.crc32 is None  # that of the whole says nothing about a part
    assert whole.slice(0, 1000) is whole
    assert whole.slice(1000, 0).nbytes == 0


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, 1001), (1000, 1), (3, -1)])
def test_slice_outside_the_range_is_refused(path: Path, offset: int, nbytes: int) -> None:
    whole = ByteRange(FileSource.open(path), 10, 1000)
    with pytest.raises(DamagedFileError, match="not inside a range of 1000 bytes"):
        whole.slice(offset, nbytes)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_bytes_in_memory_are_a_source(make: Any) -> None:
    source = Bytes(make(DATA))
    assert source.nbytes == len(DATA)
    assert source.crc32 == source.crc32 == zlib.crc32(DATA)
    assert [len(chunk) for chunk in source.chunks(1000)] == [1000, 1000, 48]
    assert b"".join(source.chunks(1000)) == DATA
    assert repr(source) == "Bytes(2048 bytes)"


def test_bytes_count_bytes_and_not_elements() -> None:
    wide = memoryview(bytes(80)).cast("d", (2, 5))
    assert Bytes(wide).nbytes == 80
    empty = memoryview(b"").cast("B").cast("d")
    assert Bytes(empty).nbytes == 0
    assert list(Bytes(empty).chunks()) == []


def test_errors_are_ours() -> None:
    with pytest.raises(CkptError) as caught:
        FileSource.open("missing.pth")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_change_is_known_of_a_file_and_its_parts_and_never_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    path.write_bytes(b"0123456789")
    with FileSource.open(path) as whole:
        part = PartSource(whole, 2, 3, name="whole:part")
        copy = MemorySource(b"345", name="copy", origin=whole)
        for source in (whole, part, copy):
            source.require_unchanged()
        os.utime(path, ns=(1, 1))
        for source in (whole, part):
            with pytest.raises(ReadError, match="another program changed it"):
                source.require_unchanged()
        copy.require_unchanged()
