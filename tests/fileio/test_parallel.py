"""Work in threads keeps its order, its errors and its bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ckpt_surgery.fileio.parallel import Tally, _processors, in_threads


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    assert list(in_threads(lambda n: n * n, range(100), threads=threads)) == [
        n * n for n in range(100)
    ]


def test_no_items_no_results() -> None:
    assert list(in_threads(str, [])) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_and_what_follows_is_not_done(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 5:
            raise ValueError("five")
        done.append(number)

    with pytest.raises(ValueError, match="five"):
        list(in_threads(work, range(1000), threads=threads))
    assert len(done) < 100


def test_only_a_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_threads(str, items(), threads=2)
    assert next(results) == "0"
    assert len(taken) <= 9
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 9


def test_work_runs_beside_each_other() -> None:
    """Each of two waits for the other: one after the other they would never end."""
    meeting = threading.Barrier(2, timeout=30)
    assert len(list(in_threads(lambda _: meeting.wait(), range(2), threads=2))) == 2


def test_a_tally_tells_from_one_thread_at_a_time() -> None:
    inside: list[int] = []
    total = 0

    def advance(number: int) -> None:
        nonlocal total
        inside.append(number)
        assert len(inside) == 1
        total += number
        inside.pop()

    tally = Tally(advance)
    list(in_threads(lambda n: [tally(n) for _ in range(50)], range(100), threads=4))
    assert total == 50 * sum(range(100))
    Tally(None)(3)


def test_there_is_a_processor() -> None:
    assert 1 <= _processors() <= 8
