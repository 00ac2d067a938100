"""Numbers of half precision as float32, which holds each of them exactly."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ckpt_surgery.fileio import CHUNK, ByteSource
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Widened:
    """The float32 numbers that `source` has in float16, or in bfloat16."""

    source: ByteSource
    is_bfloat16: bool

    @property
    def nbytes(self) -> int:
        return 2 * self.source.nbytes

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time."""
        rest = b""
        for chunk in self.source.chunks(max(size // 2, 2)):
            data = rest + bytes(chunk)
            whole = len(data) - len(data) % 2
            rest = data[whole:]
            yield self._widened(data[:whole])

    def _widened(self, data: bytes) -> bytes:
        if not self.is_bfloat16:
            count = len(data) // 2
            return struct.pack(f"<{count}f", *struct.unpack(f"<{count}e", data))
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[::2], data[1::2]
        return bytes(wide)
