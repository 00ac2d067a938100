"""Where bytes come from: files, files stored in files, and bytes in memory, read by position."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Sequence
from typing import BinaryIO, Final, Protocol, TypeAlias

from ckpt_surgery.errors import DamagedFileError, PathLike, ReadError
from ckpt_surgery.fileio.os_errors import cannot

FileIdentity: TypeAlias = tuple[int, int]
"""A file of this system whatever it is called: its device and its number there."""

_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_seek_lock: Final = threading.Lock()


class Source(Protocol):
    """Bytes of known length, read by position only, so that any number of ranges share them.

    Reading raises DamagedFileError if the bytes end before what is asked for, and ReadError if
    they cannot be read. Any number of threads may read at once.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def path(self) -> str | None:
        """The file that it is all of and that may be replaced; None for anything else."""

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""

    @property
    def identity(self) -> FileIdentity | None:
        """The file that its bytes lie in or were made from, if that is one of this system."""

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read exactly `nbytes` bytes from byte `offset` on."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on."""

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, each given by its offset and its length in bytes."""

    def descriptor_at(self, offset: int) -> tuple[int, int] | None:
        """Return a descriptor and where in its file byte `offset` lies, for copies by the kernel.

        None if the bytes lie in no file.
        """

    def require_unchanged(self) -> None:
        """Raise ReadError if it is known to hold other bytes than when it was opened."""

    def close(self) -> None:
        """Release what it holds; its bytes can no longer be read. Closing twice is fine."""


class FileSource:
    """An open regular file. A stream, and the copy of a pipe, have no `path`."""

    def __init__(self, fd: int, *, name: str, path: str | None) -> None:
        """Take over `fd`, an open regular file."""
        self._fd = fd
        self.name = name
        self.path = path
        status = os.fstat(fd)
        self.size = status.st_size
        self.identity: FileIdentity | None = (status.st_dev, status.st_ino)
        self._modified = status.st_mtime_ns

    @classmethod
    def open(cls, path: PathLike) -> FileSource:
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
            return cls(_copied(pipe, name), name=name, path=None)

    @classmethod
    def from_stream(cls, stream: BinaryIO, name: str = "<stdin>") -> FileSource:
        """Read `stream`: directly if it is a regular file at its start, else a temporary copy.

        The copy is anonymous and lies in the directory for temporary files. Raises ReadError if
        the stream cannot be read or the copy finds no space.
        """
        try:
            fd = stream.fileno()
            direct = stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
        except (OSError, ValueError):  # io.UnsupportedOperation is both: no descriptor behind it
            direct = False
        return cls(os.dup(fd) if direct else _copied(stream, name), name=name, path=None)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def __repr__(self) -> str:
        return f"FileSource({self.name!r}, {self.size} bytes)"

    def close(self) -> None:
        """Close the file; its ranges can no longer be read. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """Return the descriptor, whose own position means nothing. Raises ReadError once closed."""
        if self._fd < 0:
            raise ReadError("the file is closed", path=self.name)
        return self._fd

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read exactly `nbytes` bytes from byte `offset` on.

        Raises DamagedFileError if the file ends before, ReadError if reading fails.
        """
        require_inside(self, offset, nbytes)
        if nbytes == 0:
            return b""
        fd = self.fileno()
        try:
            data = _read_at(fd, nbytes, offset)
            while len(data) < nbytes:
                more = _read_at(fd, nbytes - len(data), offset + len(data))
                if not more:
                    raise ends_early(self, offset, nbytes, end=offset + len(data))
                data += more
        except OSError as error:
            raise ReadError(cannot("be read", error), path=self.name) from error
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on; raises like `read_at`."""
        nbytes = buffer.nbytes
        require_inside(self, offset, nbytes)
        fd, done = self.fileno(), 0
        try:
            while done < nbytes:
                count = _read_into(fd, buffer[done:], offset + done)
                if not count:
                    raise ends_early(self, offset, nbytes, end=offset + done)
                done += count
        except OSError as error:
            raise ReadError(cannot("be read", error), path=self.name) from error

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, one after the other; raises like `read_at`."""
        return [self.read_at(offset, nbytes) for offset, nbytes in ranges]

    def descriptor_at(self, offset: int) -> tuple[int, int]:
        """Return the descriptor and `offset` itself. Raises ReadError once closed."""
        return self.fileno(), offset

    def require_unchanged(self) -> None:
        """Raise ReadError if the file's size or time of change is no longer what it was."""
        now = os.fstat(self.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self._modified):
            raise ReadError(
                "another program changed it while it was read",
                path=self.name,
                hint="run the command again when nobody writes to the file",
            )


class PartSource:
    """A part of another source as a source of its own: a file stored in an archive.

    `name` is what messages call it, such as ``model.zip:policy.pth``. Closing it closes `whole`.
    Raises DamagedFileError if the part is not inside `whole`.
    """

    path: Final = None

    def __init__(self, whole: Source, offset: int, size: int, *, name: str) -> None:
        require_inside(whole, offset, size)
        self._whole = whole
        self._offset = offset
        self.size = size
        self.name = name

    def __repr__(self) -> str:
        return f"PartSource({self.name!r}, {self.size} bytes)"

    @property
    def identity(self) -> FileIdentity | None:
        return self._whole.identity

    def require_unchanged(self) -> None:
        """Raise ReadError if the whole changed."""
        self._whole.require_unchanged()

    def close(self) -> None:
        """Close the source that it is a part of."""
        self._whole.close()

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read exactly `nbytes` bytes from byte `offset` of the part on."""
        require_inside(self, offset, nbytes)
        return self._whole.read_at(self._offset + offset, nbytes)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` of the part on."""
        require_inside(self, offset, buffer.nbytes)
        self._whole.read_into(self._offset + offset, buffer)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges of the part as the whole does."""
        for offset, nbytes in ranges:
            require_inside(self, offset, nbytes)
        return self._whole.read_ranges([(self._offset + at, nbytes) for at, nbytes in ranges])

    def descriptor_at(self, offset: int) -> tuple[int, int] | None:
        """Return where byte `offset` of the part lies in the file of the whole."""
        return self._whole.descriptor_at(self._offset + offset)


class MemorySource:
    """Bytes in memory, as a decompressed stream has them.

    `origin` is the source that they were made from: it shares its identity, and is not kept.
    """

    path: Final = None

    def __init__(self, data: bytes, *, name: str, origin: Source | None = None) -> None:
        self._data = memoryview(data)
        self.name = name
        self.size = len(data)
        self.identity = None if origin is None else origin.identity

    def __repr__(self) -> str:
        return f"MemorySource({self.name!r}, {self.size} bytes)"

    def require_unchanged(self) -> None:
        """Do nothing: the bytes are nobody else's."""

    def close(self) -> None:
        """Release the bytes."""
        self._data = memoryview(b"")

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return a copy of exactly `nbytes` bytes from byte `offset` on."""
        return bytes(self._view(offset, nbytes))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on."""
        buffer[:] = self._view(offset, buffer.nbytes)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return copies of several ranges."""
        return [self.read_at(offset, nbytes) for offset, nbytes in ranges]

    def descriptor_at(self, offset: int) -> None:
        """Return None: the bytes lie in no file."""

    def _view(self, offset: int, nbytes: int) -> memoryview:
        require_inside(self, offset, nbytes)
        if len(self._data) != self.size:
            raise ReadError("the file is closed", path=self.name)
        return self._data[offset : offset + nbytes]


def require_inside(source: Source, offset: int, nbytes: int) -> None:
    """Raise DamagedFileError if `source` has no `nbytes` bytes from byte `offset` on."""
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        raise ends_early(source, offset, nbytes)


def ends_early(
    source: Source, offset: int, nbytes: int, *, end: int | None = None
) -> DamagedFileError:
    """Return the error for bytes that are asked for but lie beyond the end of `source`."""
    return DamagedFileError(
        f"the file ends at byte {source.size if end is None else end}, "
        f"but {nbytes} bytes from byte {offset} on are needed",
        path=source.name,
        hint="the file is truncated or was changed while it was read",
    )


def is_at(source: Source, path: PathLike) -> bool:
    """Return whether `path` leads, through whatever links, to the file of the source's bytes."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return False
    return source.identity == (status.st_dev, status.st_ino)


def _require_file_or_pipe(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise ReadError("is a directory", path=name, hint="name the checkpoint file in it")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ReadError(
            "is not a regular file", path=name, hint="'-' reads standard input, which can be a pipe"
        )


def _copied(stream: BinaryIO | io.RawIOBase, name: str) -> int:
    from ckpt_surgery.fileio.spool import spool  # seldom needed

    return spool(stream, name)


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
