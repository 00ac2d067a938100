"""Flat parameters of fairscale are taken apart as its own function does it, by their metadata.

The function is `FullyShardedDataParallel.consolidate_shard_weights`, written here once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_surgery import DamagedFileError, UsageError, consolidate

RANKS = 3
SHAPES = {"": {"head.weight": (4, 3)}, "layers.0": {"fc.weight": (5, 3), "fc.bias": (5,)}}


def saved(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    whole = {path: {n: torch.randn(s) for n, s in each.items()} for path, each in SHAPES.items()}
    flat = {path: torch.cat([v.view(-1) for v in each.values()]) for path, each in whole.items()}
    for rank in range(RANKS):
        model, metadata = {}, []
        for path, vector in flat.items():
            length = -(-len(vector) // RANKS)
            own = vector[rank * length : (rank + 1) * length]
            padding = length - len(own)
            key = f"{path}.flat_param_0" if path else "flat_param_0"
            model[key] = torch.cat([own, torch.full((padding,), 99.0)])
            info = {
                "names": list(SHAPES[path]),
                "shapes": [torch.Size(shape) for shape in SHAPES[path].values()],
                "numels": [torch.Size(shape).numel() for shape in SHAPES[path].values()],
                "padding": padding,
            }
            metadata.append(
                {
                    "fsdp_path": path,
                    "params": {"flat_param_0": info},
                    "no_broadcast_optim_state": False,
                    "shared_param_info": [("layers.0.fc.weight", "tied.weight")],
                }
            )
        model["version"] = torch.tensor([3.0])
        shards = {"param_metadata": metadata, "buffer_names": ["version"]}
        torch.save(
            {"model": model, "shard_metadata": shards, "args": None},
            folder / f"checkpoint-shard{rank}.pt",
        )
    return folder


def reference(folder: Path) -> dict[str, torch.Tensor]:
    files = [torch.load(path) for path in sorted(folder.iterdir())]
    found: dict[str, torch.Tensor] = {}
    for number, wrapper in enumerate(files[0]["shard_metadata"]["param_metadata"]):
        path = wrapper["fsdp_path"]
        for backing, info in wrapper["params"].items():
            key = ".".join([path, backing]) if path else backing
            shards = []
            for file in files:
                own = file["shard_metadata"]["param_metadata"][number]["params"][backing]
                shard = file["model"][key]
                shards.append(shard[: -own["padding"]] if own["padding"] else shard)
            parts = torch.cat(shards).split(info["numels"])
            for name, part, shape in zip(info["names"], parts, info["shapes"], strict=True):
                found[".".join([path, name]) if path else name] = part.view(shape)
    for source, name in wrapper["shared_param_info"]:
        found[name] = found[source]
    for name in files[0]["shard_metadata"]["buffer_names"]:
        found[name] = files[0]["model"][name]
    return found


def test_weights_are_those_of_fairscale(tmp_path):
    folder = saved(tmp_path / "shards")
    report = consolidate(folder, tmp_path / "whole.pth")
    found, expected = torch.load(tmp_path / "whole.pth"), reference(folder)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert report.writer == "fairscale"
    assert "args" in report.dropped


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s["model"].pop("flat_param_0"), "does not fit"),
        (lambda s: s["shard_metadata"].update(buffer_names=["nose"]), "buffer is missing"),
        (lambda s: s["shard_metadata"].update(buffer_names=None), "not of fairscale's form"),
        (
            lambda s: s["shard_metadata"]["param_metadata"][1]["params"]["flat_param_0"].update(
                padding=10**6
            ),
            "does not fit",
        ),
        (
            lambda s: s["shard_metadata"]["param_metadata"][0]["params"]["flat_param_0"].update(
                shapes=[torch.Size([2])]
            ),
            "are said to hold",
        ),
        (
            lambda s: s["shard_metadata"]["param_metadata"][0]["params"]["flat_param_0"].update(
                shapes=[torch.Size([2000])]
            ),
            "are wanted",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused(edit: Any, said: str, tmp_path):
    folder = saved(tmp_path / "shards")
    first = folder / "checkpoint-shard0.pt"
    state = torch.load(first)
    edit(state)
    torch.save(state, first)
    with pytest.raises(DamagedFileError, match=said):
        consolidate(folder, tmp_path / "whole.pth")


def test_axes_are_not_asked_for(tmp_path):
    folder = saved(tmp_path / "shards")
    with pytest.raises(UsageError, match="say how everything is joined"):
        consolidate(folder, tmp_path / "whole.pth", axes=["**=0"])
