"""The kernel's own copies between files, and where they are worth using."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

KERNEL_CHUNK: Final = 1 << 26  # bytes a system call; between two, signals and progress get a turn


BLOCK: Final = 1 << 12  # bytes of a page of memory, and mostly of a block on the disk


def is_on_disk(fd: int) -> bool:
    """Whether `fd` is a file on a disk of this machine; number 0 stands for all but block devices.

    With it come network and memory file systems, and those that span several disks.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and hasattr(os, "major") and os.major(status.st_dev) != 0


def kernel_copies() -> Iterator[Callable[[int, int, int, int], int]]:
    """The system's ways to copy (source, target, offset, bytes), best first; each returns bytes."""
    if hasattr(os, "copy_file_range"):
        yield lambda source, target, offset, nbytes: os.copy_file_range(
            source, target, nbytes, offset
        )
    if hasattr(os, "sendfile"):
        yield lambda source, target, offset, nbytes: os.sendfile(target, source, offset, nbytes)
