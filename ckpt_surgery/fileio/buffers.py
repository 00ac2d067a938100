"""Bytes on their way through memory: small ones collected, large ones in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

from ckpt_surgery.fileio.pace import BY_KERNEL, LARGE, Pace
from ckpt_surgery.fileio.ranges import ByteRange, as_bytes

COALESCE: Final = 1 << 16
"""Bytes from which on a piece is written by itself; smaller ones are collected."""


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
    """Reads ranges through one buffer, made when it is first used.

    With `pace` its pieces are as large as that says, which is told how long each took from before
    it is read until the next is asked for.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace
        self._buffer = memoryview(b"")

    def pieces(self, data: ByteRange, position: int) -> Iterator[memoryview]:
        """Yield the bytes of a range that is written to byte `position` of a file.

        Each piece ends where a whole buffer of that file would, since a disk takes whole blocks
        faster than blocks in two parts, and is overwritten by the next. They end early where the
        kernel is to copy what is left, unless that is little. Raises ReadError like
        `Source.read_into`.
        """
        if data.nbytes and not self._buffer:
            self._buffer = memoryview(bytearray(LARGE))
        pace = self._pace
        at, end = data.offset, data.offset + data.nbytes
        while at < end:
            timed = None if pace is None or pace.way == BY_KERNEL else pace
            if pace is not None and timed is None and end - at >= COALESCE:
                return
            size = LARGE if timed is None else timed.way
            nbytes = min(end - at, size - position % size)
            piece = self._buffer[:nbytes]
            begun = perf_counter()
            data.source.read_into(at, piece)
            yield piece
            if timed is not None:
                timed.took(perf_counter() - begun, nbytes)
            at += nbytes
            position += nbytes
