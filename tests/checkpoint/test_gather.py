"""Elements of strided views, gathered in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_surgery.checkpoint import gather
from ckpt_surgery.checkpoint.gather import Gathered
from ckpt_surgery.fileio import ByteRange, Bytes, FileSource

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSource]:
    path = tmp_path_factory.mktemp("gather") / "data"
    path.write_bytes(b"?" + DATA)
    with FileSource.open(path) as file:
        yield file


def expected(shape: tuple[int, ...], stride: tuple[int, ...], itemsize: int) -> bytes:
    """The same elements, one index after the other."""
    places = (
        sum(i * step for i, step in zip(index, stride, strict=True)) * itemsize
        for index in product(*map(range, shape))
    )
    return b"".join(DATA[at : at + itemsize] for at in places)


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 3, 16])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((5,), (3,)),
        ((2, 3), (10, 2)),
        ((2, 2, 2), (11, 4, 1)),
        ((1,), (1,)),
        ((), ()),
        ((0, 4), (4, 1)),
        ((2, 3), (4, 1)),
        ((3, 4), (1, 3)),
        ((3, 2, 4), (1, 12, 3)),
        ((4, 3), (0, 1)),
        ((3, 4), (1, 0)),
        ((4,), (0,)),
        ((3, 3), (1, 1)),
    ],
)
def test_gathered_elements_are_those_of_the_view(
    shape: tuple[int, ...], stride: tuple[int, ...], itemsize: int, size: int, source: FileSource
) -> None:
    span = ByteRange(source, 1, extent(shape, stride) * itemsize)
    gathered = Gathered(span, shape, stride, itemsize)
    chunks = [bytes(chunk) for chunk in gathered.chunks(size)]
    assert b"".join(chunks) == expected(shape, stride, itemsize)
    assert gathered.nbytes == prod(shape) * itemsize
    assert gathered.crc32 is None
    assert max(map(len, chunks), default=0) <= max(size, itemsize)
    assert all(len(chunk) % itemsize == 0 for chunk in chunks)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    dimensions = draw(st.integers(0, 4))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(dimensions))
    stride = tuple(draw(st.sampled_from([0, 1, 2, 3, 6, 30, 36, 60])) for _ in range(dimensions))
    return shape, stride, draw(st.sampled_from([1, 2, 4, 8, 6, 16]))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(views(), st.sampled_from([16, 40, 100, 1000]), st.sampled_from([1, 8, 4096]))
def test_blocks_and_pieces_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
    source: FileSource,
    view: tuple[tuple[int, ...], tuple[int, ...], int],
    block: int,
    near: int,
) -> None:
    shape, stride, itemsize = view
    nbytes = extent(shape, stride) * itemsize
    if nbytes > len(DATA):
        return
    monkeypatch.setattr(gather, "_BLOCK", block)
    monkeypatch.setattr(gather, "_NEAR", near)
    for data in (ByteRange(source, 1, nbytes), Bytes(DATA[:nbytes])):
        chunks = [bytes(chunk) for chunk in Gathered(data, shape, stride, itemsize).chunks(64)]
        assert b"".join(chunks) == expected(shape, stride, itemsize)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((4000, 4000), (1, 4000)), ((3000, 5), (1, 100_000)), ((40, 3, 300), (1, 40, 120))],
    ids=["transposed", "far apart", "permuted"],
)
def test_memory_and_reads_are_bounded(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No read is longer than a block, and together they are not much more than is needed."""
    path = tmp_path / "sparse"
    nbytes = extent(shape, stride) * 4
    with path.open("wb") as file:
        file.truncate(nbytes)
    monkeypatch.setattr(gather, "_BLOCK", 1 << 18)
    reads: list[int] = []
    inner = ByteRange.read

    def counted(self: ByteRange) -> bytes:
        reads.append(self.nbytes)
        return inner(self)

    monkeypatch.setattr(ByteRange, "read", counted)
    with FileSource.open(path) as file:
        gathered = Gathered(ByteRange(file, 0, nbytes), shape, stride, 4)
        assert sum(map(len, gathered.chunks())) == gathered.nbytes
    assert max(reads) <= 1 << 18
    assert sum(reads) <= 3 * gathered.nbytes
