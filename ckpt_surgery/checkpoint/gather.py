"""Elements of a strided view in row-major order, read in bounded memory and without torch.

A view's elements can lie anywhere in their storage: a transposed matrix of 10 GB has neighbours
that are 100 KB apart. Blocks of the result are put together one after the other; each is read in
pieces that are as long as they can be, and moved into place by memory views with steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Final, Literal, NamedTuple

from ckpt_surgery.fileio import CHUNK, ByteRange, ByteSource
from ckpt_surgery.startup.lazy_dataclass import dataclass

_BLOCK: Final = 1 << 24
"""Bytes of the result that are put together at a time, and bytes read at a time for them."""

_NEAR: Final = 1 << 12
"""Bytes between neighbours up to which what lies between them is read with them: a page."""

_WORDS: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Formats of a memory view whose elements have so many bytes."""

_Read = Callable[[int, int], "bytes | memoryview"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The elements of a strided view, one after another, the last dimension varying fastest.

    `data` starts with the view's first element; `stride` counts elements of `itemsize` bytes. Of
    data that is no range of a file all bytes are held in memory while it is read.
    """

    data: ByteSource
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    @property
    def crc32(self) -> None:
        return None

    @property
    def whole(self) -> ByteRange | None:
        """The range that the elements are from, if that has a checksum."""
        if not isinstance(self.data, ByteRange):
            return None
        return self.data if self.data.crc32 else self.data.whole

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time and never a part of an element.

        Raises `ReadError` if they cannot be read.
        """
        if not self.nbytes:
            return
        size = max(size - size % self.itemsize, self.itemsize)
        width = next(width for width in (8, 4, 2, 1) if self.itemsize % width == 0)
        read = _reader(self.data)
        for block in _blocks(_axes(self.shape, self.stride, self.itemsize // width), width, read):
            for start in range(0, len(block), size):
                yield block[start : start + size]


def part_of(data: ByteSource, start: int, nbytes: int) -> ByteSource:
    """Return the `nbytes` bytes of `data` from byte `start` on."""
    if isinstance(data, ByteRange):
        return data.slice(start, nbytes)
    return data if start == 0 and nbytes == data.nbytes else _Part(data, start, nbytes)


@dataclass(frozen=True, slots=True)
class _Part:
    """The `nbytes` bytes from byte `start` on of a source that is no range of a file."""

    source: ByteSource
    start: int
    nbytes: int

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order; what comes before them is made and thrown away."""
        at, end = 0, self.start + self.nbytes
        for chunk in self.source.chunks(size):
            wanted = chunk[max(self.start - at, 0) : max(end - at, 0)]
            at += len(chunk)
            if wanted:
                yield wanted
            if at >= end:
                return


class _Axis(NamedTuple):
    """A dimension: `n` words, so many words apart in the storage and in the result."""

    n: int
    source: int
    target: int


def _reader(data: ByteSource) -> _Read:
    """Return a function that gives so many bytes from a byte on."""
    if isinstance(data, ByteRange):
        file_range = data
        return lambda offset, nbytes: file_range.slice(offset, nbytes).read()
    held = memoryview(b"".join(data.chunks()))
    return lambda offset, nbytes: held[offset : offset + nbytes]


def _axes(shape: Sequence[int], stride: Sequence[int], words: int) -> list[_Axis]:
    """Return the dimensions, outermost first, of elements that have so many `words`.

    Dimensions of one element are left out, neighbours that can be walked as one are joined.
    """
    axes: list[_Axis] = []
    target = 1
    for n, step in (
        (words, 1),
        *((n, s * words) for n, s in zip(shape[::-1], stride[::-1], strict=True)),
    ):
        if n == 1:
            continue
        if axes and step == axes[-1].n * axes[-1].source:
            axes[-1] = axes[-1]._replace(n=axes[-1].n * n)
        else:
            axes.append(_Axis(n, step, target))
        target *= n
    return axes[::-1] or [_Axis(1, 1, 1)]


def _blocks(axes: Sequence[_Axis], width: int, read: _Read) -> Iterator[memoryview]:
    """Yield the result, at most `_BLOCK` bytes at a time."""
    most = _BLOCK // width
    inner = len(axes)
    while inner and axes[inner - 1].target * axes[inner - 1].n <= most:
        inner -= 1
    if inner == 0:
        yield _block(axes, 0, width, read)
        return
    cut = axes[inner - 1]  # the dimension of which a block has a part
    length = max(1, most // cut.target)
    for index in product(*(range(axis.n) for axis in axes[: inner - 1])):
        base = sum(i * axis.source for i, axis in zip(index, axes, strict=False))
        for start in range(0, cut.n, length):
            part = cut._replace(n=min(length, cut.n - start))
            yield _block((part, *axes[inner:]), base + start * cut.source, width, read)


def _block(axes: Sequence[_Axis], base: int, width: int, read: _Read) -> memoryview:
    """Return the words of a part of the view that starts at the word `base`."""
    words = prod(axis.n for axis in axes)
    if [axis.source for axis in axes] == [1]:
        return memoryview(read(base * width, words * width))
    block = memoryview(bytearray(words * width))
    target = block.cast(_WORDS[width])
    for outer, piece in _pieces(axes, width):
        source = base + outer.source
        span = 1 + sum((axis.n - 1) * axis.source for axis in piece)
        data = memoryview(read(source * width, span * width)).cast(_WORDS[width])
        _move(data, target, outer.target, piece)
    return block


def _pieces(axes: Sequence[_Axis], width: int) -> Iterator[tuple[_Axis, list[_Axis]]]:
    """Yield the parts to read at once: where each starts, in words, and its dimensions.

    Read as one is what is no longer than a block, and in which neighbours are near each other or
    most of what lies between them is wanted, too.
    """
    order = sorted(axes, key=lambda axis: axis.source)
    together: list[_Axis] = []
    span = 1
    while order and _is_near(order[0], span, width):
        axis = order.pop(0)
        fits = max(1, (_BLOCK // width - span) // max(axis.source, 1) + 1)
        if axis.n > fits:
            order.insert(0, axis)
            yield from _parts(order, together, fits)
            return
        together.append(axis)
        span += (axis.n - 1) * axis.source
    yield from _parts(order, together, 1)


def _is_near(axis: _Axis, span: int, width: int) -> bool:
    return axis.source <= max(2 * span, _NEAR // width)


def _parts(
    outer: Sequence[_Axis], together: list[_Axis], length: int
) -> Iterator[tuple[_Axis, list[_Axis]]]:
    """Yield every index of the `outer` dimensions, the first of them taken `length` at a time."""
    steps = [length, *(1 for _ in outer[1:])]
    for index in product(
        *(range(0, axis.n, step) for axis, step in zip(outer, steps, strict=False))
    ):
        start = _Axis(
            0,
            sum(i * axis.source for i, axis in zip(index, outer, strict=True)),
            sum(i * axis.target for i, axis in zip(index, outer, strict=True)),
        )
        taken = min(length, outer[0].n - index[0]) if outer else 1
        yield start, [outer[0]._replace(n=taken), *together] if taken > 1 else together


def _move(source: memoryview, target: memoryview, at: int, axes: Sequence[_Axis]) -> None:
    """Put words of `source` in their places of `target`, a run along the longest axis at a time."""
    if not axes:
        target[at] = source[0]
        return
    longest = max(axes, key=lambda axis: axis.n)
    others = [axis for axis in axes if axis is not longest]
    n, step, into = longest
    for index in product(*(range(axis.n) for axis in others)):
        start = sum(i * axis.source for i, axis in zip(index, others, strict=True))
        first = at + sum(i * axis.target for i, axis in zip(index, others, strict=True))
        run = (
            source[start : start + (n - 1) * step + 1 : step]
            if step
            else _repeated(source, start, n)
        )
        target[first : first + (n - 1) * into + 1 : into] = run


def _repeated(source: memoryview, at: int, n: int) -> memoryview:
    word = source[at : at + 1].tobytes()
    return memoryview(word * n).cast(_WORDS[len(word)])
