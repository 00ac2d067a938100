"""A directory of shards is what huggingface_hub saves, in the cases of its own tests.

(`tests/test_serialization.py` of that project: what it splits, how it names files, what it does
with tied layers.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import framework
from safetensors import safe_open
from safetensors.torch import load_file
from torch_checks import assert_same, quiet, save

from ckpt_surgery import AddPrefix, Output, convert, inspect, rename, selection, strip
from ckpt_surgery.formats.base import LayoutOptions

SHARED = torch.tensor([4])
ONCE, TWICE = torch.zeros(1, dtype=torch.uint8), torch.ones(2, dtype=torch.uint8)


def layers(*sizes: int) -> dict[str, torch.Tensor]:
    return {
        f"layer_{n}": torch.full((size,), n, dtype=torch.uint8) for n, size in enumerate(sizes, 1)
    }


CASES: dict[str, tuple[dict[str, torch.Tensor], int]] = {
    "single shard": (layers(6, 10, 30, 2, 2), 100),
    "multiple shards": (layers(6, 10, 30, 2, 2), 10),
    "tensors of one storage": (dict(zip("12345", (ONCE, TWICE, ONCE, TWICE, ONCE))), 1),  # noqa: B905
    "not sharded": ({f"layer_{n}": torch.tensor([n]) for n in (4, 10, 30, 2, 1)}, 10**9),
    "sharded": ({f"layer_{n}": torch.tensor([n]) for n in (4, 10, 30, 2, 1)}, 30),
    "shared layers": (
        {"shared_1": SHARED, "unique_1": torch.tensor([10]), "unique_2": torch.tensor([30]),
         "shared_2": SHARED}, 10**9,
    ),
    "shared layers, sharded": (
        {"shared_1": SHARED, "unique_1": torch.tensor([10]), "unique_2": torch.tensor([30]),
         "shared_2": SHARED}, 2,
    ),
    "no contiguous layer": ({"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3)}, 12),
}  # fmt: skip


def described(folder: Path) -> dict[str, Any]:
    """Return of each file what it says, in a form that does not depend on the order of texts."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                header = int.from_bytes(path.read_bytes()[:8], "little")
                data = path.read_bytes()[8 + header :]
                found[path.name] = file.metadata(), sorted(file.keys()), data
        else:
            found[path.name] = sorted(torch.load(path, weights_only=True))
    return found


@pytest.mark.parametrize("kind", ["safetensors-index", "torch-index"])
@pytest.mark.parametrize("name", CASES)
def test_case_of_the_hubs_tests(name, kind, tmp_path, caplog):
    hub = framework("huggingface_hub")
    state, most = CASES[name]
    safe = kind == "safetensors-index"
    (tmp_path / "theirs").mkdir()
    with quiet():
        hub.save_torch_state_dict(
            dict(state), tmp_path / "theirs", max_shard_size=most, safe_serialization=safe
        )
    options = LayoutOptions(max_shard_size=most, metadata={"format": "pt"} if safe else {})
    source = save(state, tmp_path / "source.pth")
    convert(source, Output(tmp_path / "ours", format=kind, options=options))
    ours, theirs = described(tmp_path / "ours"), described(tmp_path / "theirs")
    assert list(ours) == list(theirs)
    for file, said in theirs.items():
        if file.endswith(".safetensors"):  # a shard of ours also says itself what is tied
            assert said[0].items() <= ours[file][0].items()
            assert ours[file][1:] == said[1:]
        else:
            assert ours[file] == said, file
    found = {
        tensor: value
        for path in (tmp_path / "ours").glob("*.*n*s" if safe else "*.bin")
        if path.suffix != ".json"
        for tensor, value in (load_file(path) if safe else torch.load(path)).items()
    }
    assert_same(
        dict(sorted(found.items())),
        {n: state[n].contiguous() if safe else state[n] for n in sorted(found)},
    )
    assert set(inspect(tmp_path / "ours").state_dicts[0].names) == set(state)


def test_ties_that_only_the_index_says_are_read_and_follow_edits(tmp_path):
    """huggingface_hub writes them into the metadata of the index, and not into a shard."""
    hub = framework("huggingface_hub")
    state, most = CASES["shared layers, sharded"]
    (tmp_path / "theirs").mkdir()
    hub.save_torch_state_dict(dict(state), tmp_path / "theirs", max_shard_size=most)
    assert inspect(tmp_path / "theirs").ties == (("shared_1", "shared_2"),)
    convert(tmp_path / "theirs", tmp_path / "whole.pth")
    whole = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert whole["shared_1"].data_ptr() == whole["shared_2"].data_ptr()
    assert_same(dict(sorted(whole.items())), dict(sorted(state.items())))
    convert(tmp_path / "theirs", tmp_path / "same")
    same = {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()}
    assert same == {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    strip(tmp_path / "theirs", tmp_path / "less", selection(name="unique_2"))
    assert index(tmp_path / "less")["metadata"] == {"shared_2": "shared_1", "total_size": 16}
    strip(tmp_path / "theirs", tmp_path / "apart", selection(name="shared_1"))
    assert "shared_2" in index(tmp_path / "apart")["weight_map"]
    rename(tmp_path / "theirs", tmp_path / "new", [AddPrefix("m")])
    assert index(tmp_path / "new")["metadata"]["m.shared_2"] == "m.shared_1"
    assert "shared_2" not in index(tmp_path / "new")["metadata"]
    twice = LayoutOptions(duplicate_ties=True)
    convert(tmp_path / "theirs", Output(tmp_path / "twice", options=twice))
    assert set(index(tmp_path / "twice")["weight_map"]) == set(state)
    assert index(tmp_path / "twice")["metadata"] == {"total_size": 32}
    assert inspect(tmp_path / "twice").ties == ()


def index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return found


def test_hub_loads_what_is_written(tmp_path):
    hub = framework("huggingface_hub")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    source = save(model.state_dict(), tmp_path / "source.pth")
    for kind, safe in (("safetensors-index", True), ("torch-index", False)):
        options = LayoutOptions(max_shard_size=30)
        convert(source, Output(tmp_path / kind, format=kind, options=options))
        fresh = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        result = hub.load_torch_model(fresh, tmp_path / kind, safe=safe, strict=True)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert_same(dict(fresh.state_dict()), dict(model.state_dict()))
