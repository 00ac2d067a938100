"""How many bytes to hand to the kernel at once, by how quickly it takes them.

Late Linux puts a whole write into one run of pages if it can (large folios of ext4 and xfs). While
memory is in one piece, writing half a mebibyte at once takes a tenth less time than writing 64 KiB.
When it is not, the kernel moves pages about to clear such runs, and the same write takes two to
four times as long; `cp`, which the kernel copies page by page, does not notice. Which of the two it
is can only be seen from the time that a write takes, and it changes. 2 GB copied by `rename` on
Linux 6.18 with ext4: 0.43 s and 0.48 s by large and small writes in a memory in one piece; 0.75 to
2.2 s and 0.48 to 0.6 s in one in small pieces.
"""

from __future__ import annotations

from typing import Final

SIZES: Final = (1 << 19, 1 << 16)
"""Bytes written at once, large and small. The first also stay in the processor's cache."""

_WINDOW: Final = 1 << 21
"""Bytes after which the time that they took is looked at."""

_RETRIAL: Final = 64
"""Windows of small writes after which a large one is tried again."""


class Pace:
    """Says how many bytes to write at once, and is told how long that took.

    It begins with large writes, tries the small ones, and changes whenever a window took longer
    than the last one of the other size.
    """

    def __init__(self) -> None:
        self.nbytes = SIZES[0]
        self._written = 0
        self._spent = 0.0
        self._windows = 0
        self._last: dict[int, float] = {}  # seconds a byte

    def took(self, seconds: float, nbytes: int) -> None:
        """Take notice that `nbytes` bytes were written in `seconds`."""
        self._spent += seconds
        self._written += nbytes
        if self._written < _WINDOW:
            return
        large, small = SIZES
        now = self._last[self.nbytes] = self._spent / self._written
        self._written, self._spent = 0, 0.0
        self._windows += 1
        other = small if self.nbytes == large else large
        is_due = self.nbytes == small and self._windows >= _RETRIAL
        if other not in self._last or now > self._last[other] or is_due:
            self.nbytes, self._windows = other, 0
