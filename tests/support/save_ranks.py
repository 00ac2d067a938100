"""Train a wrapped model as one of several processes: save_ranks.py RANK WORLD STORE DIRECTORY.

Each rank saves its own files, and rank 0 what torch's own way to whole tensors gives.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), nn.Linear(5, 2)
    )


def step(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    torch.manual_seed(1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return optimizer


def fsdp2(rank: int, world: int, directory: Path) -> None:
    model = network()
    for layer in (model[0], model[1][0], model[2]):
        fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = step(model)
    own = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
    }
    torch.save(own, directory / "fsdp2" / f"model_world_size_{world}_rank_{rank}.pt")
    options = StateDictOptions(full_state_dict=True)
    whole = {
        "model": get_model_state_dict(model, options=options),
        "optim": get_optimizer_state_dict(model, optimizer, options=options),
    }
    if rank == 0:
        torch.save(whole, directory / "fsdp2.pt")


def fsdp1(rank: int, directory: Path) -> None:
    model = FullyShardedDataParallel(
        network(),
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        device_id=torch.device("cpu"),
    )
    optimizer = step(model)
    for kind, folder in (
        (StateDictType.FULL_STATE_DICT, None),
        (StateDictType.SHARDED_STATE_DICT, "fsdp1"),
    ):
        with FullyShardedDataParallel.state_dict_type(model, kind):
            state = {
                "model": model.state_dict(),
                "optim": FullyShardedDataParallel.optim_state_dict(model, optimizer),
            }
        if folder is not None:
            torch.save(state, directory / folder / f"rank{rank}.pt")
        elif rank == 0:
            torch.save(state, directory / "fsdp1.pt")
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.LOCAL_STATE_DICT):
        torch.save(model.state_dict(), directory / "flat" / f"rank{rank}.pt")


def main() -> None:
    rank, world, store, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    fsdp2(rank, world, Path(directory))
    fsdp1(rank, Path(directory))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
