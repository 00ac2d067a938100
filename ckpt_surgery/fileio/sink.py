"""Where bytes go, one after the other."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol, TypeAlias

from ckpt_surgery.errors import WriteError
from ckpt_surgery.fileio.ranges import ByteRange, ByteSource, wholes_of

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of bytes that have just been written."""


class Sink(Protocol):
    """Bytes written forward only.

    Every method raises WriteError if bytes cannot be written; only a closed pipe stays a
    BrokenPipeError.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def position(self) -> int:
        """Bytes written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes."""

    def copy(self, source: ByteSource) -> None:
        """Write all bytes of `source`. Raises ReadError if they cannot be read."""

    def reserve(self, nbytes: int) -> None:
        """Raise WriteError if there is certainly no space for `nbytes` bytes more."""


class Unreading:
    """A sink that remembers sources and reads none, so that unstated checksums stay unknown: 0."""


def copy_chunks(source: ByteSource, sink: Sink) -> int:
    """Write all bytes of `source`, chunk by chunk; return their CRC-32.

    Raises ReadError if they cannot be read, WriteError if they are more or fewer than it says.
    """
    crc32 = nbytes = 0
    for chunk in source.chunks():
        crc32 = zlib.crc32(chunk, crc32)
        nbytes += len(chunk)
        sink.write(chunk)
    if nbytes != source.nbytes:
        raise WriteError(f"{source.nbytes} bytes were expected, {nbytes} given", path=sink.name)
    return crc32


def copy_with_crc32(source: ByteSource, sink: Sink, right: set[ByteRange] | None = None) -> int:
    """Write all bytes of `source`; return their CRC-32, computed only if it does not state it.

    What is cut out of a range that has a checksum gets one of its own only if the whole range is
    right: raises DamagedFileError if not. `right` are those of which that is known, and grows.
    """
    if source.crc32 is None and not isinstance(sink, Unreading):
        known = set() if right is None else right
        for whole in wholes_of(source):
            if whole not in known:
                for _ in whole.chunks():
                    pass
                known.add(whole)
        return copy_chunks(source, sink)
    sink.copy(source)
    return source.crc32 or 0
