"""A sink that keeps nothing but a checksum."""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

from ckpt_surgery.fileio.buffers import ReadBuffer
from ckpt_surgery.fileio.ranges import ByteRange, ByteSource, as_bytes
from ckpt_surgery.fileio.sink import copy_chunks


class DigestSink:
    """A `Sink` that puts what would be written into a SHA-256."""

    name: Final = "the checksum"

    def __init__(self) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._read = ReadBuffer()

    def hexdigest(self) -> str:
        """Return the checksum of everything so far, as 64 hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes into the checksum."""
        view = as_bytes(data)
        self._sha256.update(view)
        self.position += view.nbytes

    def copy(self, source: ByteSource) -> None:
        """Take all bytes of `source` into the checksum.

        Raises DamagedFileError if they are not those of the checksum that it states.
        """
        if not isinstance(source, ByteRange):
            copy_chunks(source, self)
            return
        found = 0
        for piece in self._read.pieces(source, self.position):
            if source.crc32:
                found = zlib.crc32(piece, found)
            self.write(piece)
        source.require_checksum(found)

    def reserve(self, nbytes: int) -> None:
        """Do nothing: a checksum takes no space."""
