"""Save a sharded state dict as one of several processes: save_dcp.py RANK WORLD STORE DIRECTORY."""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

WHOLE = {
    "rows": torch.arange(35.0).view(7, 5),
    "columns": torch.arange(35.0).view(7, 5) + 100,
    "both": torch.arange(20, dtype=torch.int64).view(4, 5),
    "copied": torch.full((3,), 0.5, dtype=torch.bfloat16),
}


def main() -> None:
    rank, world, store, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    line = init_device_mesh("cpu", (world,))
    plane = init_device_mesh("cpu", (world // 2, 2))
    state = {
        "model": {
            "rows": distribute_tensor(WHOLE["rows"], line, [Shard(0)]),
            "columns": distribute_tensor(WHOLE["columns"], line, [Shard(1)]),
            "both": distribute_tensor(WHOLE["both"], plane, [Shard(0), Shard(1)]),
            "copied": distribute_tensor(WHOLE["copied"], line, [Replicate()]),
        },
        "epoch": 3,
    }
    if directory.endswith("-in"):  # load what lies there into shards, and compare
        for value in state["model"].values():
            value.to_local().zero_()
        dcp.load(state, checkpoint_id=directory)
        for name, value in state["model"].items():
            assert torch.equal(value.full_tensor(), WHOLE[name]), name
        assert state["epoch"] == 3
    else:
        dcp.save(state, checkpoint_id=directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
