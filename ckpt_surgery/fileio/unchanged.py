"""Whether a file holds already what would be written into it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.buffers import ReadBuffer
from ckpt_surgery.fileio.ranges import ByteRange, ByteSource, as_bytes
from ckpt_surgery.fileio.sink import Sink, copy_chunks
from ckpt_surgery.fileio.sources import Source

_PIECE: Final = 1 << 20


class _DiffersError(Exception):
    """What is written is not what the file holds; nobody but `holds` sees it."""


class _ComparingSink:
    """A `Sink` that compares what would be written with the bytes of an open file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.position = 0
        self._file = file
        self._read = ReadBuffer()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Compare the next bytes. Raises `_DiffersError`."""
        view = as_bytes(data)
        for start in range(0, view.nbytes, _PIECE):
            piece = view[start : start + _PIECE]
            if self._file.read(piece.nbytes) != piece:
                raise _DiffersError
        self.position += view.nbytes

    def copy(self, source: ByteSource) -> None:
        """Compare all bytes of `source`. Raises what reading it raises, too."""
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
        """Do nothing: a comparison takes no space."""


def holds(path: PathLike, nbytes: int, write: Callable[[Sink], object]) -> bool:
    """Return whether the regular file `path` holds the `nbytes` bytes that `write` writes.

    It stops at the first byte that differs, and looks at none if the file has another size.
    Raises what `write` raises.
    """
    file = Path(path)
    if not file.is_file() or file.stat().st_size != nbytes:
        return False
    with file.open("rb", buffering=0) as opened:
        try:
            write(_ComparingSink(opened, os.fspath(path)))
        except _DiffersError:
            return False
    return True


def write_unless_same(
    path: PathLike,
    data: bytes,
    *,
    force: bool = False,
    if_changed: bool = False,
    inputs: Iterable[Source] = (),
) -> None:
    """Write a small file, which appears complete or not at all, unless it holds `data` already.

    Then only its time is made new, and with `if_changed` not even that. A file that holds
    something else is replaced with `force` or `if_changed`. Raises `WriteError`.
    """
    if (if_changed or not force) and holds(path, len(data), lambda sink: sink.write(data)):
        if not if_changed:
            os.utime(path)
        return
    with atomic_output(path, force=force or if_changed, inputs=inputs) as sink:
        sink.write(data)
