"""CRC-32 of many ranges at once: read in the order of the file, computed in threads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from threading import local
from typing import Final

from ckpt_surgery.fileio.checksum import combine
from ckpt_surgery.fileio.parallel import Tally, in_threads
from ckpt_surgery.fileio.ranges import ByteRange

_PIECE: Final = 1 << 22
"""Bytes that a thread computes at a time."""

_BUFFER: Final = 1 << 18
"""Bytes that are read at once, so few that they are still in the cache when they are looked at."""


def crc32_of(
    ranges: Sequence[ByteRange], *, threads: int | None = None, tally: Tally | None = None
) -> Iterator[int]:
    """Yield the CRC-32 of each range, in their order, computed from the bytes.

    A long range is divided among the threads. Raises `ReadError` if the bytes cannot be read.
    """
    count = tally or Tally(None)
    buffers = local()

    def compute(piece: ByteRange) -> int:
        buffer = getattr(buffers, "view", None)
        if buffer is None:
            buffer = buffers.view = memoryview(bytearray(_BUFFER))
        found = 0
        end = piece.offset + piece.nbytes
        for start in range(piece.offset, end, _BUFFER):
            part = buffer[: min(_BUFFER, end - start)]
            piece.source.read_into(start, part)
            found = zlib.crc32(part, found)
        count(piece.nbytes)
        return found

    results = in_threads(compute, _pieces(ranges), threads=threads)
    for data in ranges:
        found = left = 0
        for left in range(data.nbytes, 0, -_PIECE):
            found = combine(found, next(results), min(left, _PIECE))
        yield found


def _pieces(ranges: Sequence[ByteRange]) -> Iterator[ByteRange]:
    for data in ranges:
        for start in range(0, data.nbytes, _PIECE):
            yield data.slice(start, min(_PIECE, data.nbytes - start))
