"""Results that are computed while they are written: laid out beforehand, a few runs ahead.

Threads of ours read the inputs and compute; whoever writes takes the runs in order. What is in
flight is bounded in bytes, so memory does not grow with the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Final

import torch
from torch import Tensor

from ckpt_surgery.compute.jobs import DEFAULT_MEMORY, Job
from ckpt_surgery.compute.spans import spans

_HEAP: Final = 16 << 20


@dataclass(slots=True, eq=False)
class _Started:
    """A job under way: what `begin` gives, the runs asked for and those still to ask for."""

    job: Job
    begun: Future[Any]
    spans: deque[tuple[int, int]]
    futures: deque[Future[Tensor]] = field(default_factory=deque)

    def run_nbytes(self) -> int:
        """Return bytes that the next run will take."""
        start, stop = self.spans[0]
        return (stop - start) * self.job.itemsize


class Stream:
    """Computes jobs in the order in which they will be asked for, at most `memory` bytes ahead.

    Use it in a ``with`` statement around the writing. Only its thread is served: one that computes
    another job, and needs the result of one of these for it, would wait for itself.
    """

    def __init__(self, jobs: Iterable[Job], *, threads: int, memory: int = DEFAULT_MEMORY) -> None:
        self._jobs = dict.fromkeys(jobs)
        self._ahead = dict(self._jobs)
        self._threads = threads
        self._memory = memory
        self._started: dict[Job, _Started] = {}
        self._in_flight = 0
        self._thread = get_ident()
        self._pool: ThreadPoolExecutor | None = None
        self._torch_threads = torch.get_num_threads()

    def __enter__(self) -> Stream:
        keep_freed_memory()
        # one thread of torch's in each of ours: see `merging.merged_runs`
        self._pool = ThreadPoolExecutor(self._threads, "merge", torch.set_num_threads, (1,))
        for job in self._jobs:
            job.scheduler = self
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:
            job.scheduler = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._started.clear()
        torch.set_num_threads(self._torch_threads)

    def serves_this_thread(self) -> bool:
        """Return whether the calling thread is the one that the results are computed for."""
        return get_ident() == self._thread

    def runs(self, job: Job) -> Iterator[Tensor]:
        """Yield the result of a job, run by run."""
        current = self._started.pop(job, None) or self._start(job)
        try:
            while True:
                self._fill(current)
                if not current.futures:
                    return
                run = current.futures.popleft().result()
                yield run
                self._in_flight -= run.nbytes
        finally:
            self._in_flight -= job.workspace
            for future in current.futures:
                future.cancel()

    def _start(self, job: Job) -> _Started:
        if self._pool is None:
            raise RuntimeError("the stream is not open")
        self._ahead.pop(job, None)
        self._in_flight += job.workspace
        waiting = deque(spans(0, job.numel, job.run_size))
        return _Started(job, self._pool.submit(job.begin), waiting)

    def _fill(self, current: _Started) -> None:
        """Ask for runs: of `current` first, then of those after it, as far as memory goes."""
        while current.spans and (not current.futures or self._has_room(current.run_nbytes())):
            self._submit(current)
        if current.spans:
            return
        for started in self._started.values():
            while started.spans and self._has_room(started.run_nbytes()):
                self._submit(started)
            if started.spans:
                return
        while self._ahead:
            job = next(iter(self._ahead))
            first = min(job.numel, job.run_size) * job.itemsize
            if not self._has_room(job.workspace + first):
                return
            started = self._started[job] = self._start(job)
            while started.spans and self._has_room(started.run_nbytes()):
                self._submit(started)
            if started.spans:
                return

    def _has_room(self, nbytes: int) -> bool:
        return self._in_flight + nbytes <= self._memory

    def _submit(self, started: _Started) -> None:
        if self._pool is None:
            raise RuntimeError("the stream is not open")
        self._in_flight += started.run_nbytes()
        start, stop = started.spans.popleft()
        job, begun = started.job, started.begun
        # `begun` was asked for before, and threads take what they are asked in order
        started.futures.append(self._pool.submit(lambda: job.run(begun.result(), start, stop)))


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed between pieces.

    glibc gives freed memory back to the kernel at once, and each piece would fault it in again,
    until a block that it had mapped is freed: from then on it keeps twice as much.
    """
    torch.empty(_HEAP, dtype=torch.uint8)
