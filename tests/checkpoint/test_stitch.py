"""Chunks that tile a tensor give its bytes; any others are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery import DamagedFileError
from ckpt_surgery.checkpoint.stitch import Chunk, stitch
from ckpt_surgery.fileio import ByteRange, Bytes, MemorySource


def chunk(tensor: torch.Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...], kind: str):
    part = tensor
    for dimension, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        part = part.narrow(dimension, offset, size)
    data = part.contiguous().numpy().tobytes()
    if kind == "memory":
        return Chunk(offsets, sizes, Bytes(data))
    return Chunk(offsets, sizes, ByteRange(MemorySource(data, name="x"), 0, len(data)))


@st.composite
def tilings(draw: st.DrawFn):
    """A tensor and a grid of chunks: every dimension cut anywhere, nested as DTensor cuts."""
    shape = draw(st.lists(st.integers(0, 5), min_size=0, max_size=4))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
    boxes = [((), ())]
    for size in shape:
        new = []
        for offsets, sizes in boxes:
            cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))})
            pairs = list(itertools.pairwise(cuts)) or [(0, 0)]
            new += [((*offsets, a), (*sizes, b - a)) for a, b in pairs]
        boxes = new
    kind = draw(st.sampled_from(["memory", "file"]))
    return tensor, draw(st.permutations([chunk(tensor, *box, kind) for box in boxes]))


@settings(deadline=None)
@given(tilings(), st.integers(1, 64))
def test_stitched_chunks_are_the_tensor(tiling, size):
    tensor, chunks = tiling
    source = stitch(tuple(tensor.shape), 4, chunks)
    assert source.nbytes == tensor.nbytes
    pieces = [bytes(piece) for piece in source.chunks(size)]
    assert all(len(piece) <= size for piece in pieces)
    assert b"".join(pieces) == tensor.numpy().tobytes()


WHOLE = torch.arange(12, dtype=torch.int32).reshape(3, 4)


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([((0, 0), (2, 4))], "reach to 2 of 3 in dimension 0"),
        ([((0, 0), (1, 4)), ((2, 0), (1, 4))], "leave a gap in dimension 0"),
        ([((0, 0), (2, 4)), ((1, 0), (2, 4))], "overlap in dimension 0"),
        ([((0, 0), (3, 2)), ((0, 1), (3, 3))], "overlap in dimension 1"),
        ([((0, 0), (3, 2)), ((0, 3), (3, 1))], "leave a gap in dimension 1"),
        ([((0, 0), (3, 4)), ((0, 0), (3, 4))], "overlap"),
        ([((0, 0), (3, 3))], "leave a gap"),
        ([((0, 1), (3, 3))], "leave a gap"),
        ([], "reach to 0 of 3"),
    ],
)
def test_chunks_that_do_not_tile_are_refused(boxes, said):
    with pytest.raises(DamagedFileError, match=said):
        stitch((3, 4), 4, [chunk(WHOLE, *box, "memory") for box in boxes])


def test_chunks_of_another_form_are_refused():
    with pytest.raises(DamagedFileError, match="other dimensions"):
        stitch((3, 4), 4, [Chunk((0,), (3,), Bytes(b"\0" * 12))])
    with pytest.raises(DamagedFileError, match="has 12 bytes of data"):
        stitch((3, 4), 4, [Chunk((0, 0), (3, 4), Bytes(b"\0" * 12))])
    with pytest.raises(DamagedFileError, match="65 dimensions"):
        stitch((1,) * 65, 4, [])
