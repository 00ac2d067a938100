"""The description of a checkpoint: counts, extents, paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_checks import save

from ckpt_surgery import read
from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    Other,
    StateDict,
    Storage,
    Tensor,
    join_path,
)
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import Bytes, MemorySource

F32 = BY_NAME["float32"]
STORAGE = Storage("0", F32, "cpu", Bytes(bytes(64)))

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(shapes, st.data())
def test_counts_are_torchs(shape: tuple[int, ...], data: st.DataObject) -> None:
    stride = tuple(data.draw(st.integers(0, 9)) for _ in shape)
    tensor = Tensor(shape, F32, stride, 0, STORAGE)
    theirs = torch.empty(1000).as_strided(shape, stride)
    assert tensor.numel == theirs.numel()
    assert tensor.nbytes == theirs.nbytes
    places = torch.arange(1000).as_strided(shape, stride)
    assert tensor.extent == (int(places.max()) + 1 if places.numel() else 0)
    if theirs.numel():
        assert tensor.is_contiguous == theirs.is_contiguous()


def test_contiguous_means_row_major() -> None:
    assert Tensor((2, 3), F32, (3, 1)).is_contiguous
    assert Tensor((2, 1, 3), F32, (3, 77, 1)).is_contiguous
    assert Tensor((), F32, ()).is_contiguous
    assert not Tensor((2, 3), F32, (1, 2)).is_contiguous


def test_bytes_of_a_tensor_in_parts_are_those_of_the_parts() -> None:
    part = Tensor((3,), F32, (1,), 0, STORAGE)
    inner = Tensor((9,), F32, (), layout="sparse_coo", parts=(part, part))
    outer = Tensor((9,), F32, (), layout="subclass", parts=(inner, part))
    assert outer.nbytes == 36
    assert list(outer.strided_parts()) == [part, part, part]
    assert list(part.strided_parts()) == [part]
    assert Tensor((9,), F32, (1,), device="meta").nbytes == 0


def test_storage_counts_elements_or_bytes() -> None:
    assert (STORAGE.nbytes, STORAGE.numel) == (64, 16)
    untyped = Storage("0", BY_NAME["uint8"], "cpu", Bytes(bytes(64)), untyped=True)
    assert untyped.numel == 64


def test_storages_are_equal_only_to_themselves() -> None:
    assert Storage("0", F32, "cpu", STORAGE.data) != STORAGE
    assert len({STORAGE, Storage("0", F32, "cpu", STORAGE.data)}) == 2


@pytest.mark.parametrize(
    ("path", "key", "joined"), [("", "a", "a"), ("a", "b", "a/b"), ("a/b", "c.d", "a/b/c.d")]
)
def test_paths_are_joined_by_a_slash(path: str, key: str, joined: str) -> None:
    assert join_path(path, key) == joined


def test_tensors_of_all_places_come_in_order() -> None:
    tensors = [Tensor((n,), F32, (1,), 0, STORAGE) for n in range(4)]
    first = StateDict("", "model", (Entry("a", tensors[0]), Entry("extra", None)))
    second = StateDict("ema", "ema", (Entry("a", tensors[1]),))
    other = Other("optimizer", "dict", tensors=(tensors[2], tensors[3]))
    checkpoint = Checkpoint("x", None, None, (first, second), (other,))  # type: ignore[arg-type]
    assert list(checkpoint.tensors) == [("a", tensors[0]), ("ema/a", tensors[1])]
    assert list(checkpoint.all_tensors) == tensors
    assert first.names == ["a", "extra"]
    assert list(first.tensors) == [("a", tensors[0])]


def test_closed_checkpoint_stays_a_description(tmp_path: Path) -> None:
    with read(save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "w.pth")) as checkpoint:
        (_, tensor), _ = checkpoint.tensors
    assert tensor.shape == (2,)
    assert tensor.storage is not None
    with pytest.raises(ReadError, match="closed"):
        list(tensor.storage.data.chunks())


def test_checkpoint_of_several_sources_counts_and_closes_them_all() -> None:
    sources = tuple(MemorySource(bytes(n), name=f"shard {n}") for n in (3, 5))
    with Checkpoint("x", sources, None, ()) as checkpoint:
        assert checkpoint.file is sources[0]
        assert checkpoint.size == 8
    for source in sources:
        with pytest.raises(ReadError, match="the file is closed"):
            source.read_at(0, 1)


def test_tensors_are_identical_if_they_are_the_same_elements() -> None:
    storage = Storage("0", BY_NAME["float32"], "cpu", Bytes(bytes(64)))
    one = Tensor((1, 4), BY_NAME["float32"], (4, 1), storage=storage)
    assert one.identity == replace(one, node=object()).identity
    assert one.identity == replace(one, stride=(9, 1)).identity  # of one element, no step is made
    others = [
        replace(one, offset=1),
        replace(one, stride=(4, 2)),
        replace(one, shape=(4, 1), stride=(1, 1)),
        replace(one, dtype=BY_NAME["int32"]),
        replace(one, storage=replace(storage)),
        replace(one, shape=(0,), stride=(1,)),
        replace(one, shape=(0,), stride=(1,)),
        replace(one, storage=None),
        replace(one, storage=None),
    ]
    assert len({tensor.identity for tensor in [one, *others]}) == 1 + len(others)
