"""A file that is not written: where each of its bytes would come from, read like a file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from ckpt_surgery.fileio.ranges import ByteRange, Bytes, ByteSource, as_bytes
from ckpt_surgery.fileio.sink import Unreading
from ckpt_surgery.fileio.sources import FileIdentity, Source, require_inside


class Recording(Unreading):
    """A `Sink` that remembers what is put into it, and reads nothing of what is copied."""

    name: Final = "a recording"

    def __init__(self) -> None:
        self._pieces: list[tuple[int, ByteSource]] = []
        self._nbytes = 0
        self._text = bytearray()

    @property
    def position(self) -> int:
        """Bytes so far."""
        return self._nbytes + len(self._text)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Remember bytes."""
        self._text += as_bytes(data)

    def _end_text(self) -> None:
        """Make a piece of the bytes since the last one."""
        if self._text:
            text, self._text = self._text, bytearray()
            self._append(Bytes(bytes(text)))

    def copy(self, source: ByteSource) -> None:
        """Remember a source."""
        self._end_text()
        self._append(source)

    def reserve(self, nbytes: int) -> None:
        """Do nothing: a recording takes no space."""

    def _append(self, source: ByteSource) -> None:
        self._pieces.append((self._nbytes, source))
        self._nbytes += source.nbytes

    def as_source(self, like: Source) -> RecordedSource:
        """Return what was recorded, called as the source is that it was made from."""
        self._end_text()
        return RecordedSource(self._pieces, self._nbytes, like)


class RecordedSource:
    """Pieces of other sources end to end, as a source of its own."""

    path: Final = None

    def __init__(self, pieces: Sequence[tuple[int, ByteSource]], size: int, like: Source) -> None:
        self._starts = [start for start, _ in pieces]
        self._sources = [source for _, source in pieces]
        self.size = size
        self.name = like.name
        self.identity: FileIdentity | None = like.identity
        self._computed: tuple[ByteSource | None, bytes] = (None, b"")

    def __repr__(self) -> str:
        return f"RecordedSource({self.name!r}, {self.size} bytes)"

    def origin(self, piece: ByteRange) -> ByteSource:
        """Return where the bytes of a range of this source come from.

        That is the range itself if they are of several pieces, or a part of one that is no file's.
        """
        if not piece.nbytes:
            return Bytes(b"")
        at = bisect_right(self._starts, piece.offset) - 1
        source, offset = self._sources[at], piece.offset - self._starts[at]
        if offset == 0 and piece.nbytes == source.nbytes:
            return source
        if isinstance(source, ByteRange) and offset + piece.nbytes <= source.nbytes:
            return source.slice(offset, piece.nbytes)
        return piece

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read exactly `nbytes` bytes from byte `offset` on; what is computed is computed now."""
        require_inside(self, offset, nbytes)
        found = bytearray()
        at = bisect_right(self._starts, offset) - 1
        while len(found) < nbytes:
            start = offset + len(found) - self._starts[at]
            found += self._part(self._sources[at], start, nbytes - len(found))
            at += 1
        return bytes(found)

    def _part(self, source: ByteSource, start: int, most: int) -> bytes:
        """Return bytes of a piece from `start` on, at most `most`."""
        nbytes = min(most, source.nbytes - start)
        if isinstance(source, ByteRange):
            return source.slice(start, nbytes).read() if nbytes else b""
        if isinstance(source, Bytes):
            return bytes(source.data[start : start + nbytes])
        if self._computed[0] is not source:
            self._computed = source, b"".join(map(bytes, source.chunks()))
        return self._computed[1][start : start + nbytes]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on."""
        buffer[:] = self.read_at(offset, buffer.nbytes)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, one after the other."""
        return [self.read_at(offset, nbytes) for offset, nbytes in ranges]

    def descriptor_at(self, offset: int) -> None:
        """Return None: the bytes lie in no file, as far as the kernel is concerned."""

    def require_unchanged(self) -> None:
        """Do nothing: those whose bytes these are see to it themselves."""

    def close(self) -> None:
        """Do nothing: the pieces are of sources that others opened."""
