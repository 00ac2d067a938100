"""Where bytes come from: files read by position only, ranges of them, and bytes in memory."""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from ckpt_surgery.errors import DamagedFileError, PathLike, ReadError

CHUNK: Final = 1 << 20
"""Bytes held at a time when bytes pass through memory."""

_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_seek_lock: Final = threading.Lock()


class ByteSource(Protocol):
    """A run of bytes of known length that can be read any number of times, in chunks."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""

    @property
    def crc32(self) -> int | None:
        """CRC-32 of all bytes as far as it is known without reading them."""

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """The bytes in order, at most `size` at a time.

        Raises ReadError if they cannot be read.
        """


class SourceFile:
    """An open regular file that is read by position only, so that any number of ranges share it.

    `name` is what messages call it, `path` where it lies (None for a stream or a copy of one),
    `size` its length in bytes when it was opened.
    """

    def __init__(self, fd: int, *, name: str, path: str | None) -> None:
        """Take over `fd`, an open regular file."""
        self._fd = fd
        self.name = name
        self.path = path
        status = os.fstat(fd)
        self.size = status.st_size
        self.mode = stat.S_IMODE(status.st_mode)

    @classmethod
    def open(cls, path: PathLike) -> SourceFile:
        """Open the file at `path`; a named pipe is copied to an anonymous temporary file first.

        Raises ReadError if it is missing, a directory, a device or not permitted.
        """
        name = os.fspath(path)
        try:
            _require_file_or_pipe(os.stat(name).st_mode, name)  # noqa: PTH116
            fd = os.open(name, _OPEN_FLAGS)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise ReadError(cannot("be read", error), path=name) from error
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return cls(fd, name=name, path=name)
        with os.fdopen(fd, "rb", buffering=0) as pipe:
            _require_file_or_pipe(os.fstat(fd).st_mode, name)  # the path may mean another by now
            return cls(_spool(pipe, name), name=name, path=None)

    @classmethod
    def from_stream(cls, stream: BinaryIO, name: str = "<stdin>") -> SourceFile:
        """Read `stream`: directly if it is a regular file at its start, else a temporary copy.

        The copy is anonymous and lies in the directory for temporary files. Raises ReadError if
        the stream cannot be read or the copy finds no space.
        """
        try:
            fd = stream.fileno()
            direct = stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
        except (OSError, ValueError):  # io.UnsupportedOperation is both: no descriptor behind it
            direct = False
        return cls(os.dup(fd) if direct else _spool(stream, name), name=name, path=None)

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def __repr__(self) -> str:
        return f"SourceFile({self.name!r}, {self.size} bytes)"

    def close(self) -> None:
        """Close the file; its ranges can no longer be read. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """The descriptor, whose own position means nothing. Raises ReadError once closed."""
        if self._fd < 0:
            raise ReadError("the file is closed", path=self.name)
        return self._fd

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from byte `offset` on.

        Raises DamagedFileError if the file ends before, ReadError if reading fails.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self.ends_early(offset, nbytes)
        if nbytes == 0:
            return b""
        fd = self.fileno()
        try:
            data = _read_at(fd, nbytes, offset)
            while len(data) < nbytes:
                more = _read_at(fd, nbytes - len(data), offset + len(data))
                if not more:
                    raise self.ends_early(offset, nbytes, end=offset + len(data))
                data += more
        except OSError as error:
            raise ReadError(cannot("be read", error), path=self.name) from error
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on; raises like `read_at`."""
        nbytes = buffer.nbytes
        if offset < 0 or offset + nbytes > self.size:
            raise self.ends_early(offset, nbytes)
        fd, done = self.fileno(), 0
        try:
            while done < nbytes:
                count = _read_into(fd, buffer[done:], offset + done)
                if not count:
                    raise self.ends_early(offset, nbytes, end=offset + done)
                done += count
        except OSError as error:
            raise ReadError(cannot("be read", error), path=self.name) from error

    def ends_early(self, offset: int, nbytes: int, end: int | None = None) -> DamagedFileError:
        """The error for bytes that are asked for but lie beyond the file's end."""
        return DamagedFileError(
            f"the file ends at byte {self.size if end is None else end}, "
            f"but {nbytes} bytes from byte {offset} on are needed",
            path=self.name,
            hint="the file is truncated or was changed while it was read",
        )

    def is_same_file(self, path: PathLike) -> bool:
        """Whether `path` leads to this very file, through whatever links."""
        try:
            return os.path.samestat(os.fstat(self.fileno()), os.stat(path))  # noqa: PTH116
        except (OSError, ValueError):
            return False


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`nbytes` bytes of `file` from byte `offset` on.

    `crc32` is their checksum as the file states it, not as anybody computed it. Raises
    DamagedFileError if the range is not inside the file.
    """

    file: SourceFile
    offset: int
    nbytes: int
    crc32: int | None = None

    def __post_init__(self) -> None:
        if self.offset < 0 or self.nbytes < 0 or self.offset + self.nbytes > self.file.size:
            raise self.file.ends_early(self.offset, self.nbytes)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """The bytes in order, at most `size` at a time; raises ReadError like `read_at`."""
        end = self.offset + self.nbytes
        for start in range(self.offset, end, size):
            yield self.file.read_at(start, min(size, end - start))

    def read(self) -> bytes:
        """All bytes at once; raises ReadError like `SourceFile.read_at`."""
        return self.file.read_at(self.offset, self.nbytes)

    def slice(self, offset: int, nbytes: int) -> ByteRange:
        """The `nbytes` bytes from byte `offset` of this range on.

        Raises DamagedFileError if they are not inside this range.
        """
        if offset == 0 and nbytes == self.nbytes:
            return self
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise DamagedFileError(
                f"{nbytes} bytes from byte {offset} on are not inside "
                f"a range of {self.nbytes} bytes",
                path=self.file.name,
            )
        return ByteRange(self.file, self.offset + offset, nbytes)


class Bytes:
    """Bytes in memory as a `ByteSource`. Whoever gives them must not change them afterwards."""

    __slots__ = ("_crc32", "data")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = as_bytes(data)
        self._crc32: int | None = None

    def __repr__(self) -> str:
        return f"Bytes({self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def crc32(self) -> int:
        if self._crc32 is None:
            self._crc32 = zlib.crc32(self.data)
        return self._crc32

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """The bytes in order, at most `size` at a time, as views."""
        for start in range(0, self.nbytes, size):
            yield self.data[start : start + size]


def as_bytes(data: bytes | bytearray | memoryview) -> memoryview:
    """A flat view of the bytes of any contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty shape cannot be cast


def _require_file_or_pipe(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise ReadError("is a directory", path=name, hint="name the checkpoint file in it")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ReadError(
            "is not a regular file", path=name, hint="'-' reads standard input, which can be a pipe"
        )


def _spool(stream: BinaryIO | io.RawIOBase, name: str) -> int:
    """Descriptor of an anonymous temporary file that holds what is left in `stream`."""
    import tempfile  # imports much, and is seldom needed

    try:
        with tempfile.TemporaryFile(buffering=0) as copy:
            for data in _pieces(stream, name):
                view = memoryview(data)
                while view:
                    view = view[os.write(copy.fileno(), view) :]
            return os.dup(copy.fileno())
    except OSError as error:
        raise ReadError(
            cannot("be copied to a temporary file", error),
            path=name,
            hint="set TMPDIR to a directory with enough space, or name a file instead of a pipe",
        ) from error


def _pieces(stream: BinaryIO | io.RawIOBase, name: str) -> Iterator[bytes]:
    while True:
        try:
            data = stream.read(CHUNK)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise ReadError(cannot("be read", error), path=name) from error
        if data is None:  # a pipe that somebody made non-blocking, and that is empty
            select.select([stream], [], [])
        elif data:
            yield data
        else:
            return


def cannot(what: str, error: Exception) -> str:
    """The message for `error`, raised while `what` was tried, in our style."""
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot {what}: {reason.lower()}"


if hasattr(os, "pread"):

    def _read_at(fd: int, nbytes: int, offset: int) -> bytes:
        return os.pread(fd, nbytes, offset)

else:  # pragma: no cover (Windows)

    def _read_at(fd: int, nbytes: int, offset: int) -> bytes:
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, nbytes)


if hasattr(os, "preadv"):

    def _read_into(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

else:  # pragma: no cover (macOS before 11, Windows)

    def _read_into(fd: int, buffer: memoryview, offset: int) -> int:
        data = _read_at(fd, buffer.nbytes, offset)
        buffer[: len(data)] = data
        return len(data)
