"""A tensor whose elements lie in several chunks, as one run of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final, TypeAlias

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import CHUNK, ByteRange, Bytes, ByteSource
from ckpt_surgery.fileio.ranges import as_bytes, wholes_of
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST_DIMENSIONS: Final = 64  # torch's own limit
_AHEAD: Final = 1 << 18  # bytes of each chunk that are read at a time


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
    be of any size, as those of every placement of a sharded tensor do. Memory: a quarter of a MB
    for each chunk.

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
    wholes = tuple(dict.fromkeys(whole for chunk in held for whole in wholes_of(chunk.data)))
    parts = [part for _, part in tiling]
    if all(isinstance(part, Chunk) for part in parts):
        data = [part.data for part in parts if isinstance(part, Chunk)]
        return data[0] if len(data) == 1 else _Concatenated(tuple(data), wholes)
    return _Stitched(tiling, itemsize, prod(shape) * itemsize, wholes)


def ranges_of(data: ByteSource) -> Iterator[ByteRange]:
    """Yield the ranges of files that the elements of a tensor come from, each with its checksum."""
    if isinstance(data, ByteRange):
        yield data.whole or data
    elif isinstance(data, _Concatenated):
        for each in data.parts:
            yield from ranges_of(each)
    elif isinstance(data, _Stitched):
        waiting = list(data.tiling)
        while waiting:
            _, part = waiting.pop(0)
            if isinstance(part, Chunk):
                yield from ranges_of(part.data)
            else:
                waiting += part
    else:
        yield from wholes_of(data)


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
    """Sources one after the other; `wholes` are ranges that they have parts of."""

    parts: tuple[ByteSource, ...]
    wholes: tuple[ByteRange, ...]

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
    """Rows put together from several chunks; `wholes` are ranges that they are parts of."""

    tiling: _Tiling
    itemsize: int
    nbytes: int
    wholes: tuple[ByteRange, ...]

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time.

        Raises `DamagedFileError` after the last one of a chunk that is not that of its checksum.
        """
        collected = bytearray()
        readers: dict[int, _Ahead] = {}
        for chunk, nbytes in self._runs(self.tiling, ()):
            reader = readers.get(id(chunk))
            if reader is None:
                reader = readers[id(chunk)] = _Ahead(chunk.data)
            for piece in reader.read(nbytes):
                collected += piece
                while len(collected) >= size:
                    yield bytes(collected[:size])
                    del collected[:size]
        if collected:
            yield bytes(collected)

    def _runs(self, tiling: _Tiling, prefix: tuple[int, ...]) -> Iterator[tuple[Chunk, int]]:
        """Yield (chunk, bytes): recursive, as deep as there are dimensions.

        Those of one chunk come in its own order, and all of them do.
        """
        for rows, part in tiling:
            if isinstance(part, Chunk):
                yield part, prod(part.sizes[len(prefix) :]) * self.itemsize
                continue
            for row in range(rows):
                yield from self._runs(part, (*prefix, row))


class _Ahead:
    """Reads a chunk from its start to its end, in runs of any length, which may be short."""

    def __init__(self, data: ByteSource) -> None:
        self._pieces = data.chunks(_AHEAD)
        self._held: memoryview = memoryview(b"")

    def read(self, nbytes: int) -> Iterator[memoryview]:
        """Yield the next `nbytes` bytes."""
        while nbytes:
            if not self._held:
                self._held = as_bytes(next(self._pieces))
            piece, self._held = self._held[:nbytes], self._held[nbytes:]
            nbytes -= len(piece)
            yield piece
        if not self._held:  # the checksum is compared behind the last piece
            self._held = as_bytes(next(self._pieces, b""))
