"""Copying in every way that the system knows, into files and streams."""

from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt_surgery.errors import DamagedFileError, WriteError
from ckpt_surgery.fileio import ByteRange, Bytes, FileSource, MemorySource, PartSource, kernel_copy
from ckpt_surgery.fileio import reservation as reservation_module
from ckpt_surgery.fileio.atomic import atomic_output, stream_output
from ckpt_surgery.fileio.file_sink import StreamSink
from ckpt_surgery.fileio.pace import _RETRIAL, _SMALL, BY_KERNEL, LARGE, WINDOW, Pace
from ckpt_surgery.fileio.sink import copy_with_crc32

OLD, NEW = b"the old file", b"the new file " * 9999


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.pth"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSource]:
    path = tmp_path_factory.mktemp("source") / "source"
    path.write_bytes(os.urandom(300_000))
    with FileSource.open(path) as file:
        yield file


def pretend_on_disk(answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernel_copy, reservation_module):
        monkeypatch.setattr(module, "is_on_disk", lambda _: answer)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def write(path: Path, data: bytes = NEW, **options: Any) -> None:
    with atomic_output(path, **options) as sink:
        sink.write(data)


def interrupt_stream(fd: int) -> None:
    with stream_output(fd) as sink:
        sink.write(b"pending")
        raise KeyboardInterrupt


def pump(fd: int, into: bytearray) -> threading.Thread:
    def run() -> None:
        with os.fdopen(fd, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 20):
                into.extend(data)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


class TestStreams:
    @pytest.mark.parametrize("blocking", [True, False])
    def test_pipe_receives_everything(self, blocking: bool, source: FileSource) -> None:
        received = bytearray()
        reader, writer = os.pipe()
        os.set_blocking(writer, blocking)
        thread = pump(reader, received)
        with stream_output(writer) as sink:
            sink.write(b"header")
            sink.copy(ByteRange(source, 0, source.size))
            sink.write(NEW)
            sink.write(b"end")
        os.close(writer)  # it stayed open
        thread.join()
        content = source.read_at(0, source.size)
        assert bytes(received) == b"header" + content + NEW + b"end"

    def test_closed_pipe_passes_through(self, source: FileSource) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        for action in (
            lambda sink: sink.write(NEW),
            lambda sink: sink.write(b"x"),
            lambda sink: sink.copy(ByteRange(source, 0, source.size)),
        ):
            with pytest.raises(BrokenPipeError), stream_output(writer) as sink:
                action(sink)
        os.close(writer)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
    def test_full_device_is_reported(self) -> None:
        fd = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(WriteError, match="no space left"), stream_output(fd) as sink:
            sink.write(b"x")
        os.close(fd)
        with pytest.raises(WriteError, match="no space left"):
            write(Path("/dev/full"))

    def test_null_device_stays_a_device(self) -> None:
        write(Path(os.devnull), force=True)
        assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)

    def test_named_pipe_is_written_to(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(path.read_bytes()))
        thread.start()
        write(path)
        thread.join()
        assert received == [NEW]
        assert stat.S_ISFIFO(path.stat().st_mode)

    def test_device_that_cannot_be_opened_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError(errno.ENXIO, "No such device or address")

        os.mkfifo(tmp_path / "pipe")
        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(WriteError, match="no such device"):
            write(tmp_path / "pipe")

    def test_stream_that_is_the_input_is_refused(self, old: Path, source: FileSource) -> None:
        with FileSource.open(old) as file, old.open("r+b") as out:
            with (
                pytest.raises(WriteError, match="the output is the input"),
                stream_output(out.fileno(), inputs=[source, file]),
            ):
                pass
            with stream_output(out.fileno(), inputs=[source]) as sink:
                sink.write(b"THE")
        assert old.read_bytes() == b"THE" + OLD[3:]

    def test_redirection_that_appends_is_written_to(self, old: Path, source: FileSource) -> None:
        with old.open("ab") as out, stream_output(out.fileno()) as sink:
            sink.reserve(1)
            sink.copy(ByteRange(source, 0, source.size))
        assert old.read_bytes() == OLD + source.read_at(0, source.size)

    def test_failed_block_writes_nothing_more(self, old: Path) -> None:
        with old.open("r+b") as out, pytest.raises(KeyboardInterrupt):
            interrupt_stream(out.fileno())
        assert old.read_bytes() == OLD


WAYS = ["copy_file_range", "sendfile", "read and write"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Leave only one way to copy."""
    for name in WAYS[: WAYS.index(request.param)]:
        monkeypatch.delattr(os, name, raising=False)
    return str(request.param)


class TestCopying:
    @pytest.mark.parametrize("on_disk", [True, False])
    @pytest.mark.parametrize("nbytes", [0, 1, 65_535, 65_536, 65_537, 299_000])
    def test_ranges_are_copied_in_every_way(
        self,
        nbytes: int,
        on_disk: bool,
        way: str,
        source: FileSource,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        pretend_on_disk(on_disk, monkeypatch)
        with atomic_output(tmp_path / "out") as sink:
            sink.write(b"<")
            sink.copy(ByteRange(source, 1000, nbytes))
            assert sink.position == 1 + nbytes
            sink.write(b">")
            sink.copy(ByteRange(source, 7, nbytes))
        expected = b"<" + source.read_at(1000, nbytes) + b">" + source.read_at(7, nbytes)
        assert (tmp_path / "out").read_bytes() == expected

    @pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux only")
    @pytest.mark.parametrize(("on_disk", "expected"), [(True, [0, 4096]), (False, [0, 4096, 4097])])
    def test_kernel_copies_what_may_be_shared_in_whole_blocks(
        self,
        on_disk: bool,
        expected: list[int],
        source: FileSource,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        offsets: list[int] = []
        real = os.copy_file_range

        def record(src: int, dst: int, count: int, offset: int) -> int:
            offsets.append(offset)
            return real(src, dst, count, offset)

        monkeypatch.setattr(os, "copy_file_range", record)
        pretend_on_disk(on_disk, monkeypatch)
        nbytes = 32 * 4096
        with atomic_output(tmp_path / "out") as sink:
            for offset in (0, 4096, 4097):
                sink.copy(ByteRange(source, offset, nbytes))
        assert offsets == expected
        copies = [source.read_at(offset, nbytes) for offset in (0, 4096, 4097)]
        assert (tmp_path / "out").read_bytes() == b"".join(copies)

    def test_kernel_copies_do_not_pass_through_memory(
        self, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FileSource, "read_at", None)
        with atomic_output(tmp_path / "out") as sink:
            copy_with_crc32(ByteRange(source, 0, source.size, crc32=5), sink)
        monkeypatch.undo()
        assert (tmp_path / "out").read_bytes() == source.read_at(0, source.size)

    def test_kernel_copies_a_part_of_a_file_too(
        self, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        part = PartSource(source, 4096, 250_000, name="source:part")
        monkeypatch.setattr(FileSource, "read_into", None)
        pretend_on_disk(False, monkeypatch)
        with atomic_output(tmp_path / "out") as sink:
            sink.copy(ByteRange(part, 1000, 200_000))
        assert (tmp_path / "out").read_bytes() == source.read_at(5096, 200_000)

    def test_range_that_is_in_no_file_passes_through_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_on_disk(False, monkeypatch)
        data = os.urandom(200_000)
        with atomic_output(tmp_path / "out") as sink:
            sink.copy(ByteRange(MemorySource(data, name="memory"), 1000, 150_000))
        assert (tmp_path / "out").read_bytes() == data[1000:151_000]

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
    def test_way_that_fails_is_tried_once_and_the_next_taken(
        self, code: int, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []

        def fail(name: str) -> Callable[..., int]:
            def fake(*_: object) -> int:
                calls.append(name)
                raise OSError(code, os.strerror(code))

            return fake

        monkeypatch.setattr(os, "copy_file_range", fail("copy_file_range"), raising=False)
        monkeypatch.setattr(os, "sendfile", fail("sendfile"))
        with atomic_output(tmp_path / "out") as sink:
            for _ in range(3):
                sink.copy(ByteRange(source, 0, source.size))
        assert calls == ["copy_file_range", "sendfile"]
        assert (tmp_path / "out").read_bytes() == source.read_at(0, source.size) * 3

    @pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux only")
    def test_way_that_stops_half_way_is_continued_by_the_next(
        self, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.copy_file_range
        answers = [1000, 2000, 0]
        pretend_on_disk(False, monkeypatch)
        monkeypatch.setattr(
            os,
            "copy_file_range",
            lambda a, b, n, at: real(a, b, answer, at) if (answer := answers.pop(0)) else 0,
        )
        with atomic_output(tmp_path / "out") as sink:
            sink.copy(ByteRange(source, 4096, 200_000))
        assert answers == []
        assert (tmp_path / "out").read_bytes() == source.read_at(4096, 200_000)

    def test_source_that_shrinks_meanwhile_is_refused(self, way: str, tmp_path: Path) -> None:
        path = tmp_path / "source"
        path.write_bytes(bytes(200_000))
        with FileSource.open(path) as file:
            whole = ByteRange(file, 0, 200_000, crc32=0)
            os.truncate(path, 100_000)
            with (
                pytest.raises(DamagedFileError, match="the file ends at byte 100000"),
                atomic_output(tmp_path / "out") as sink,
            ):
                sink.copy(whole)
        assert names(tmp_path) == {"source"}

    def test_full_disk_is_reported_by_every_way(
        self, way: str, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        for name in ("copy_file_range", "sendfile"):
            if hasattr(os, name):
                monkeypatch.setattr(os, name, full)
        monkeypatch.setattr(os, "write", full)
        with (
            pytest.raises(WriteError, match="no space left on device"),
            atomic_output(tmp_path / "out") as sink,
        ):
            sink.copy(ByteRange(source, 0, source.size))
        assert names(tmp_path) == set()

    def test_checksum_that_is_known_is_not_computed(
        self, source: FileSource, tmp_path: Path
    ) -> None:
        content = source.read_at(0, 70_000)
        with atomic_output(tmp_path / "out") as sink:
            assert copy_with_crc32(ByteRange(source, 0, 70_000, crc32=12), sink) == 12
            assert copy_with_crc32(ByteRange(source, 0, 9, crc32=0), sink) == 0
            assert copy_with_crc32(ByteRange(source, 0, 70_000), sink) == zlib.crc32(content)
            assert copy_with_crc32(Bytes(content), sink) == zlib.crc32(content)
        assert (tmp_path / "out").read_bytes() == content + content[:9] + content + content

    def test_source_that_gives_another_length_is_refused(self, tmp_path: Path) -> None:
        lying: Any = SimpleNamespace(nbytes=5, crc32=None, chunks=lambda: iter([b"four"]))
        with (
            pytest.raises(WriteError, match="5 bytes were expected, 4 given"),
            atomic_output(tmp_path / "out") as sink,
        ):
            copy_with_crc32(lying, sink)

    def test_progress_counts_every_byte(self, way: str, source: FileSource, tmp_path: Path) -> None:
        counted: list[int] = []
        with atomic_output(tmp_path / "out", progress=counted.append) as sink:
            sink.write(b"small")
            sink.copy(ByteRange(source, 0, source.size))
            sink.write(b"small")
            sink.write(NEW)
        assert sum(counted) == (tmp_path / "out").stat().st_size

    def test_small_pieces_are_written_together(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: calls.append(len(data)) or real(fd, data))
        with atomic_output(tmp_path / "out") as sink:
            for _ in range(10_000):
                sink.write(b"0123456789")
        assert (tmp_path / "out").read_bytes() == b"0123456789" * 10_000
        assert len(calls) == 2

    def test_copies_are_written_in_whole_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = tmp_path / "large"
        large.write_bytes(bytes(range(256)) * (3 * LARGE // 256))
        monkeypatch.setattr(kernel_copy, "_kernel_copies", lambda: iter(()))
        written: list[int] = []
        with (
            FileSource.open(large) as file,
            atomic_output(tmp_path / "out", progress=written.append) as sink,
        ):
            sink.write(b"head")
            sink.copy(ByteRange(file, 0, 3 * LARGE))
        assert written == [4, LARGE - 4, LARGE, LARGE, 4]
        assert (tmp_path / "out").read_bytes() == b"head" + large.read_bytes()

    def test_buffers_are_written_as_bytes(self, tmp_path: Path) -> None:
        with atomic_output(tmp_path / "out") as sink:
            sink.write(bytearray(b"ab"))
            sink.write(memoryview(bytes(16)).cast("d"))
            sink.write(memoryview(bytes(80_000)).cast("d", (100, 100)))
            assert sink.position == 80_018
        assert (tmp_path / "out").read_bytes() == b"ab" + bytes(80_016)


def test_sinks_of_a_system_without_kernel_copies_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.delattr(os, "sendfile", raising=False)
    assert list(kernel_copy._kernel_copies()) == []
    assert StreamSink(1, name="x").position == 0


def test_closed_descriptor_is_on_no_disk() -> None:
    assert not kernel_copy.is_on_disk(-1)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
class TestAllocating:
    """A new file's blocks come at once, and only a file that nobody else has."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        calls: list[tuple[int, int]] = []
        real = os.posix_fallocate

        def record(fd: int, offset: int, nbytes: int) -> None:
            calls.append((offset, nbytes))
            real(fd, offset, nbytes)

        monkeypatch.setattr(os, "posix_fallocate", record)
        pretend_on_disk(True, monkeypatch)
        return calls

    def test_what_is_reserved_and_not_written_is_given_back(
        self, asked: list[tuple[int, int]], tmp_path: Path
    ) -> None:
        with atomic_output(tmp_path / "out") as sink:
            sink.write(b"head")
            sink.reserve(100_000)
            sink.write(b"tail")
        assert asked == [(4, 100_000)]
        assert (tmp_path / "out").read_bytes() == b"headtail"

    def test_a_stream_may_be_anybody_s(self, asked: list[tuple[int, int]], tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(b"before")
        with (tmp_path / "log").open("ab") as file, stream_output(file.fileno()) as sink:
            sink.reserve(100_000)
            sink.write(b"after")
        assert asked == []
        assert (tmp_path / "log").read_bytes() == b"beforeafter"

    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC])
    def test_a_disk_that_cannot_is_written_to_nevertheless(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
        pretend_on_disk(True, monkeypatch)
        with atomic_output(tmp_path / "out") as sink:
            sink.reserve(100_000)
            sink.write(b"all of it")
        assert (tmp_path / "out").read_bytes() == b"all of it"


def test_the_way_that_is_quickest_is_taken() -> None:
    """All ways are tried, the quickest is kept while it is, and large writes are tried again."""
    pace = Pace(has_kernel=True)
    speed = {LARGE: 4.0, _SMALL: 1.0, BY_KERNEL: 2.0}

    def copy(windows: int) -> list[int]:
        ways = []
        for _ in range(windows):
            ways.append(pace.way)
            for _ in range(4):
                pace.took(speed[pace.way] * WINDOW / 4, WINDOW // 4)
        return ways

    assert copy(3 + _RETRIAL + 2) == [LARGE, _SMALL, BY_KERNEL, *[_SMALL] * _RETRIAL, LARGE, _SMALL]
    speed[_SMALL] = 9.0
    assert copy(3) == [_SMALL, BY_KERNEL, BY_KERNEL]
    speed[BY_KERNEL] = 5.0
    assert copy(2) == [BY_KERNEL, LARGE]
    speed[LARGE] = 8.0
    assert copy(2) == [LARGE, BY_KERNEL]
    pace.rule_out_kernel()
    assert copy(3) == [LARGE, LARGE, LARGE]


@pytest.mark.parametrize("works", [True, False])
def test_what_is_copied_is_the_same_in_every_way(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel turns out not to copy, in the middle of a range."""
    data = bytes(range(256)) * (5 * WINDOW // 256) + b"end"
    (tmp_path / "in").write_bytes(data)
    ways = iter([LARGE, _SMALL, BY_KERNEL, LARGE, *[BY_KERNEL] * 50])
    taken: list[int] = []

    def go_on(self: Pace) -> None:
        self._nbytes, self._spent = 0, 0.0
        self.way = next(ways) if BY_KERNEL in self._ways else _SMALL
        taken.append(self.way)

    monkeypatch.setattr(Pace, "_go_on", go_on)
    if not works:
        monkeypatch.setattr("ckpt_surgery.fileio.kernel_copy._kernel_copies", lambda: iter(()))
    with FileSource.open(tmp_path / "in") as file, (tmp_path / "out").open("wb") as out:
        sink = StreamSink(out.fileno(), name="out")
        sink.write(b"begin")
        sink.copy(ByteRange(file, 1, len(data) - 4))
        sink.copy(ByteRange(file, len(data) - 3, 3))
        sink.finish()
    assert (tmp_path / "out").read_bytes() == b"begin" + data[1:]
    assert (BY_KERNEL in taken, _SMALL in taken) == (True, True)
