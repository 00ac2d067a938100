"""Save what one rank of four has, without the others: save_dtensors.py RANK DIRECTORY."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore


def main() -> None:
    rank, directory = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    line, plane = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))

    def part(local: torch.Tensor, mesh, *placements):
        return DTensor.from_local(local, mesh, placements, run_check=False)

    state = {
        "rows": part(torch.ones(2, 3), line, Shard(0)),
        "columns": part(torch.ones(8, 2), plane, Replicate(), Shard(1)),
        "both": part(torch.ones(4, 2), plane, Shard(0), Shard(1)),
        "copied": part(torch.ones(5), line, Replicate()),
        "summed": part(torch.ones(5), plane, Partial(), Replicate()),
        "plain": torch.ones(2),
    }
    torch.save(state, directory / f"rank{rank}.pth")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
