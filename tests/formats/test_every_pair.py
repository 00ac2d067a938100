"""From every format to every other: the same bits and names, and order where it can be held."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_checks import bits, quiet

from ckpt_surgery import Output, convert, digest
from ckpt_surgery.formats.base import LayoutOptions

KINDS = {
    "torch-zip": "a.pth",
    "safetensors": "a.safetensors",
    "safetensors-index": "shards",
    "torch-index": "bins",
    "dcp": "dcp",
}
TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
SORTED = {"safetensors", "safetensors-index"}
"""Formats that have tensors in an order of their own."""


def state() -> OrderedDict[str, torch.Tensor]:
    """Return every type, odd shapes, odd names, views and a tie; DCP alone forgets the last."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (16 * 24,), dtype=torch.uint8, generator=generator)
    raw[: 16 * 8] = 1  # a boolean is 0 or 1
    found = OrderedDict(
        (
            f"types.{dtype}".replace("torch.", ""),
            (raw[:24] if dtype is torch.bool else raw).view(dtype)[:3].clone(),
        )
        for dtype in TYPES
    )
    base = torch.arange(4000.0)
    found |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "": torch.ones(1),
        "a..b": torch.ones(2),
        "größe.层": torch.ones(3),
        "transposed": base[:12].view(3, 4).t(),
        "stepped": base.as_strided((3,), (1500,), 7),
        "expanded": torch.tensor([7.0]).expand(2, 3),
        "ones": torch.ones(1, 1, 1, 5),
    }
    return found


def write(source: Path, kind: str, folder: Path) -> Path:
    folder.mkdir()
    most = LayoutOptions(max_shard_size=2000) if kind.endswith("index") else LayoutOptions()
    out = folder / KINDS[kind]
    convert(source, Output(out, format=kind, options=most))
    return out


def read_by_its_library(path: Path, kind: str, scratch: Path) -> dict[str, torch.Tensor]:
    if kind == "torch-zip":
        return torch.load(path, weights_only=True)
    if kind == "safetensors":
        return load_file(path)
    if kind == "dcp":
        with quiet():
            dcp_to_torch_save(path, scratch)
        return torch.load(scratch)
    load: Any = load_file if kind == "safetensors-index" else torch.load
    shards = sorted(p for p in path.iterdir() if p.suffix in {".bin", ".safetensors"})
    return {name: value for shard in shards for name, value in load(shard).items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("every")
    torch.save(state(), folder / "source.pth")
    return {kind: write(folder / "source.pth", kind, folder / kind) for kind in KINDS}


@pytest.mark.parametrize(("first", "second"), list(product(KINDS, KINDS)))
def test_tensors_stay_the_same(first, second, sources, tmp_path):
    out = write(sources[first], second, tmp_path / "out")
    found, expected = read_by_its_library(out, second, tmp_path / "x.pth"), state()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert bits(found[name]) == bits(value), name
    if not {first, second} & SORTED and "index" not in first + second:
        assert list(found) == list(expected)
    digests = {model.digest for model in digest([sources[first], out]).models}
    assert len(digests) == 1


def test_ties_and_versions_of_modules_come_back_where_they_can(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    weights = model.state_dict()
    weights["tied"] = weights["0.weight"]
    torch.save(weights, tmp_path / "source.pth")
    for kind in KINDS:
        out = write(tmp_path / "source.pth", kind, tmp_path / kind)
        convert(out, tmp_path / kind / "back.pth")
        back = torch.load(tmp_path / kind / "back.pth", weights_only=True)
        tied = back["tied"].data_ptr() == back["0.weight"].data_ptr()
        assert tied == (kind != "dcp")
        versions = getattr(back, "_metadata", None)
        assert (versions == weights._metadata) == kind.startswith("torch")
