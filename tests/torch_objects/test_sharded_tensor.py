"""A ShardedTensor is understood as torch writes it, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch_checks import quiet

from ckpt_surgery import DamagedFileError, UsageError, consolidate, inspect, merge, read
from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.pickles import Dict, Global, Object
from ckpt_surgery.pickles.nodes import List
from ckpt_surgery.torch_objects.sharded_tensor import read_sharded_tensor

WHOLE = torch.arange(12.0).view(4, 3)
PLACES = {0: [([0, 0], [1, 3]), ([3, 0], [1, 3])], 1: [([1, 0], [2, 3])], 2: []}
"""Rows of each rank: the first has two chunks, the last none."""


def sharded(rank: int) -> ShardedTensor:
    def metadata(place: Any, owner: int) -> ShardMetadata:
        return ShardMetadata(*place, placement=f"rank:{owner}/cpu")

    listed = [metadata(place, owner) for owner, places in PLACES.items() for place in places]
    whole = ShardedTensorMetadata(listed, WHOLE.size(), TensorProperties(WHOLE.dtype))
    local = [
        Shard(WHOLE[at[0] : at[0] + size[0]].clone(), metadata((at, size), rank))
        for at, size in PLACES[rank]
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for rank in PLACES:
        with quiet():
            dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
            try:
                torch.save({"w": sharded(rank), "b": torch.ones(2)}, folder / f"rank{rank}.pt")
            finally:
                dist.destroy_process_group()
    return folder


def test_chunks_of_all_ranks_make_the_whole(saved, tmp_path):
    consolidate(saved, tmp_path / "whole.pth")
    assert torch.equal(torch.load(tmp_path / "whole.pth")["w"], WHOLE)


def test_each_file_says_which_part_it_has(saved):
    shards = []
    for rank in PLACES:
        with read(saved / f"rank{rank}.pt") as checkpoint:
            shards.append(str(dict(checkpoint.tensors)["w"].shard))
    assert shards == ["shard 1 of 3", "shard 3 of 3", "shard 3 of 3"]
    assert "shard 1 of 3" in inspect(saved / "rank0.pt").notes[0]


def test_files_of_ranks_are_not_merged(saved, tmp_path):
    with pytest.raises(UsageError, match="file of one rank"):
        merge([saved / "rank0.pt", saved / "rank1.pt"], tmp_path / "o.pth", method="average")


TENSOR = Tensor((2,), BY_NAME["float32"], (1,))
LOCAL = Object("REDUCE", Global("torch", "tensor"), ())
KIND = Global("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")


def made(fields: dict[str, Any], *, slots: bool = False) -> Object:
    state: Any = Dict([part for item in fields.items() for part in item])
    return Object("NEWOBJ", Global("a", "b"), (), state=(None, state) if slots else state)


def size(*numbers: int) -> Object:
    return Object("REDUCE", Global("torch", "Size"), (numbers,))


def node(shards: Any = None, metadata: Any = None, state: Any = None, **call: Any) -> Object:
    place = made({"shard_offsets": [0], "shard_sizes": [2]}, slots=True)
    if shards is None:
        shards = [made({"tensor": LOCAL, "metadata": place}, slots=True)]
    if metadata is None:
        metadata = made({"size": size(4), "shards_metadata": [place]})
    given = (shards, metadata, None, None, False) if state is None else state
    args = (Global("a", "b"), KIND, (), given)
    return Object(
        "REDUCE", Global("torch._tensor", "_rebuild_from_type_v2"), call.get("args", args)
    )


def describe(given: Any) -> Tensor | None:
    return TENSOR if given is LOCAL else None


def test_form_of_torch_until_2_0_is_understood():
    state = node().args[3]  # type: ignore[index]
    old = Object("NEWOBJ", KIND, (), state=state)
    old.changed = 1
    found = read_sharded_tensor(old, describe)
    assert found == read_sharded_tensor(node(), describe)
    assert found is not None
    assert (found.shape, found.chunks) == ((4,), (((0,), TENSOR),))


def late(values: list[Any]) -> List:
    """Return a list that was changed after everything was made of it."""
    return List(values, changed=9)


@pytest.mark.parametrize(
    "odd",
    [
        node(state=(1, 2)),
        node(shards=Dict()),
        node(metadata=made({})),
        node(shards=[made({})]),
        node(shards=[made({"tensor": LOCAL, "metadata": made({"shard_offsets": [0]})})]),
        node(
            shards=[
                made(
                    {
                        "tensor": LOCAL,
                        "metadata": made({"shard_offsets": [0], "shard_sizes": [3]}),
                    }
                )
            ]
        ),
        node(shards=late([])),
    ],
)
def test_other_forms_are_refused(odd):
    with pytest.raises(DamagedFileError):
        read_sharded_tensor(odd, describe)


@pytest.mark.parametrize("other", [3, Object("REDUCE", KIND, ()), node(args=(1, 2, 3, 4))])
def test_what_is_none_is_none(other):
    assert read_sharded_tensor(other, describe) is None
