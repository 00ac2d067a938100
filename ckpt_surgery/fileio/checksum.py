"""CRC-32 of bytes that are read in pieces, in any order."""

from __future__ import annotations

import zlib
from functools import cache
from threading import Lock
from typing import Final

from ckpt_surgery.fileio.ranges import ByteRange

_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31  # the bits of a checksum stand in the order of falling powers
_X: Final = 1 << 30


class PieceSums:
    """Checks a range against its checksum while it is read piece by piece, by several threads.

    Pieces do not overlap; one that comes again is not counted again.
    """

    def __init__(self, data: ByteRange) -> None:
        self._data = data
        self._sums: dict[int, tuple[int, int]] = {}  # where a piece ends, and its checksum
        self._missing = data.nbytes if data.crc32 else -1
        self._lock = Lock()

    def add(self, start: int, piece: memoryview) -> None:
        """Take the bytes of the range from byte `start` on into account.

        Raises `DamagedFileError` if they are the last ones, and all are not those of the checksum.
        """
        if self._missing <= 0 or start in self._sums:
            return
        found = zlib.crc32(piece)
        with self._lock:
            if start in self._sums:
                return
            self._sums[start] = start + piece.nbytes, found
            self._missing -= piece.nbytes
            is_last = self._missing == 0
        if is_last:
            self._data.require_checksum(self._combined())

    def _combined(self) -> int:
        found = at = 0
        for start in sorted(self._sums):
            end, checksum = self._sums[start]
            if start != at:  # pieces overlap, and something was never read
                return self._data.crc32 or 0
            found, at = combine(found, checksum, end - start), end
        return found


def combine(first: int, second: int, nbytes: int) -> int:
    """Return the CRC-32 of two runs of bytes after each other, given theirs.

    `nbytes` is the length of the second. As zlib's ``crc32_combine``: the first is shifted by as
    many bits, which is a multiplication by a power of x modulo the polynomial.
    """
    return second if first == 0 else _multiply(_power(8 * nbytes), first) ^ second


@cache
def _power(exponent: int) -> int:
    """Return x to the power of `exponent`, modulo the polynomial."""
    found, square = _ONE, _X
    while exponent:
        if exponent & 1:
            found = _multiply(square, found)
        square = _multiply(square, square)
        exponent >>= 1
    return found


def _multiply(a: int, b: int) -> int:
    """Return the product of two polynomials modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
