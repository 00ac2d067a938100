"""Bytes on their way through memory: small ones collected, large ones in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ckpt_surgery.fileio.ranges import ByteRange, as_bytes

COALESCE: Final = 1 << 16
"""Bytes from which on a piece is written by itself; smaller ones are collected."""

_BUFFER: Final = 1 << 19
"""Bytes read and written at once, which stay in the processor's cache."""


class WriteBuffer:
    """Collects small pieces and hands them to `put` together, in order with the large ones."""

    def __init__(self, put: Callable[[memoryview], None]) -> None:
        self._put = put
        self._pending = bytearray()

    @property
    def nbytes(self) -> int:
        """Bytes that were not handed on yet."""
        return len(self._pending)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes, which may be changed afterwards."""
        view = as_bytes(data)
        if view.nbytes < COALESCE:
            self._pending += view
            if len(self._pending) >= COALESCE:
                self.flush()
        else:
            self.flush()
            self._put(view)

    def flush(self) -> None:
        """Hand on everything taken so far."""
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            self._put(memoryview(pending))


class ReadBuffer:
    """Reads ranges through one buffer, made when it is first used."""

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    def pieces(self, data: ByteRange, position: int) -> Iterator[memoryview]:
        """Yield the bytes of a range that is written to byte `position` of a file.

        Each piece ends where a whole buffer of that file would, since a disk takes whole blocks
        faster than blocks in two parts, and is overwritten by the next. Raises ReadError like
        `Source.read_into`.
        """
        if data.nbytes and not self._buffer:
            self._buffer = memoryview(bytearray(_BUFFER))
        at, end = data.offset, data.offset + data.nbytes
        while at < end:
            nbytes = min(end - at, _BUFFER - position % _BUFFER)
            piece = self._buffer[:nbytes]
            data.source.read_into(at, piece)
            yield piece
            at += nbytes
            position += nbytes
