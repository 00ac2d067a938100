"""What is written as a distributed checkpoint is what torch saves, and torch loads it anywhere."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from save_dcp import WHOLE
from test_dcp import HELPER, save, trained
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_checks import quiet

from ckpt_surgery import (
    AddPrefix,
    LossyEditError,
    Output,
    WriteError,
    convert,
    digest,
    inspect,
    rename,
    strip,
)


def as_dcp(folder: Path, **more: Any) -> Output:
    return Output(folder, format="dcp", **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(trained(), tmp_path / "s.pth")
    return tmp_path / "s.pth"


def zeroed(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: zeroed(each) for key, each in value.items()}
    return [zeroed(each) for each in value] if isinstance(value, list) else copy.copy(value)


def assert_values(found: Any, expected: Any) -> None:
    """Equal in structure and every number, whatever the strides, ties and classes of mappings."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.contiguous().view(-1).tolist() == expected.contiguous().view(-1).tolist()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_values(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_values(one, other)
    else:
        assert found == expected


def loaded(folder: Path, like: Any) -> Any:
    state = zeroed(like)
    with quiet():
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_archives_are_torchs_own_to_the_byte(file, tmp_path):
    state = torch.load(file, weights_only=True)
    theirs = save(state, tmp_path / "theirs")
    report = convert(file, as_dcp(tmp_path / "ours"))
    assert report.format == "dcp"
    name = "__0_0.distcp"
    assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes()
    ours, saved = (
        pickle.loads((folder / ".metadata").read_bytes()) for folder in (tmp_path / "ours", theirs)
    )
    saved.storage_meta = None  # the path, and an id of that saving
    assert ours == saved
    assert sum(f.stat().st_size for f in (tmp_path / "ours").iterdir()) == report.nbytes_after


def test_views_get_bytes_of_their_own_as_in_torch(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    views = {"row": whole[1], "column": whole[:, 2], "big": whole, "double": whole.double().t()}
    torch.save(views, tmp_path / "v.pth")
    theirs = save(views, tmp_path / "theirs")
    convert(tmp_path / "v.pth", as_dcp(tmp_path / "ours"))
    assert_values(loaded(tmp_path / "ours", views), views)
    with quiet():
        dcp_to_torch_save(tmp_path / "ours", tmp_path / "back.pth")
        dcp_to_torch_save(theirs, tmp_path / "theirs.pth")
    assert_values(torch.load(tmp_path / "back.pth"), torch.load(tmp_path / "theirs.pth"))


def test_torch_loads_it_optimizer_included(file, tmp_path):
    convert(file, as_dcp(tmp_path / "ours"))
    state = trained()
    assert_values(loaded(tmp_path / "ours", state), state)


def test_there_and_back_is_the_same(file, tmp_path):
    convert(file, as_dcp(tmp_path / "ours"))
    convert(tmp_path / "ours", tmp_path / "back.pth")
    convert(tmp_path / "back.pth", as_dcp(tmp_path / "again"))
    assert_values(torch.load(tmp_path / "back.pth"), torch.load(file))
    assert_values(loaded(tmp_path / "again", trained()), trained())


@pytest.mark.slow
def test_ranks_load_their_shards_of_it(tmp_path):
    torch.save({"model": WHOLE, "epoch": 3}, tmp_path / "whole.pth")
    folder = tmp_path / "saved-in"  # the helper loads what ends so
    convert(tmp_path / "whole.pth", as_dcp(folder))
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", HELPER, str(rank), "2", tmp_path / "store", folder],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]


def test_edits_of_a_directory_give_a_directory(file, tmp_path):
    convert(file, as_dcp(tmp_path / "ours"))
    renamed = rename(tmp_path / "ours", tmp_path / "new", [AddPrefix("net")], at=["model"])
    assert renamed.format == "dcp"
    with quiet():
        dcp_to_torch_save(tmp_path / "new", tmp_path / "new.pth")
    new = torch.load(tmp_path / "new.pth")
    assert "net.0.weight" in new["model"]
    assert "net.0.weight" in new["optim"]["state"]
    strip(tmp_path / "new", tmp_path / "less", training_state=True)
    assert "optim" not in [other.path for other in inspect(tmp_path / "less").others]


def test_one_hash_in_every_container(tmp_path):
    weights = dict(WHOLE)
    torch.save(weights, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    convert(tmp_path / "w.pth", as_dcp(tmp_path / "dcp"))
    shards = Output(tmp_path / "shards", format="safetensors-index")
    convert(tmp_path / "w.pth", shards)
    names = ("w.pth", "w.safetensors", "dcp", "shards")
    report = digest([tmp_path / name for name in names])
    assert len({model.digest for model in report.models}) == 1
    assert len(report.models) == len(names)


def test_what_flat_names_lose_is_reported(tmp_path):
    weight = torch.ones(2)
    odd = {"model": {"a": weight, "b": weight}, "opt": {"state": {}, "groups": {0: "x"}}}
    torch.save(odd, tmp_path / "odd.pth")
    report = convert(tmp_path / "odd.pth", as_dcp(tmp_path / "dcp"))
    said = " ".join(report.warnings)
    for what in ("model/a = model/b", "(opt/state)", "(opt/groups)"):
        assert what in said
    with quiet():
        dcp_to_torch_save(tmp_path / "dcp", tmp_path / "back.pth")
    assert_values(
        torch.load(tmp_path / "back.pth"),
        {"model": {"a": weight, "b": weight}, "opt": {"groups": {"0": "x"}}},
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two entries would have this name"),
        ([torch.ones(1)], "made of a dictionary"),
        ({"m": {"w": torch.ones(1)}, "c": [{}, {"x": 1}]}, "empty dictionary in a list"),
        ({"m": {"w": torch.ones(1)}, "c": {(1, 2): 3}}, "neither text nor number"),
        ({"w": torch.ones(1).to_sparse()}, "not one strided view"),
        ({"m": {"w": torch.ones(1)}, "c": [[torch.ones(1).to_sparse()]]}, "sparse_coo tensor"),
    ],
)
def test_what_it_cannot_hold_is_refused(value, said, tmp_path):
    torch.save(value, tmp_path / "odd.pth")
    with pytest.raises(LossyEditError) as caught:
        convert(tmp_path / "odd.pth", as_dcp(tmp_path / "dcp"))
    assert said in str(caught.value)
    assert "odd.pth" in str(caught.value)
    assert not (tmp_path / "dcp").exists()


def test_a_file_that_is_empty_loses_nothing(tmp_path):
    for value, said in (({}, []), ({"a": {}, "b": 1}, ["an empty dictionary (a) is left out"])):
        torch.save(value, tmp_path / "in.pth")
        report = convert(tmp_path / "in.pth", as_dcp(tmp_path / f"d{len(said)}"))
        assert [w.partition(":")[0] for w in report.warnings if "empty" in w] == said


def test_lists_are_taken_apart_as_torch_does(tmp_path):
    state = {
        "a": [[1, 2], [3]],
        "b": [[1], [torch.ones(1)]],
        "c": (torch.ones(2), {"x": 1}),
        "d": [{"e": 1}],
    }
    torch.save(state, tmp_path / "l.pth")
    theirs = save(state, tmp_path / "theirs")
    convert(tmp_path / "l.pth", as_dcp(tmp_path / "ours"))
    name = "__0_0.distcp"
    assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes()


def test_it_replaces_only_its_own_kind(file, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pth")
    convert(tmp_path / "other.pth", as_dcp(tmp_path / "ours"))
    with pytest.raises(WriteError, match="already exists"):
        convert(file, as_dcp(tmp_path / "ours"))
    convert(file, as_dcp(tmp_path / "ours", force=True))
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="no part of a checkpoint"):
        convert(file, as_dcp(tmp_path / "ours", force=True))
    assert (tmp_path / "ours" / "notes.txt").exists()


def test_safetensors_are_read_by_torchs_reader_of_them(tmp_path):
    pytest.importorskip("safetensors")
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    torch.save(WHOLE, tmp_path / "w.pth")
    shards = Output(tmp_path / "shards", format="safetensors-index")
    convert(tmp_path / "w.pth", shards)
    (tmp_path / "one").mkdir()
    convert(tmp_path / "w.pth", tmp_path / "one" / "model.safetensors")
    for folder in ("shards", "one"):
        state = zeroed(WHOLE)
        with quiet():
            dcp.load(
                state, storage_reader=HuggingFaceStorageReader(str(tmp_path / folder)), no_dist=True
            )
        assert_values(state, WHOLE)


def in_itself() -> dict[str, Any]:
    made: dict[str, Any] = {"w": torch.ones(2)}
    made["self"] = made
    return made


def list_in_itself() -> dict[str, Any]:
    made: list[Any] = [torch.ones(2)]
    made.append(made)
    return {"l": made}


def doubled(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(depth):
        made = {"a": made, "b": made}
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (in_itself(), "container that is in itself"),
        (list_in_itself(), "container that is in itself"),
        (doubled(40), "in too many"),
    ],
)
def test_what_would_be_stored_without_end_is_refused(made: Any, why: str, tmp_path: Path) -> None:
    torch.save(made, tmp_path / "s.pth")
    with pytest.raises(LossyEditError, match=why):
        convert(tmp_path / "s.pth", as_dcp(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_a_list_that_is_in_itself_is_one_object(tmp_path: Path) -> None:
    numbers: list[Any] = [1]
    numbers.append(numbers)
    torch.save({"w": torch.ones(2), "n": numbers}, tmp_path / "s.pth")
    convert(tmp_path / "s.pth", as_dcp(tmp_path / "d"))
    shared = doubled(3)
    torch.save(shared, tmp_path / "s.pth")
    convert(tmp_path / "s.pth", as_dcp(tmp_path / "e"))
    dcp_to_torch_save(tmp_path / "e", tmp_path / "back.pth")
    assert_values(torch.load(tmp_path / "back.pth"), shared)
