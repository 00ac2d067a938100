"""Runs of bytes: a part of a source, or bytes in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import field
from typing import Final, Protocol, runtime_checkable

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio.sources import Source, require_inside
from ckpt_surgery.startup.lazy_dataclass import dataclass

CHUNK: Final = 1 << 20
"""Bytes held at a time when bytes pass through memory."""


class ByteSource(Protocol):
    """A run of bytes of known length that can be read any number of times, in chunks."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""

    @property
    def crc32(self) -> int | None:
        """CRC-32 of all bytes as far as it is known without reading them."""

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time.

        Raises ReadError if they cannot be read.
        """


@runtime_checkable
class _PartOfRange(Protocol):
    """A source of some bytes of a range that has a checksum as a whole (None: of no such one)."""

    @property
    def whole(self) -> ByteRange | None:
        """The range that the bytes are from."""


@runtime_checkable
class _PartsOfRanges(Protocol):
    """A source of bytes of several ranges that have checksums as wholes."""

    @property
    def wholes(self) -> tuple[ByteRange, ...]:
        """The ranges that bytes are from without being all of them."""


def wholes_of(source: ByteSource) -> tuple[ByteRange, ...]:
    """Return the ranges with checksums that `source` has parts of."""
    if isinstance(source, _PartsOfRanges):
        return source.wholes
    whole = source.whole if isinstance(source, _PartOfRange) else None
    return () if whole is None else (whole,)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`nbytes` bytes of `source` from byte `offset` on.

    `crc32` is their checksum as the file states it (0: none was computed, as torch writes it when
    told so), `whole` the range with a checksum that this one is a part of, `record` what an archive
    calls it. What is read from the first to the last byte is compared with its checksum. Raises
    DamagedFileError if the range is not inside the source.
    """

    source: Source
    offset: int
    nbytes: int
    crc32: int | None = None
    whole: ByteRange | None = None
    record: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        require_inside(self.source, self.offset, self.nbytes)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time; raises ReadError like `read_at`.

        Raises DamagedFileError after the last one if they are not those of the checksum.
        """
        end = self.offset + self.nbytes
        found = 0
        for start in range(self.offset, end, size):
            chunk = self.source.read_at(start, min(size, end - start))
            if self.crc32:
                found = zlib.crc32(chunk, found)
            yield chunk
        self.require_checksum(found)

    def read(self) -> bytes:
        """Read all bytes at once; raises ReadError like `Source.read_at`.

        Raises DamagedFileError if they are not those of the checksum.
        """
        data = self.source.read_at(self.offset, self.nbytes)
        if self.crc32:
            self.require_checksum(zlib.crc32(data))
        return data

    def require_checksum(self, found: int) -> None:
        """Raise DamagedFileError if the checksum `found` of all bytes is not what the file says."""
        if self.crc32 and found != self.crc32:
            raise DamagedFileError(
                f"the checksum of the bytes is {found:08x}, and the file says {self.crc32:08x}",
                path=self.source.name,
                entry=self.record or None,
                hint="some of its bytes were changed: 'ckpt verify' says which are",
            )

    def slice(self, offset: int, nbytes: int) -> ByteRange:
        """Return the `nbytes` bytes from byte `offset` of this range on.

        Raises DamagedFileError if they are not inside this range.
        """
        if offset == 0 and nbytes == self.nbytes:
            return self
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise DamagedFileError(
                f"{nbytes} bytes from byte {offset} on are not inside "
                f"a range of {self.nbytes} bytes",
                path=self.source.name,
            )
        whole = self if self.crc32 else self.whole
        return ByteRange(self.source, self.offset + offset, nbytes, whole=whole)


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
        """Yield the bytes in order, at most `size` at a time, as views."""
        for start in range(0, self.nbytes, size):
            yield self.data[start : start + size]


def as_bytes(data: bytes | bytearray | memoryview) -> memoryview:
    """Return a flat view of the bytes of any contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty shape cannot be cast
