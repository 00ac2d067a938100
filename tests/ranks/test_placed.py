"""DTensors and ShardedTensors of all ranks make the whole that torch makes of them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch_checks import quiet

from ckpt_surgery import (
    DamagedFileError,
    LossyEditError,
    Output,
    ReadError,
    UsageError,
    consolidate,
    inspect,
    merge,
    strip,
)

HELPER = Path(__file__).resolve().parents[1] / "support" / "save_ranks.py"
WORLD = 4
PLACED: dict[str, tuple[tuple[int, ...], str, list[Any]]] = {
    "rows": ((7, 3), "line", [Shard(0)]),
    "columns": ((3, 9), "line", [Shard(1)]),
    "both": ((5, 7), "plane", [Shard(0), Shard(1)]),
    "twice": ((9, 2), "plane", [Shard(0), Shard(0)]),
    "fsdp-over-tp": ((10, 3), "plane", [_StridedShard(0, split_factor=2), Shard(0)]),
    "hsdp": ((5, 2), "plane", [Replicate(), Shard(0)]),
    "fewer-than-ranks": ((2, 2), "line", [Shard(0)]),
    "copied": ((3,), "line", [Replicate()]),
}
WHOLE = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for n, (name, (shape, _, _)) in enumerate(PLACED.items())
}


def local(name: str, mesh: Any) -> torch.Tensor:
    """Return a rank's part, cut where torch's own rule says."""
    _, _, placements = PLACED[name]
    part = WHOLE[name]
    shape, offset = compute_local_shape_and_global_offset(part.shape, mesh, placements)
    for axis, (size, start) in enumerate(zip(shape, offset, strict=True)):
        part = part.narrow(axis, min(start, part.shape[axis]), size)
    return part.clone()


def as_rank(rank: int, make: Any) -> Any:
    """Return what `make` gives of the meshes that a rank sees."""
    with quiet():
        dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
        try:
            meshes = {
                "line": init_device_mesh("cpu", (WORLD,)),
                "plane": init_device_mesh("cpu", (2, 2)),
            }
            return make(meshes)
        finally:
            dist.destroy_process_group()


def dtensor(tensor: torch.Tensor, mesh: Any, placements: list[Any], whole: torch.Tensor) -> DTensor:
    return DTensor.from_local(
        tensor, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for rank in range(WORLD):

        def save(meshes: Any, rank: int = rank) -> None:
            state = {
                name: dtensor(local(name, meshes[mesh]), meshes[mesh], placements, WHOLE[name])
                for name, (_, mesh, placements) in PLACED.items()
            }
            state["tied"] = state["rows"]
            state["plain"] = torch.arange(3)
            torch.save({"model": state, "epoch": 3, "rank": rank}, folder / f"model_rank_{rank}.pt")

        as_rank(rank, save)
    return folder


def test_parts_make_the_whole_that_torch_cut(saved, tmp_path):
    report = consolidate(saved, tmp_path / "whole.pth")
    loaded = torch.load(tmp_path / "whole.pth", weights_only=True)
    for name, whole in WHOLE.items():
        assert torch.equal(loaded["model"][name], whole), name
    assert list(loaded["model"]) == [*WHOLE, "tied", "plain"]
    assert loaded["model"]["tied"].data_ptr() == loaded["model"]["rows"].data_ptr()
    assert loaded["epoch"] == 3
    assert {each.name: each.how for each in report.joined}["model/plain"] == "copies"
    assert report.warnings == ("the ranks differ, and the first one's value is kept: rank",)
    assert report.writer == "ranks"
    assert report.nbytes_after == (tmp_path / "whole.pth").stat().st_size


def test_files_can_be_named_in_any_order_and_format(saved, tmp_path):
    files = sorted(saved.iterdir(), reverse=True)
    output = Output(tmp_path / "whole.safetensors", allow_loss=True)
    report = consolidate(files, output)
    assert [Path(each).name for each in report.inputs] == [f"model_rank_{n}.pt" for n in range(4)]
    assert report.format == "safetensors"
    assert report.dropped == ("epoch", "rank")
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "whole.safetensors")
    assert torch.equal(loaded["both"], WHOLE["both"])


def test_the_weights_can_be_written_alone(saved, tmp_path):
    out, again = tmp_path / "w.safetensors", tmp_path / "again.safetensors"
    report = consolidate(saved, out, state_dict_only=True)
    from safetensors.torch import load_file

    loaded = load_file(out)
    assert all(torch.equal(loaded[name], whole) for name, whole in WHOLE.items())
    assert report.dropped == ("epoch", "rank")
    assert report.to_dict()["plan"][1:2] == [{"edit": "only-state-dict", "path": "model"}]
    assert {each.name for each in report.joined} == {
        f"model/{n}" for n in (*WHOLE, "tied", "plain")
    }
    consolidate(saved, again, state_dict_only=True, at=["model"])
    assert again.read_bytes() == out.read_bytes()
    for choices, said in (
        ({"at": ["model"]}, "'at' is for 'state_dict_only'"),
        ({"at": ["ema"], "state_dict_only": True}, "'at ema': no state dict there"),
    ):
        with pytest.raises(UsageError, match=said):
            consolidate(saved, tmp_path / "no.pth", **choices)


def test_what_is_joined_beside_the_weights_is_not_said_of_them_alone(tmp_path):
    for rank in range(2):
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
        state = {"model": {"w": torch.ones(2)}, "optimizer": optimizer}
        torch.save(state, tmp_path / f"rank{rank}.pt")
    axes = ["**=0"]
    assert len(consolidate(tmp_path, Output(dry_run=True), axes=axes).joined) == 2
    report = consolidate(tmp_path, Output(dry_run=True), axes=axes, state_dict_only=True)
    assert [each.name for each in report.joined] == ["model/w"]


def test_what_the_output_asks_for_is_done(tmp_path):
    for rank in range(2):
        args = argparse.Namespace(rank=0)
        torch.save({"w": torch.ones(2), "args": args}, tmp_path / f"rank{rank}.pt")
    output = Output(tmp_path / "o.pth", plain=True, device="cpu")
    consolidate(tmp_path, output, axes=["w=0"])
    assert torch.load(tmp_path / "o.pth", weights_only=True)["args"] == {"rank": 0}
    with pytest.raises(UsageError, match="not replaced in place"):
        consolidate(tmp_path, Output(in_place=True), axes=["w=0"])


def test_missing_rank_is_noticed(saved, tmp_path):
    files = sorted(saved.iterdir())
    with pytest.raises(DamagedFileError, match="a rank's file is missing"):
        consolidate(files[:3], tmp_path / "whole.pth")
    for file in (*files[:1], *files[2:]):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ReadError, match="missing: 1"):
        consolidate(tmp_path, tmp_path / "whole.pth")
    assert not (tmp_path / "whole.pth").exists()


def test_one_file_is_told_from_a_whole_model(saved, tmp_path):
    files = sorted(saved.iterdir())[:2]
    with pytest.raises(UsageError) as caught:
        merge(files, tmp_path / "merged.pth")
    assert "ckpt consolidate" in str(caught.value.hint)


def rank_files(tmp_path: Path, make: Any, count: int = WORLD) -> list[Path]:
    files = [tmp_path / f"rank{rank}.pt" for rank in range(count)]
    for rank, file in enumerate(files):
        torch.save(as_rank(rank, lambda meshes, rank=rank: make(meshes, rank)), file)
    return files


def test_what_no_placement_explains_is_refused(tmp_path):
    whole = torch.ones(8, 2)
    sums = rank_files(
        tmp_path, lambda m, _: {"w": dtensor(whole.clone(), m["line"], [Partial()], whole)}
    )
    with pytest.raises(LossyEditError, match="partial sum"):
        consolidate(sums, tmp_path / "whole.pth")
    wrong = rank_files(
        tmp_path, lambda m, _: {"w": dtensor(torch.ones(3, 2), m["line"], [Shard(0)], whole)}
    )
    with pytest.raises(DamagedFileError, match="placement says"):
        consolidate(wrong, tmp_path / "whole.pth")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    def make(shape: tuple[int, ...], name: str = "w", dtype: torch.dtype = torch.float32) -> Any:
        whole = torch.ones(shape, dtype=dtype)
        part = whole.chunk(WORLD)
        return lambda m, rank: {name: dtensor(part[rank].clone(), m["line"], [Shard(0)], whole)}

    files = rank_files(tmp_path, make((8, 2)))
    for other, said in (
        (make((8, 3)), "of a whole of"),
        (make((8, 2), "v"), "and not in"),
        (make((8, 2), "w", torch.float64), "in several types"),
        (lambda _, __: {"w": torch.ones(8, 2)}, "of another kind"),
    ):
        torch.save(as_rank(1, lambda meshes, other=other: other(meshes, 1)), files[1])
        with pytest.raises(DamagedFileError, match=said):
            consolidate(files, tmp_path / "whole.pth")


def test_a_plain_tensor_that_differs_is_asked_for(tmp_path):
    whole = torch.ones(8, 2)

    def make(meshes: Any, rank: int) -> Any:
        placed = dtensor(torch.ones(2, 2), meshes["line"], [Shard(0)], whole)
        return {"w": placed, "mean": torch.full((2,), float(rank))}

    files = rank_files(tmp_path, make)
    with pytest.raises(UsageError, match="'mean' differs") as caught:
        consolidate(files, tmp_path / "whole.pth")
    assert "mean=first" in str(caught.value.hint)
    report = consolidate(files, tmp_path / "whole.pth", axes=["mean=first"])
    assert torch.load(tmp_path / "whole.pth")["mean"].tolist() == [0, 0]
    assert {each.name: each.how for each in report.joined} == {"w": "placement", "mean": "first"}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


@pytest.mark.slow
def test_ranks_of_fsdp_make_what_fsdp_itself_gathers(tmp_path):
    """FSDP2 and FSDP1 on two processes, optimizer included, against torch's own full state."""
    for folder in ("fsdp2", "fsdp1", "flat"):
        (tmp_path / folder).mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", HELPER, str(rank), "2", tmp_path / "store", tmp_path],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    for folder in ("fsdp2", "fsdp1"):
        consolidate(tmp_path / folder, tmp_path / "whole.pth")
        whole = torch.load(tmp_path / f"{folder}.pt", weights_only=False)
        same(torch.load(tmp_path / "whole.pth", weights_only=True), whole)
        (tmp_path / "whole.pth").unlink()
    with pytest.raises(UsageError, match="flat parameter"):
        consolidate(tmp_path / "flat", tmp_path / "whole.pth")
    parts = sorted((tmp_path / "fsdp1").iterdir())
    assert "shard 2 of 2" in inspect(parts[1]).notes[0]
    with pytest.raises(UsageError, match="file of one rank"):
        merge(parts, tmp_path / "merged.pth", method="average")
    strip(parts[0], tmp_path / "stripped.pt", training_state=True)  # a rank's file is still edited
