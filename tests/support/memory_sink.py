"""A sink that keeps what is written."""

from __future__ import annotations

from ckpt_surgery.fileio import ByteSource
from ckpt_surgery.fileio.sink import copy_chunks


class MemorySink:
    """A sink into memory."""

    name = "memory"

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def position(self) -> int:
        return len(self.data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def copy(self, source: ByteSource) -> None:
        copy_chunks(source, self)

    def reserve(self, nbytes: int) -> None:
        pass
