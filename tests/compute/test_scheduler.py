"""Computing ahead of the writer: order, bounds, errors, cleaning up."""

from __future__ import annotations

import threading

import pytest
import torch

from ckpt_surgery.compute.ahead import scheduled
from ckpt_surgery.compute.jobs import Computing, Job, JobBytes
from ckpt_surgery.compute.scheduler import Stream
from ckpt_surgery.errors import UsageError


class Count(Job):
    """The numbers from `first` on."""

    run_size = 10

    def __init__(self, first, numel, *, workspace=0, big_endian=False, fails=False):
        self.first, self.numel, self.itemsize = first, numel, 4
        self.workspace, self.big_endian, self.fails = workspace, big_endian, fails
        self.asked = []

    def begin(self):
        if self.fails:
            raise ValueError("no")
        return self.first

    def run(self, begun, start, stop):
        self.asked.append((start, threading.current_thread().name))
        return torch.arange(begun + start, begun + stop, dtype=torch.int32)


def content(computed, size=1 << 20):
    return torch.frombuffer(bytearray(b"".join(computed.chunks(size))), dtype=torch.int32).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("memory", [1, 100, 1 << 20])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_results_are_the_same_however_they_are_asked_for(threads, memory, order):
    numels = (25, 1, 40, 7)
    jobs = [Count(100 * i, n, workspace=i * 30) for i, n in enumerate(numels)]
    computed = [JobBytes(job) for job in jobs]
    with Stream(jobs, threads=threads, memory=memory) as stream:
        for i in order:
            assert content(computed[i]) == list(range(100 * i, 100 * i + numels[i]))
        assert content(computed[1]) == [100]
        assert stream._in_flight == 0


def test_nothing_is_computed_before_it_is_asked_for_and_then_only_so_far_ahead():
    jobs = [Count(0, 20), Count(0, 20), Count(0, 20)]
    computed = [JobBytes(job) for job in jobs]
    with Stream(jobs, threads=1, memory=120) as stream:
        assert not any(job.asked for job in jobs)
        chunks = computed[0].chunks()
        next(chunks)
        assert stream._in_flight <= 120
        list(chunks)
        list(computed[1].chunks())
        list(computed[2].chunks())
    assert all(len(job.asked) == 2 for job in jobs)
    assert all(name.startswith("merge") for job in jobs for _, name in job.asked)


def test_a_large_workspace_is_not_begun_ahead():
    small, large = Count(0, 10), Count(0, 10, workspace=1000)
    first, second = JobBytes(small), JobBytes(large)
    with Stream([small, large], threads=1, memory=200) as stream:
        chunks = first.chunks()
        next(chunks)
        assert not stream._started
        list(chunks)
        assert content(second) == list(range(10))


def test_the_schedule_is_the_order_of_computing():
    jobs = [Count(0, 10) for _ in range(3)]
    sources = [b"other", JobBytes(jobs[2]), JobBytes(jobs[0])]
    with scheduled(sources, Computing(threads=1, memory=1 << 20)):
        stream = jobs[2].scheduler
        assert jobs[1].scheduler is None
        next(JobBytes(jobs[2]).chunks())
        assert list(stream._started) == [jobs[0]]


def test_chunks_are_no_longer_than_asked_and_in_the_byte_order_of_the_file():
    computed = JobBytes(Count(1, 10, big_endian=True))
    assert (computed.nbytes, computed.crc32) == (40, None)
    with Stream([computed.job], threads=2):
        chunks = [bytes(chunk) for chunk in computed.chunks(16)]
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert chunks[0][:8] == b"\0\0\0\1\0\0\0\2"


def test_an_error_in_a_thread_reaches_the_writer():
    computed = JobBytes(Count(0, 30, fails=True))
    with Stream([computed.job], threads=2), pytest.raises(ValueError, match="no"):
        list(computed.chunks())


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    computed = JobBytes(Count(0, 30))
    with Stream([computed.job], threads=2):
        list(computed.chunks())
    assert torch.get_num_threads() == before


def test_without_a_stream_the_reader_computes():
    job = Count(5, 25)
    assert content(JobBytes(job)) == list(range(5, 30))
    with scheduled([JobBytes(job)], Computing()):
        pass
    assert content(JobBytes(job)) == list(range(5, 30))
    here = threading.current_thread().name
    assert {name for _, name in job.asked} == {here}


class Doubled(Job):
    """Twice what another job makes, which it reads in whatever thread it is begun."""

    def __init__(self, of):
        self.of, self.numel, self.itemsize = of, of.numel, 4

    def begin(self):
        return torch.tensor(content(JobBytes(self.of)), dtype=torch.int32)

    def run(self, begun, start, stop):
        return begun[start:stop] * 2


def test_a_job_may_need_the_result_of_another_that_is_written_too():
    """With one thread, which would wait for itself if it asked the stream."""
    first = Count(0, 25)
    second = Doubled(first)
    with scheduled(map(JobBytes, (second, first)), Computing(threads=1)):
        assert content(JobBytes(second)) == list(range(0, 50, 2))
        assert content(JobBytes(first)) == list(range(25))


def test_no_number_of_threads_is_refused():
    with pytest.raises(UsageError, match="no number of threads"):
        Computing(threads=0)


def test_a_closed_stream_computes_nothing():
    job = Count(0, 3)
    with pytest.raises(RuntimeError, match="not open"):
        list(Stream([job], threads=1).runs(job))
