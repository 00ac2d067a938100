"""Computing ahead of the writer: order, bounds, errors, cleaning up."""

from __future__ import annotations

import threading

import pytest
import torch

from ckpt_surgery.compute.scheduler import Job, ScheduledBytes, Stream


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
    stream = Stream(threads=threads, memory=memory)
    numels = (25, 1, 40, 7)
    computed = [stream.add(Count(100 * i, n, workspace=i * 30)) for i, n in enumerate(numels)]
    with stream:
        for i in order:
            assert content(computed[i]) == list(range(100 * i, 100 * i + numels[i]))
        assert content(computed[1]) == [100]
        assert stream._in_flight == 0


def test_nothing_is_computed_before_it_is_asked_for_and_then_only_so_far_ahead():
    stream = Stream(threads=1, memory=120)
    jobs = [Count(0, 20), Count(0, 20), Count(0, 20)]
    computed = [stream.add(job) for job in jobs]
    with stream:
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
    stream = Stream(threads=1, memory=200)
    small, large = Count(0, 10), Count(0, 10, workspace=1000)
    first, second = stream.add(small), stream.add(large)
    with stream:
        chunks = first.chunks()
        next(chunks)
        assert not stream._started
        list(chunks)
        assert content(second) == list(range(10))


def test_the_schedule_is_the_order_of_computing():
    stream = Stream(threads=1, memory=1 << 20)
    jobs = [Count(0, 10) for _ in range(3)]
    computed = [stream.add(job) for job in jobs]
    stream.schedule([b"other", computed[2], computed[0]])
    with stream:
        next(computed[2].chunks())
        assert list(stream._started) == [jobs[0]]


def test_chunks_are_no_longer_than_asked_and_in_the_byte_order_of_the_file():
    stream = Stream(threads=2)
    computed = stream.add(Count(1, 10, big_endian=True))
    assert (computed.nbytes, computed.crc32) == (40, None)
    with stream:
        chunks = [bytes(chunk) for chunk in computed.chunks(16)]
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert chunks[0][:8] == b"\0\0\0\1\0\0\0\2"


def test_an_error_in_a_thread_reaches_the_writer():
    stream = Stream(threads=2)
    computed = stream.add(Count(0, 30, fails=True))
    with stream, pytest.raises(ValueError, match="no"):
        list(computed.chunks())


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    stream = Stream(threads=2)
    computed = stream.add(Count(0, 30))
    with stream:
        list(computed.chunks())
    assert torch.get_num_threads() == before


def test_a_closed_stream_computes_nothing():
    computed = ScheduledBytes(Count(0, 3), Stream(threads=1))
    with pytest.raises(RuntimeError, match="not open"):
        list(computed.chunks())
