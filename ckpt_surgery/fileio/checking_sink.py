"""A sink that compares what is copied through it with its checksums."""

from __future__ import annotations

import zlib

from ckpt_surgery.fileio.buffers import ReadBuffer
from ckpt_surgery.fileio.pace import Pace
from ckpt_surgery.fileio.ranges import ByteRange, ByteSource, wholes_of
from ckpt_surgery.fileio.sink import Sink, copy_chunks


class CheckingSink:
    """A `Sink` in front of another, through which nothing is copied unread.

    `right` are ranges that are known to be right as a whole, since parts were taken from them; it
    grows.
    """

    def __init__(self, sink: Sink, right: set[ByteRange]) -> None:
        self._sink = sink
        self._right = right
        self._read = ReadBuffer(None if isinstance(sink, NowhereSink) else Pace())

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._sink.name

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._sink.position

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes."""
        self._sink.write(data)

    def reserve(self, nbytes: int) -> None:
        """Raise WriteError if there is certainly no space for `nbytes` bytes more."""
        self._sink.reserve(nbytes)

    def copy(self, source: ByteSource) -> None:
        """Write all bytes of `source`.

        Raises DamagedFileError if they, or those of the range that they are a part of, are not
        those of its checksum.
        """
        for whole in wholes_of(source):
            self._require(whole)
        if not isinstance(source, ByteRange):
            copy_chunks(source, self)
        elif source.crc32:
            self._copy_checked(source)
        else:
            self._sink.copy(source)

    def _copy_checked(self, source: ByteRange) -> None:
        found = 0
        for piece in self._read.pieces(source, self.position):
            found = zlib.crc32(piece, found)
            self._sink.write(piece)
        source.require_checksum(found)

    def _require(self, whole: ByteRange) -> None:
        if whole not in self._right:
            for _ in whole.chunks():
                pass
            self._right.add(whole)


class NowhereSink:
    """A `Sink` that counts what it is given and keeps nothing."""

    name = "a dry run"

    def __init__(self) -> None:
        self.position = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Count bytes."""
        self.position += memoryview(data).nbytes

    def copy(self, source: ByteSource) -> None:
        """Count the bytes of `source`, which are not read."""
        self.position += source.nbytes

    def reserve(self, nbytes: int) -> None:
        """Do nothing: it takes no space."""
