"""Tensors that are computed when they are written, run by run. Importing this imports no torch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.spans import RUN, spans
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio import CHUNK
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from torch import Tensor

    from ckpt_surgery.checkpoint.description import Tensor as Described

DEFAULT_MEMORY: Final = 64 << 20
"""Bytes of results that may wait to be written."""

_MOST_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Computing:
    """What computing may use: `threads` (None: one a processor, at most 8), and `memory`, the bytes
    of results that may wait to be written.

    Raises `UsageError` for no threads.
    """

    threads: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                f"'threads {self.threads}' is no number of threads", fields=("threads",)
            )

    @property
    def workers(self) -> int:
        """How many threads compute."""
        counts = hasattr(os, "sched_getaffinity")
        available = len(os.sched_getaffinity(0)) if counts else os.cpu_count()
        return self.threads or min(_MOST_THREADS, available or 1)

    @property
    def room(self) -> int:
        """Bytes of results that may wait."""
        return self.memory or DEFAULT_MEMORY


class _Scheduler(Protocol):
    """What computes a job ahead of its reader (`scheduler.Stream`)."""

    def serves_this_thread(self) -> bool:
        """Return whether the calling thread is the one that the results are computed for."""

    def runs(self, job: Job) -> Iterator[Tensor]:
        """Yield the result of a job, run by run."""


class Job(ABC):
    """One tensor to compute. `numel` counts real numbers, `itemsize` the bytes of one.

    `run_size` are the elements computed at once, `workspace` the bytes that the job holds from
    `begin` on until its last run, `big_endian` how its result is to be stored. `scheduler` is what
    computes it ahead at the moment, if anything does; `tally` counts what its numbers lose, and
    those that it is `made_of` may have tallies of their own.
    """

    numel: int
    itemsize: int
    run_size: int = RUN
    workspace: int = 0
    big_endian: bool = False
    scheduler: _Scheduler | None = None
    tally: CastTally | None = None
    made_of: Sequence[Described] = ()

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize

    @abstractmethod
    def begin(self) -> Any:
        """Return what every run needs: read once, in a thread."""

    @abstractmethod
    def run(self, begun: Any, start: int, stop: int) -> Tensor:
        """Return the elements from `start` to `stop`, flat; called from several threads."""

    def runs(self) -> Iterator[Tensor]:
        """Yield the result, run by run: ahead if it is scheduled for this thread, else now."""
        if self.scheduler is not None and self.scheduler.serves_this_thread():
            yield from self.scheduler.runs(self)
            return
        begun = self.begin()
        for start, stop in spans(0, self.numel, self.run_size):
            yield self.run(begun, start, stop)


@dataclass(frozen=True, slots=True, eq=False)
class JobBytes:
    """The bytes of a job's result, as a `ByteSource`; computed anew on every reading."""

    job: Job

    @property
    def nbytes(self) -> int:
        return self.job.nbytes

    @property
    def crc32(self) -> None:
        return None

    @property
    def tally(self) -> CastTally | None:
        """What counts the numbers that are lost."""
        return self.job.tally

    @property
    def made_of(self) -> Sequence[Described]:
        """The tensors that it is computed from."""
        return self.job.made_of

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, computed now; raises whatever computing raises."""
        import torch

        for run in self.job.runs():
            data = run.view(torch.uint8)
            if self.job.big_endian:
                data = data.view(-1, self.job.itemsize).flip(1).reshape(-1)
            view = data.numpy().data
            for start in range(0, view.nbytes, size):
                yield view[start : start + size]
