"""Compressed streams read through: gzip, bzip2, xz, and zstd where Python has it."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any, BinaryIO, Final, cast

from ckpt_surgery.errors import DamagedFileError, LimitExceededError, MissingDependencyError
from ckpt_surgery.fileio import FileSource, MemorySource, Source

# First bytes: what it is, and the module whose `open` reads it.
_KINDS: Final = {
    b"\x1f\x8b": ("gzip", "gzip"),
    b"BZh": ("bzip2", "bz2"),
    b"\xfd7zXZ": ("xz", "lzma"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstandard"),
}
_IN_MEMORY: Final = 32 << 20  # bytes; a larger content goes to a temporary file
_ALWAYS: Final = 1 << 30  # bytes that any stream may become
_MOST_TIMES: Final = 100  # and a larger one this many times its own; weights hardly shrink at all


def notes_on(source: Source) -> tuple[str, ...]:
    """Return what to say of an edit of a compressed stream; nothing of any other source."""
    kind = _kind(source)
    return (f"it is compressed ({kind[0]}); what is made of it is not",) if kind else ()


def is_compressed(source: Source) -> bool:
    """Say whether `source` begins as a stream of gzip, bzip2, xz or zstd."""
    return _kind(source) is not None


def decompressed(source: Source) -> Source:
    """Return what a compressed stream holds, under its name; raises as `Compressed.read` does."""
    start = cast("IO[bytes]", io.BufferedReader(_Decompressed(source), 1 << 20))
    return spooled(start, source, source.name)


def left_of(source: Source) -> tuple[Source, DamagedFileError | None]:
    """Return what a compressed stream holds before the place where it is damaged, and the damage.

    None if it is whole. Raises `LimitExceededError` as `decompressed` does.
    """
    raw = _UpToDamage(source)
    inner = spooled(cast("IO[bytes]", io.BufferedReader(raw, 1 << 20)), source, source.name)
    return inner, raw.error


def spooled(stream: IO[bytes], origin: Source, name: str) -> Source:
    """Return what a stream made from `origin` holds: in memory if that is small, else in a file."""
    data = stream.read(_IN_MEMORY)
    if len(data) < _IN_MEMORY:
        return MemorySource(data, name=name, origin=origin)
    return FileSource.from_stream(cast("BinaryIO", _Continued(data, stream)), name=name)


class _Continued(io.RawIOBase):
    """Bytes, and then what is left of a stream."""

    def __init__(self, data: bytes, rest: IO[bytes]) -> None:
        self._parts: list[IO[bytes]] = [io.BytesIO(data), rest]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = b""
        while self._parts and not (data := self._parts[0].read(len(view))):
            del self._parts[0]
        view[: len(data)] = data
        return len(data)


def _kind(source: Source) -> tuple[str, str] | None:
    if source.size < 16:
        return None
    start = source.read_at(0, 8)
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)


class SourceFile(io.RawIOBase):
    """A source as a file object."""

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}
        if (at := starts[whence] + offset) < 0:
            raise OSError("before the start")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._source.size - self._at), 0)
        if count:
            self._source.read_into(self._at, view[:count])
        self._at += count
        return count


class _Decompressed(io.RawIOBase):
    """What the stream holds, up to a bound."""

    def __init__(self, source: Source) -> None:
        self._name = source.name
        self._what, module = _kind(source) or ("", "")
        try:
            library = import_module(module)
        except ImportError as error:
            raise MissingDependencyError(
                f"{self._what} data needs the package '{module}'",
                path=source.name,
                hint=f"pip install {module}, or: {self._what} -dc FILE | ckpt COMMAND",
            ) from error
        opener: Callable[[IO[bytes]], IO[bytes]] = library.open
        self._expected = (
            0  # bytes that a frame of zstd says it holds: its reader tells no early end
        )
        if module == "zstandard":
            try:
                self._expected = library.frame_content_size(source.read_at(0, min(18, source.size)))
            except library.ZstdError as error:
                raise self._damaged(error) from error
        self._given = 0
        stream = opener(io.BufferedReader(SourceFile(source), 1 << 20))
        # At most one block at a time, so that what stands before the place of an error is given.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._left = max(_ALWAYS, _MOST_TIMES * source.size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._read(len(view))
        except (OSError, EOFError, ValueError) as error:
            raise self._damaged(error) from error
        except Exception as error:
            if type(error).__name__ not in {"error", "LZMAError", "ZstdError"}:
                raise
            raise self._damaged(error) from error
        self._left -= len(data)
        self._given += len(data)
        if not data and self._given < self._expected:
            raise self._damaged(EOFError())
        if self._left < 0:
            raise LimitExceededError(
                f"the {self._what} stream holds far more than it is",
                path=self._name,
                entry=f"{self._what} stream",
            )
        view[: len(data)] = data
        return len(data)

    def _damaged(self, error: Exception) -> DamagedFileError:
        """Return the error for a stream, told apart: cut off, a wrong checksum, or else."""
        what, hint = f"the {self._what} stream is damaged: {str(error).lower()}", None
        if isinstance(error, EOFError):
            what, hint = f"the {self._what} stream has no end", "the file is truncated"
        elif "crc" in str(error).lower() or "checksum" in str(error).lower():
            what = f"the checksum of the {self._what} stream is wrong: {str(error).lower()}"
        return DamagedFileError(what, path=self._name, entry=f"{self._what} stream", hint=hint)


class _UpToDamage(_Decompressed):
    """What the stream holds up to the place where it is damaged, which `error` then says."""

    error: DamagedFileError | None = None

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return 0
        try:
            return super().readinto(buffer)
        except DamagedFileError as error:
            self.error = error
            return 0


def file_of(source: Source) -> IO[bytes]:
    """Return a source as a file object, for the standard library's readers."""
    return cast("IO[bytes]", io.BufferedReader(SourceFile(source)))
