"""How bytes are handed to the kernel, by how quickly it takes them.

Late Linux puts a whole write into one run of pages if it can (large folios of ext4 and xfs). While
memory is in one piece, writing half a mebibyte at once takes a tenth less time than writing 64 KiB.
When it is not, the kernel moves pages about to clear such runs, and the same write takes up to
twenty times as long, in the end also one of 64 KiB. Only its own copy from file to file, page by
page as `cp` and `cat` have it, takes the same in every state of the memory. Which way is quickest
can only be seen from the time that it takes, and it changes.
"""

from __future__ import annotations

from typing import Final

LARGE: Final = 1 << 19
"""Bytes written at once; they also stay in the processor's cache."""
_SMALL: Final = 1 << 16
BY_KERNEL: Final = 0
"""Nothing is read and written: the kernel copies."""

WINDOW: Final = 1 << 21
"""Bytes after which the time that they took is looked at."""

_RETRIAL: Final = 64
"""Windows after which large writes are tried again."""


class Pace:
    """Says in which way to copy, and is told how long that took.

    It begins with large writes, tries the others once, and goes over to the one that was quickest
    when it was used last. `has_kernel` says that the kernel can copy.
    """

    def __init__(self, *, has_kernel: bool = False) -> None:
        self._ways = [LARGE, _SMALL, BY_KERNEL] if has_kernel else [LARGE, _SMALL]
        self.way = LARGE
        self._nbytes = 0
        self._spent = 0.0
        self._windows = 0
        self._last: dict[int, float] = {}  # seconds a byte

    def took(self, seconds: float, nbytes: int) -> None:
        """Take notice that `nbytes` bytes were copied in `seconds`."""
        self._spent += seconds
        self._nbytes += nbytes
        if self._nbytes >= WINDOW:
            self._last[self.way] = self._spent / self._nbytes
            self._windows += 1
            self._go_on()

    def rule_out_kernel(self) -> None:
        """Take notice that the kernel cannot copy after all."""
        self._ways = [LARGE, _SMALL]
        self._go_on()

    def _go_on(self) -> None:
        self._nbytes, self._spent = 0, 0.0
        untried = [way for way in self._ways if way not in self._last]
        way = untried[0] if untried else min(self._ways, key=self._last.__getitem__)
        if way == self.way and self._windows >= _RETRIAL:
            way = LARGE
        if way != self.way:
            self.way, self._windows = way, 0
