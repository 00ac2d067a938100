"""Jobs among sources computed ahead of who writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ckpt_surgery.compute.jobs import Computing, JobBytes


@contextmanager
def scheduled(sources: Iterable[object], computing: Computing) -> Iterator[None]:
    """Compute the jobs among `sources` ahead, in this order, for the thread that is here.

    Without any nothing is started or imported.
    """
    jobs = [source.job for source in sources if isinstance(source, JobBytes)]
    if not jobs:
        yield
        return
    from ckpt_surgery.compute.scheduler import Stream

    with Stream(jobs, threads=computing.workers, memory=computing.room):
        yield
