"""A source as long as it should be: what is missing of it reads as zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ckpt_surgery.fileio.sources import FileIdentity, Source, require_inside


class PaddedSource:
    """The first `size` bytes of `inner`, and zeros where it ends before.

    `patches` are bytes that stand at offsets instead of what `inner` has there. Closing it closes
    `inner`.
    """

    path: Final = None

    def __init__(
        self, inner: Source, size: int, patches: Mapping[int, bytes] | None = None
    ) -> None:
        self._inner = inner
        self._patches = dict(patches or {})
        self.size = size
        self.name = inner.name

    @property
    def identity(self) -> FileIdentity | None:
        return self._inner.identity

    def require_unchanged(self) -> None:
        """Raise ReadError if the source inside changed."""
        self._inner.require_unchanged()

    def close(self) -> None:
        """Close the source inside."""
        self._inner.close()

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read exactly `nbytes` bytes from byte `offset` on."""
        buffer = bytearray(nbytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, from byte `offset` on."""
        require_inside(self, offset, buffer.nbytes)
        there = max(min(self._inner.size - offset, buffer.nbytes), 0)
        if there:
            self._inner.read_into(offset, buffer[:there])
        buffer[there:] = bytes(buffer.nbytes - there)
        for at, data in self._patches.items():
            first, last = max(at, offset), min(at + len(data), offset + buffer.nbytes)
            if first < last:
                buffer[first - offset : last - offset] = data[first - at : last - at]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges."""
        return [self.read_at(offset, nbytes) for offset, nbytes in ranges]

    def descriptor_at(self, offset: int) -> None:
        """Return None: the bytes lie as such in no file."""
