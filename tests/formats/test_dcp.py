"""Directories of torch.distributed.checkpoint are read as torch reads them, and never run."""

from __future__ import annotations

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
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch_checks import assert_same, quiet

from ckpt_surgery import DamagedFileError, ReadError, UnknownFormatError, convert, inspect
from ckpt_surgery.pickles import Object, parse, walk
from ckpt_surgery.pickles.emit import emit

HELPER = Path(__file__).resolve().parents[1] / "support" / "save_dcp.py"


def save(state: dict[str, Any], folder: Path) -> Path:
    with quiet():
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def trained() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    return {
        "model": weights,
        "optim": states,
        "epoch": 3,
        "list": [torch.ones(2), {"a": torch.zeros(1)}],
        "types": {
            str(dtype): torch.zeros(3).to(dtype)
            for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool)
        },
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).view(2, 3).t(),
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(trained(), tmp_path / "saved")


def test_it_is_read_as_torchs_own_tool_reads_it(directory, tmp_path):
    report = convert(directory, tmp_path / "ours.pth")
    with quiet():
        dcp_to_torch_save(directory, tmp_path / "theirs.pth")
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=False)
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True), theirs)
    assert {"edit": "convert", "from": "dcp", "to": "torch-zip"} in report.plan


def test_optimizer_is_known_by_its_names(directory):
    report = inspect(directory)
    assert (report.format, report.file) == ("dcp", str(directory / ".metadata"))
    (optimizer,) = report.training["optim"].optimizers
    assert optimizer.certainty == "stored"
    assert [s.path for s in report.state_dicts][:1] == ["model"]
    assert "torch.distributed.checkpoint.metadata.Metadata" in report.globals


@pytest.mark.slow
def test_shards_of_several_processes_are_put_together(tmp_path):
    directory, store = tmp_path / "saved", tmp_path / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", HELPER, str(rank), "4", str(store), str(directory)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(4)
    ]
    assert [process.wait(120) for process in processes] == [0] * 4
    convert(directory, tmp_path / "whole.pth")
    loaded = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert loaded["epoch"] == 3
    assert_same(dict(loaded["model"]), WHOLE)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_metadata_is_never_run(directory, tmp_path):
    """torch's own tools run it, with pickle.load."""
    proof = tmp_path / "proof"
    (directory / ".metadata").write_bytes(pickle.dumps(Evil(proof), protocol=4))
    with pytest.raises(DamagedFileError, match="not of the form"):
        inspect(directory)
    assert not proof.exists()
    with pytest.raises(dcp.CheckpointException):  # what it found is None now
        dcp_to_torch_save(directory, tmp_path / "theirs.pth")
    assert proof.exists()


def changed(directory: Path, change: Any) -> None:
    """Change the metadata as an object of torch's and pickle it again."""
    path = directory / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def _first(metadata: Any) -> Any:
    return next(i for i in metadata.storage_data if i.fqn == "model.0.weight")


def _elsewhere(metadata: Any, path: str) -> None:
    metadata.storage_data[_first(metadata)].relative_path = path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: _elsewhere(m, "../x.distcp"), "leads out of the directory"),
        (lambda m: _elsewhere(m, "/etc/passwd"), "leads out of the directory"),
        (lambda m: _elsewhere(m, "none.distcp"), "the file is missing"),
        (lambda m: setattr(m.storage_data[_first(m)], "offset", 10**9), "model.0.weight"),
        (lambda m: setattr(m.storage_data[_first(m)], "offset", -1), "place in a file"),
        (lambda m: setattr(m.storage_data[_first(m)], "offset", 7), "model.0.weight"),
        (lambda m: m.storage_data.pop(_first(m)), "nothing is stored for the chunk"),
        (lambda m: m.state_dict_metadata.pop("model.0.weight"), "data is stored for what"),
        (lambda m: m.state_dict_metadata["model.0.weight"].chunks.clear(), "data is stored for"),
        (
            lambda m: setattr(m.state_dict_metadata["model.0.weight"], "size", torch.Size([4, 4])),
            "reach to 3 of 4",
        ),
        (
            lambda m: setattr(
                m.state_dict_metadata["model.0.weight"].chunks[0], "sizes", torch.Size([3, 3])
            ),
            "an archive holds",
        ),
        (lambda m: setattr(m, "storage_data", None), "no dictionary of places"),
        (lambda m: setattr(m, "state_dict_metadata", []), "no dictionary of entries"),
        (lambda m: m.planner_data.update({"epoch": ()}), "no path of an entry"),
        (lambda m: m.planner_data.update({"epoch": (1.5,)}), "neither text nor index"),
        (lambda m: m.planner_data.update({"epoch": ("model", "0.weight")}), "lie at one place"),
        (lambda m: m.planner_data.update({"scalar": ("epoch", "x")}), "below another one"),
        (lambda m: m.planner_data.update({"list.0": ("list", 5)}), "lacks some of its elements"),
    ],
)
def test_metadata_that_lies_is_refused(change, said, directory):
    changed(directory, change)
    with pytest.raises(ReadError) as caught:
        inspect(directory)
    assert said in str(caught.value)


@pytest.mark.parametrize("given", ["items", "elements", "args"])
@pytest.mark.parametrize(
    "name",
    ["BytesStorageMetadata", "TensorProperties", "TensorStorageMetadata", "MetadataIndex", "Size"],
)
def test_metadata_of_objects_that_are_given_more_is_refused(name, given, directory):
    """Torch refuses items as well, which none of its classes takes, and passes over arguments."""
    path = directory / ".metadata"
    root = parse(path.read_bytes()).root
    nodes = (n for n in walk(root) if isinstance(n, Object) and n.name.endswith(f".{name}"))
    node = next(nodes)
    setattr(node, given, ("x", "y") if given == "args" else ["x", 1])
    path.write_bytes(emit(root))
    with pytest.raises(DamagedFileError):
        inspect(directory)
    if given != "args":
        with pytest.raises(dcp.CheckpointException), quiet():
            dcp_to_torch_save(directory, directory.with_suffix(".pth"))


def test_directory_without_its_metadata_is_told_as_one(directory):
    (directory / ".metadata").unlink()
    with pytest.raises(ReadError, match="names and places of tensors with it: there is 1 file"):
        inspect(directory)


def test_metadata_by_itself_is_told_as_what_it_is(directory, tmp_path):
    alone = tmp_path / "alone" / ".metadata"
    alone.parent.mkdir()
    alone.write_bytes((directory / ".metadata").read_bytes())
    with pytest.raises(UnknownFormatError, match="metadata of a distributed checkpoint") as told:
        inspect(alone)
    assert "name its directory" in str(told.value.hint)


def test_metadata_stands_for_the_directory_as_in_reports(directory):
    assert inspect(directory / ".metadata").to_dict() == inspect(directory).to_dict()
