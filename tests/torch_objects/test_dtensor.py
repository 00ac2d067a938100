"""What one rank's file has of a tensor is said, and never taken for the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_checks import quiet

import ckpt_surgery as ckpt
from ckpt_surgery.checkpoint.description import Shard
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import Dict, Global, Object
from ckpt_surgery.torch_objects.dtensor import read_spec

_WRITER = Path(__file__).resolve().parents[1] / "support" / "save_dtensors.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The files of the last and of the first of four ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for rank in (0, 3):
        subprocess.run([sys.executable, _WRITER, str(rank), folder], check=True, timeout=200)
    return folder


def shards(path):
    with ckpt.read(path) as checkpoint:
        return {name: tensor.shard for name, tensor in checkpoint.tensors}


def test_each_tensor_says_which_part_of_the_whole_it_is(ranks):
    assert shards(ranks / "rank3.pth") == {
        "rows": Shard(4, 4, (0,), (2, 3)),
        "columns": Shard(2, 2, (1,), (8, 2)),
        "both": Shard(4, 4, (0, 1), (4, 2)),
        "copied": Shard(1, 1, (), (5,)),
        "summed": Shard(2, 2, (), (5,), is_partial=True),
        "plain": None,
    }
    first = shards(ranks / "rank0.pth")
    assert [first[name].number for name in ("rows", "columns", "both", "summed")] == [1] * 4


def test_inspect_shows_it(ranks):
    found = ckpt.inspect(ranks / "rank3.pth").to_dict()
    rows = found["state_dicts"][0]["tensors"][0]
    assert (rows["shape"], rows["layout"]) == ([8, 3], "dtensor")
    assert rows["shard"] == {
        "number": 4, "count": 4, "axes": [0], "shape": [2, 3], "partial": False,
    }  # fmt: skip
    assert found["warnings"] == [
        "2 tensors are each shard 4 of 4: the files of the other ranks have the rest",
        "1 tensor is shard 2 of 2: the files of the other ranks have the rest",
        "1 tensor is partial sum 2 of 2: the files of the other ranks have the rest",
    ]


def test_what_torch_says_of_the_parts_is_the_same(ranks):
    with quiet():
        loaded = torch.load(ranks / "rank3.pth", weights_only=False)
    for name, shard in shards(ranks / "rank3.pth").items():
        if shard is not None:
            assert tuple(loaded[name].to_local().shape) == shard.shape
            axes = [p.dim for p in loaded[name].placements if p.is_shard()]
            assert tuple(axes) == shard.axes


@pytest.mark.parametrize("method", ["overlay", "fill", "average"])
def test_rank_files_are_not_merged(ranks, method, tmp_path):
    files = [ranks / "rank0.pth", ranks / "rank3.pth"]
    with pytest.raises(ckpt.UsageError, match="'rows' is shard 1 of 4 of a tensor"):
        ckpt.merge(files, tmp_path / "o.pth", method)
    assert not list(tmp_path.iterdir())


def test_a_rank_file_is_no_match_and_no_copy(ranks, tmp_path):
    like = {"rows": torch.zeros(8, 3), "plain": torch.zeros(2)}
    torch.save(like, tmp_path / "like.pth")
    found = ckpt.match(ranks / "rank3.pth", like=tmp_path / "like.pth").to_dict()
    assert found["uncopyable_keys"] == [["rows", "dtensor", "strided"]]
    report = ckpt.fit(ranks / "rank3.pth", tmp_path / "o.pth", like=tmp_path / "like.pth")
    assert report.to_dict()["initial"] == ["rows"]


def test_edits_carry_shards_over(ranks, tmp_path):
    ckpt.strip(ranks / "rank3.pth", tmp_path / "o.pth", ckpt.selection(prefix="plain"))
    with quiet():
        loaded = torch.load(tmp_path / "o.pth", weights_only=False)
        before = torch.load(ranks / "rank3.pth", weights_only=False)
    assert list(loaded) == [name for name in before if name != "plain"]
    assert all(torch.equal(loaded[n].to_local(), before[n].to_local()) for n in loaded)


LOCAL, MESH = "local", "mesh"


class _Described:
    shape = (4,)


def _spec(changed=0, **mesh):
    placement = Object("NEWOBJ", Global("torch", "Shard"), (), state=Dict(["dim", 0]))
    fields = {"_coordinate_on_dim": [1]} | mesh
    built = Object("NEWOBJ", Global("torch", "DeviceMesh"), (), state=_dict(fields))
    spec = {"mesh": built, "placements": (placement,)}
    made = Object("NEWOBJ", Global("torch", "DTensorSpec"), (), state=_dict(spec))
    made.changed = changed
    return (None, _dict({"_local_tensor": LOCAL, "_spec": made}))


def _dict(fields):
    return Dict([each for pair in fields.items() for each in pair])


def _describe(node):
    return _Described() if node in (LOCAL, MESH) else None


def _layout(**fields):
    return Object("NEWOBJ", Global("torch", "_MeshLayout"), (), state=_dict(fields))


@pytest.mark.parametrize(
    ("mesh", "count"),
    [
        ({"mesh": MESH}, 4),  # until torch 2.8
        ({"_layout": _layout(shape=(4,), stride=(1,))}, 4),
        ({"_layout": _layout(shape=2, stride=1)}, 2),
        ({"_layout": _layout(axes=(_layout(shape=(2, 3), stride=(3, 1)),))}, 6),
        ({"_layout": _layout(axes=(_layout(shape="four"),))}, None),
        ({"_layout": _layout(axes=4.0)}, None),
        ({"_layout": _layout(shape=(1,))}, None),  # the rank is not on it
        ({"mesh": MESH, "_coordinate_on_dim": None}, None),
        ({"mesh": MESH, "_coordinate_on_dim": [0, 1]}, None),
        ({}, None),
    ],
)
def test_a_mesh_says_its_shape_in_several_ways(mesh, count):
    found = read_spec(_spec(**mesh), 100, _describe)
    assert (None if found is None else found.shard.count) == count


def test_what_is_changed_after_the_call_is_damage():
    with pytest.raises(DamagedFileError, match="changed after it was made"):
        read_spec(_spec(changed=101, mesh=MESH), 100, _describe)
    assert read_spec("no state", 100, _describe) is None
