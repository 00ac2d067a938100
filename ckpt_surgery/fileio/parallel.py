"""Work on bytes in threads: reading, checksums and digests run beside each other in C."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Final, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_THREADS: Final = 8
_AHEAD: Final = 4
"""Results that each thread may have waiting."""


def _processors() -> int:
    """Return the number of threads to use: one a processor that we may run on, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    return min(_MOST_THREADS, os.cpu_count() or 1)  # pragma: no cover (macOS, Windows)


def in_threads(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int | None = None
) -> Iterator[_Result]:
    """Yield the results of `work` for each item, in the order of the items.

    A few results are made ahead of the one that is taken. What `work` raises is raised here, and
    what has not been begun is then not done.
    """
    count = threads or _processors()
    if count == 1:
        yield from map(work, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # imports logging

    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(count, "ckpt") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= count * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Tally:
    """Adds up what threads have done, and tells `advance` about it, one thread at a time."""

    def __init__(self, advance: Callable[[int], object] | None) -> None:
        self._advance = advance
        self._lock = Lock()

    def __call__(self, number: int) -> None:
        if self._advance is not None:
            with self._lock:
                self._advance(number)


@contextmanager
def shown(
    progress: Callable[[int], AbstractContextManager[Callable[[int], object]]] | None, total: int
) -> Iterator[Tally]:
    """Yield a tally of `total` bytes of work, shown by a progress bar if there is one."""
    if progress is None:
        yield Tally(None)
        return
    with progress(total) as advance:
        yield Tally(advance)
