"""Sinks of open descriptors: streams, and new files that nobody else has yet."""

from __future__ import annotations

import os
import select
from time import perf_counter

from ckpt_surgery.fileio.buffers import COALESCE, ReadBuffer, WriteBuffer
from ckpt_surgery.fileio.kernel_copy import KernelCopier
from ckpt_surgery.fileio.os_errors import cannot_write
from ckpt_surgery.fileio.pace import BY_KERNEL, WINDOW, Pace
from ckpt_surgery.fileio.ranges import ByteRange, ByteSource
from ckpt_surgery.fileio.reservation import Reservation, require_space
from ckpt_surgery.fileio.sink import Progress, copy_chunks


class StreamSink:
    """A `Sink` that writes to an open descriptor, which may be anybody's and stays open.

    Small pieces are collected into larger ones, so that `finish` must come last, which
    `stream_output` sees to. Ranges of files are copied by the kernel where that is faster.
    """

    def __init__(self, fd: int, *, name: str, progress: Progress | None = None) -> None:
        self.name = name
        self._fd = fd
        self._progress = progress
        self._flushed = 0
        self._pending = WriteBuffer(self._write_all)
        self._pace = Pace(has_kernel=True)
        self._read = ReadBuffer(self._pace)
        self._copier = KernelCopier(fd)

    @property
    def position(self) -> int:
        """Bytes written so far, those not flushed yet included."""
        return self._flushed + self._pending.nbytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes."""
        self._pending.write(data)

    def copy(self, source: ByteSource) -> None:
        """Write all bytes of `source`, through the kernel if that can copy them as they lie."""
        if not isinstance(source, ByteRange):
            copy_chunks(source, self)
            return
        done = 0
        if source.nbytes >= COALESCE:
            self._pending.flush()
            for copied in self._copier.copy(source, self._flushed):
                self._advance(copied)
                done += copied
        while done < source.nbytes:
            rest = source.slice(done, source.nbytes - done)
            if self._pace.way == BY_KERNEL and rest.nbytes >= COALESCE:
                done += self._copy_by_kernel(rest)
                continue
            for piece in self._read.pieces(rest, self.position):
                self._pending.write(piece)
                done += piece.nbytes

    def _copy_by_kernel(self, data: ByteRange) -> int:
        """Copy some of a range through the kernel, as the pace wants it; return how many bytes."""
        self._pending.flush()
        begun = perf_counter()
        copied = self._copier.copy_some(data, WINDOW)
        if copied:
            self._pace.took(perf_counter() - begun, copied)
            self._advance(copied)
        else:
            self._pace.rule_out_kernel()
        return copied

    def reserve(self, nbytes: int) -> None:
        """Raise WriteError if there is certainly no space for `nbytes` bytes more."""
        require_space(self._fd, nbytes, name=self.name)

    def finish(self) -> None:
        """Hand everything written so far to the operating system."""
        self._pending.flush()

    def _write_all(self, data: memoryview) -> None:
        while data:
            try:
                written = os.write(self._fd, data)
            except BlockingIOError:  # a pipe that somebody made non-blocking, and that is full
                select.select([], [self._fd], [])
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                raise cannot_write(self.name, error) from error
            self._advance(written)
            data = data[written:]

    def _advance(self, nbytes: int) -> None:
        self._flushed += nbytes
        if self._progress is not None:
            self._progress(nbytes)


class FileSink(StreamSink):
    """A `Sink` that writes a new file, whose blocks it allocates when they are reserved."""

    def __init__(self, fd: int, *, name: str, progress: Progress | None = None) -> None:
        super().__init__(fd, name=name, progress=progress)
        self._reservation = Reservation(fd, name=name)

    def reserve(self, nbytes: int) -> None:
        """Raise WriteError if there is certainly no space; otherwise allocate `nbytes` bytes."""
        super().reserve(nbytes)
        self._reservation.allocate(self.position, nbytes)

    def finish(self) -> None:
        """Hand over everything, and give back what was reserved beyond the last byte."""
        super().finish()
        self._reservation.give_back(self._flushed)
