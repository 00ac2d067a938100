"""A tensor whose elements lie in several chunks, as one run of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import CHUNK, ByteRange, Bytes, ByteSource

_MOST_DIMENSIONS: Final = 64  # torch's own limit


@dataclass(frozen=True, slots=True)
class Chunk:
    """A rectangle of a tensor: where it begins, its sizes, and its elements, row-major."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    data: ByteSource


_Tiling: TypeAlias = "list[tuple[int, Chunk | _Tiling]]"
"""Along one dimension: how many rows, and the one chunk that they lie in, or how they are split."""


def stitch(shape: Sequence[int], itemsize: int, chunks: Sequence[Chunk]) -> ByteSource:
    """Return the elements of a tensor of `shape`, row-major, from `chunks` that tile it.

    `itemsize` are the bytes of an element. The chunks lie in a grid whose rows and columns may
    be of any size, as those of every placement of a sharded tensor do. Memory: a few MB, and each
    chunk that is no range of a file.

    Raises `DamagedFileError` if they leave a gap, overlap or lie outside.
    """
    if len(shape) > _MOST_DIMENSIONS:
        raise DamagedFileError(f"a tensor has {len(shape)} dimensions")
    for chunk in chunks:
        if len(chunk.offsets) != len(shape) or len(chunk.sizes) != len(shape):
            raise DamagedFileError("a chunk has other dimensions than its tensor")
        if chunk.data.nbytes != prod(chunk.sizes) * itemsize:
            raise DamagedFileError(
                f"a chunk of {list(chunk.sizes)} has {chunk.data.nbytes} bytes of data"
            )
    if not prod(shape):
        return Bytes(b"")
    held = [chunk for chunk in chunks if prod(chunk.sizes)]
    tiling = _tiled(held, shape, 0)
    parts = [part for _, part in tiling]
    if all(isinstance(part, Chunk) for part in parts):
        data = [part.data for part in parts if isinstance(part, Chunk)]
        return data[0] if len(data) == 1 else _Concatenated(tuple(data))
    return _Stitched(tiling, itemsize, prod(shape) * itemsize)


def _tiled(chunks: Sequence[Chunk], shape: Sequence[int], dimension: int) -> _Tiling:
    """Return how `chunks` tile what is left of `shape` from `dimension` on."""
    if len(chunks) == 1 and dimension == len(shape):
        return [(1, chunks[0])]
    if dimension == len(shape):
        raise DamagedFileError("chunks of a tensor overlap")
    rows: dict[tuple[int, int], list[Chunk]] = {}
    for chunk in chunks:
        rows.setdefault((chunk.offsets[dimension], chunk.sizes[dimension]), []).append(chunk)
    tiling: _Tiling = []
    position = 0
    for (offset, size), group in sorted(rows.items(), key=lambda item: item[0]):
        if offset != position:
            what = "overlap" if offset < position else "leave a gap"
            raise DamagedFileError(f"chunks of a tensor {what} in dimension {dimension}")
        position += size
        if len(group) == 1:
            _require_whole(group[0], shape, dimension + 1)
            tiling.append((size, group[0]))
        else:
            tiling.append((size, _tiled(group, shape, dimension + 1)))
    if position != shape[dimension]:
        raise DamagedFileError(
            f"chunks of a tensor reach to {position} of {shape[dimension]} in dimension {dimension}"
        )
    return tiling


def _require_whole(chunk: Chunk, shape: Sequence[int], dimension: int) -> None:
    """Raise `DamagedFileError` unless `chunk` has all of the dimensions from `dimension` on."""
    if any(chunk.offsets[dimension:]) or tuple(chunk.sizes[dimension:]) != tuple(shape[dimension:]):
        raise DamagedFileError("chunks of a tensor leave a gap")


@dataclass(frozen=True, slots=True)
class _Concatenated:
    """Sources one after the other."""

    parts: tuple[ByteSource, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time."""
        for part in self.parts:
            yield from part.chunks(size)


@dataclass(frozen=True, slots=True)
class _Stitched:
    """Rows that are put together from several chunks."""

    tiling: _Tiling
    itemsize: int
    nbytes: int

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time."""
        collected = bytearray()
        made: dict[int, bytes] = {}
        for chunk, start, nbytes in self._runs(self.tiling, ()):
            for piece in _bytes_of(chunk, start, nbytes, size, made):
                collected += piece
                while len(collected) >= size:
                    yield bytes(collected[:size])
                    del collected[:size]
        if collected:
            yield bytes(collected)

    def _runs(self, tiling: _Tiling, prefix: tuple[int, ...]) -> Iterator[tuple[Chunk, int, int]]:
        """Yield (chunk, first byte in it, bytes): recursive, as deep as there are dimensions."""
        for rows, part in tiling:
            if not isinstance(part, Chunk):
                for row in range(rows):
                    yield from self._runs(part, (*prefix, row))
                continue
            start = 0
            for dimension, index in enumerate(prefix):
                start += index * prod(part.sizes[dimension + 1 :])
            numel = prod(part.sizes[len(prefix) :])
            yield part, start * self.itemsize, numel * self.itemsize


def _bytes_of(
    chunk: Chunk, start: int, nbytes: int, size: int, made: dict[int, bytes]
) -> Iterator[bytes | memoryview]:
    if isinstance(chunk.data, ByteRange):
        yield from chunk.data.slice(start, nbytes).chunks(size)
        return
    if id(chunk) not in made:
        made[id(chunk)] = b"".join(chunk.data.chunks())
    yield memoryview(made[id(chunk)])[start : start + nbytes]
