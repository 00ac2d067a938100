"""Results that are computed while they are written: laid out beforehand, a few runs ahead.

Threads of ours read the inputs and compute; whoever writes takes the runs in order. What is in
flight is bounded in bytes, so memory does not grow with the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ckpt_surgery.compute.spans import RUN, spans
from ckpt_surgery.fileio import CHUNK

DEFAULT_MEMORY: Final = 64 << 20
"""Bytes of results that may wait to be written."""


_HEAP: Final = 16 << 20


class Job(ABC):
    """One tensor to compute. `numel` counts real numbers, `itemsize` the bytes of one.

    `run_size` are the elements computed at once, `workspace` the bytes that the job holds from
    `begin` on until its last run, `big_endian` how its result is to be stored.
    """

    numel: int
    itemsize: int
    run_size: int = RUN
    workspace: int = 0
    big_endian: bool = False

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize

    @abstractmethod
    def begin(self) -> Any:
        """What every run needs: read once, in a thread."""

    @abstractmethod
    def run(self, begun: Any, start: int, stop: int) -> Tensor:
        """The elements from `start` to `stop`, flat; called from several threads."""


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledBytes:
    """The bytes of a job's result, as a `ByteSource`."""

    job: Job
    stream: Stream

    @property
    def nbytes(self) -> int:
        return self.job.nbytes

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """The bytes in order, computed now; raises whatever computing raises."""
        for run in self.stream.runs(self.job):
            data = run.view(torch.uint8)
            if self.job.big_endian:
                data = data.view(-1, self.job.itemsize).flip(1).reshape(-1)
            view = data.numpy().data
            for start in range(0, view.nbytes, size):
                yield view[start : start + size]


@dataclass(slots=True, eq=False)
class _Started:
    """A job under way: what `begin` gives, the runs asked for and those still to ask for."""

    job: Job
    begun: Future[Any]
    spans: deque[tuple[int, int]]
    futures: deque[Future[Tensor]] = field(default_factory=deque)

    def run_nbytes(self) -> int:
        """Bytes that the next run will take."""
        start, stop = self.spans[0]
        return (stop - start) * self.job.itemsize


class Stream:
    """Computes jobs in the order in which they will be asked for, at most `memory` bytes ahead.

    Use it in a ``with`` statement around the writing.
    """

    def __init__(self, *, threads: int, memory: int = DEFAULT_MEMORY) -> None:
        self._threads = threads
        self._memory = memory
        self._ahead: dict[Job, None] = {}
        self._started: dict[Job, _Started] = {}
        self._in_flight = 0
        self._pool: ThreadPoolExecutor | None = None
        self._torch_threads = torch.get_num_threads()

    def __enter__(self) -> Stream:
        keep_freed_memory()
        # one thread of torch's in each of ours: see `merging.merged_runs`
        self._pool = ThreadPoolExecutor(self._threads, "merge", torch.set_num_threads, (1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._started.clear()
        torch.set_num_threads(self._torch_threads)

    def add(self, job: Job) -> ScheduledBytes:
        """The bytes of `job`, to be computed when they are read."""
        self._ahead[job] = None
        return ScheduledBytes(job, self)

    def schedule(self, sources: Iterable[object]) -> None:
        """Expect the results in the order of `sources`, those of others left out."""
        order = [source.job for source in sources if isinstance(source, ScheduledBytes)]
        self._ahead = dict.fromkeys(job for job in order if job in self._ahead)

    def runs(self, job: Job) -> Iterator[Tensor]:
        """The result of a job, run by run."""
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
