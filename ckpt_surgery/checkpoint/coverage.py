"""How many bytes of a storage the elements of some tensors lie in, each byte counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd, prod
from typing import Final, NamedTuple

from ckpt_surgery.checkpoint.description import Tensor

_MOST_MARKS: Final = 1 << 28
"""Marks (one for the greatest length that divides all runs and steps) that are made at most."""


class _Comb(NamedTuple):
    """Runs of `run` bytes, the first from byte `start` on, repeated `n` times at each (n, step)."""

    start: int
    run: int
    steps: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.run + sum((n - 1) * step for n, step in self.steps)


def span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor touches, and the byte after
    the last; (0, 0) if it is empty.
    """
    if not tensor.extent:
        return 0, 0
    dtype = tensor.dtype
    start = tensor.offset * dtype.itemsize // dtype.elements_per_byte
    return start, dtype.nbytes(tensor.offset + tensor.extent)


def steps_of(tensor: Tensor) -> list[tuple[int, int]]:
    """Return (elements, stride) of the dimensions that lead to other elements, nearest first."""
    pairs = ((n, step) for n, step in zip(tensor.shape, tensor.stride, strict=True))
    return sorted((pair for pair in pairs if pair[0] > 1 and pair[1]), key=lambda pair: pair[1])


def used_nbytes(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes the elements of `tensors`, all of one storage, lie in.

    Exact for views with steps, whether they overlap each other or themselves. Only where that
    would take more than 2**28 marks, and for elements that are parts of a byte, what lies
    between the first and the last element of a view counts as used.
    """
    combs = sorted({_comb(tensor) for tensor in tensors if tensor.numel})
    found, at = 0, 0
    while at < len(combs):
        end, stop = combs[at].end, at + 1
        while stop < len(combs) and combs[stop].start < end:
            end = max(end, combs[stop].end)
            stop += 1
        found += _of_group(combs[at:stop], combs[at].start, end)
        at = stop
    return found


def _comb(tensor: Tensor) -> _Comb:
    start, end = span(tensor)
    if tensor.dtype.elements_per_byte > 1:
        return _Comb(start, end - start)
    run = size = tensor.dtype.itemsize
    steps: list[tuple[int, int]] = []
    for n, stride in steps_of(tensor):
        step = stride * size
        if step <= run:  # sorted: all before it were joined, too
            run += (n - 1) * step
        else:
            steps.append((n, step))
    return _Comb(start, run, tuple(steps))


def _of_group(combs: Sequence[_Comb], start: int, end: int) -> int:
    """Return the bytes that combs use which lie between `start` and `end` without a break."""
    if any(not comb.steps and (comb.start, comb.end) == (start, end) for comb in combs):
        return end - start
    if len(combs) == 1 and _is_disjoint(combs[0]):
        return combs[0].run * prod(n for n, _ in combs[0].steps)
    if not any(comb.steps for comb in combs):
        return end - start
    unit = gcd(*(length for comb in combs for length in _lengths(comb, start)))
    if (end - start) // unit * len(combs) > _MOST_MARKS:
        return end - start
    marks = 0
    for comb in combs:
        own = (1 << comb.run // unit) - 1
        for n, step in comb.steps:
            own = _repeated(own, n, step // unit)
        marks |= own << (comb.start - start) // unit
    return marks.bit_count() * unit


def _is_disjoint(comb: _Comb) -> bool:
    """Return whether no run lies in another: each step goes beyond all before it."""
    extent = comb.run
    for n, step in comb.steps:
        if step < extent:
            return False
        extent += (n - 1) * step
    return True


def _lengths(comb: _Comb, start: int) -> Iterable[int]:
    return (comb.start - start, comb.run, *(step for _, step in comb.steps))


def _repeated(marks: int, n: int, step: int) -> int:
    """Return `marks` together with itself moved by 1, 2, … n - 1 steps, in log(n) movements."""
    done = 1
    while done < n:
        more = min(done, n - done)
        marks |= marks << more * step
        done += more
    return marks
