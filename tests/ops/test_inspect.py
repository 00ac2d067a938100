"""What `inspect` lists, sums, narrows and puts into JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch_checks import save

from ckpt_surgery import UsageError, inspect, selection
from ckpt_surgery.cli.main import cli


def value() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    weights = model.state_dict()
    return {
        "model": weights,
        "ema": {name: tensor.clone() for name, tensor in weights.items() if name[0] == "0"},
        "views": {"a": torch.arange(100.0)[:10], "b": torch.ones(2)},
        "optimizer": torch.optim.SGD(model.parameters()).state_dict(),
        "epoch": 7,
        "best": [torch.ones(5)],
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(value(), tmp_path_factory.mktemp("inspect") / "w.pth")


def test_totals_are_torchs(path: Path) -> None:
    report = inspect(path)
    tensors = [t for key in ("model", "ema", "views") for t in value()[key].values()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    assert report.totals.tensors == len(tensors)
    assert report.totals.numel == sum(t.numel() for t in tensors)
    assert report.totals.nbytes == sum(t.nbytes for t in tensors)
    assert report.totals.unused_nbytes == 360
    assert report.totals.storage_nbytes == sum(storages.values())
    assert report.size == path.stat().st_size
    assert report.exit_code == 0


def test_totals_count_a_storage_once(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    report = inspect(save({"a": base, "b": base[:5], "c": base}, tmp_path / "w.pth"))
    assert report.totals.nbytes == 100
    assert report.totals.storage_nbytes == 40
    assert report.totals.unused_nbytes == 0
    assert report.ties == (("a", "c"),)


def test_ties_are_those_of_the_same_elements(path: Path, tmp_path: Path) -> None:
    assert inspect(path).ties == (("model/0.weight", "model/2.weight"),)
    empty = {"a": torch.empty(0), "b": torch.ones(1), "m": torch.empty(3, device="meta")}
    assert inspect(save({**empty, "c": empty["a"]}, tmp_path / "w.pth")).ties == ()


def test_selection_narrows_what_is_listed(path: Path) -> None:
    report = inspect(path, selection(pattern="weight"))
    assert {s.path: s.names for s in report.state_dicts} == {
        "model": ["0.weight", "1.weight", "2.weight"],
        "ema": ["0.weight"],
        "views": [],
    }
    assert report.totals.tensors == 4
    assert [s.path for s in inspect(path, at=["ema"]).state_dicts] == ["ema"]
    both = inspect(path, selection(pattern="bias"), at=["ema"])
    assert [s.names for s in both.state_dicts] == [["0.bias"]]
    assert inspect(path, selection()).totals.tensors == inspect(path).totals.tensors


def test_senseless_selection_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        inspect(path, selection(pattern="zzz"))
    with pytest.raises(UsageError, match="no state dict there"):
        inspect(path, at=["nowhere"])


def test_params_only_leaves_out_buffers(path: Path, tmp_path: Path) -> None:
    names = inspect(path, at=["model"], params_only=True).state_dicts[0].names
    assert "1.running_mean" not in names
    assert "1.num_batches_tracked" not in names
    assert len(names) == 6
    extra = {"a": torch.ones(1), "b": torch.ones(1), "extra": 3}
    listed = inspect(save(extra, tmp_path / "w.pth"), params_only=True).state_dicts[0].names
    assert listed == ["a", "b"]


def test_stats_are_asked_for(path: Path) -> None:
    assert inspect(path).stats == {}
    stats = inspect(path, selection(keys=["a"]), at=["views"], stats=True).stats
    assert list(stats) == ["views/a"]
    assert stats["views/a"] is not None
    assert (stats["views/a"].min, stats["views/a"].max) == (0.0, 9.0)


def test_report_is_json(path: Path) -> None:
    document = json.loads(json.dumps(inspect(path, stats=True).to_dict()))
    assert document["schema"] == 1
    assert document["format"] == "torch-zip"
    model, ema, views = document["state_dicts"]
    assert (model["path"], model["kind"]) == ("model", "model")
    assert ema["kind"] == "ema"
    first = views["tensors"][0]
    assert first["name"] == "a"
    assert (first["shape"], first["dtype"], first["numel"]) == ([10], "float32", 10)
    assert (first["nbytes"], first["offset"], first["stride"]) == (40, 0, [1])
    assert first["stats"]["max"] == 9.0
    others = {other["path"]: other for other in document["other"]}
    assert others["epoch"]["value"] == 7
    assert others["optimizer"]["groups"] == 1
    assert (others["best"]["tensors"], others["best"]["nbytes"]) == (1, 20)
    assert document["ties"] == [["model/0.weight", "model/2.weight"]]


def test_layout_is_in_the_json_if_it_is_special(tmp_path: Path) -> None:
    found = {"s": torch.eye(3).to_sparse(), "m": torch.empty(2, device="meta"), "d": torch.ones(1)}
    report = inspect(save(found, tmp_path / "w.pth")).to_dict()
    sparse, meta, dense = report["state_dicts"][0]["tensors"]
    assert sparse["layout"] == "sparse_coo"
    assert sparse["storage"] is None
    assert sparse["nbytes"] == 3 * 4 + 2 * 3 * 8
    assert meta["device"] == "meta"
    assert "layout" not in dense


def test_safetensors_has_no_unused_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(5)}, tmp_path / "w.safetensors")
    totals = inspect(tmp_path / "w.safetensors").totals
    assert (totals.tensors, totals.storage_nbytes, totals.unused_nbytes) == (2, 32, 0)


def test_places_count_parameters_as_torch_does(path: Path) -> None:
    places = inspect(path, selection(keys=["2.weight"])).places
    assert places["model/0.weight"].parameter == 0
    assert places["model/1.running_mean"].parameter is None
    assert places["model/2.weight"].parameter == 0  # tied to the first
    assert places["model/2.bias"].parameter == 4
    assert places["model/2.bias"].index == len(value()["model"]) - 1


def test_entries_that_are_no_tensors_are_listed_and_counted(tmp_path: Path) -> None:
    """An optimizer among the weights of a flat file was in no total, and not in the JSON."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    flat = {**model.state_dict(), "s": torch.ones(1), "optimizer": optimizer.state_dict()}
    flat["epoch"] = 3
    report = inspect(save(flat, tmp_path / "flat.pth"))
    (document,) = report.to_dict()["state_dicts"]
    assert document["other"] == [
        {"name": "optimizer", "type": "dict", "tensors": 2, "nbytes": 24},
        {"name": "epoch", "type": "int", "value": 3},
    ]
    listed = {each["name"] for key in ("tensors", "other") for each in document[key]}
    assert listed == set(flat)
    assert not report.notes
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "flat.pth")]).output
    assert "tensors below entries that are none:\n  optimizer: 2 tensors, 24 bytes" in shown


def test_tensors_below_such_entries_are_counted_once(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    flat: dict[str, Any] = {name: torch.ones(1) for name in "abcd"}
    flat |= {"x": [tensor], "y": [tensor]}
    report = inspect(save(flat, tmp_path / "flat.pth"))
    x, y = report.to_dict()["state_dicts"][0]["other"]
    assert (x.get("tensors"), y.get("tensors")) == (1, None)
    nested = flat | {"x": {"w": tensor}, "y": 3}
    report = inspect(save(nested, tmp_path / "nested.pth"))
    assert [s.path for s in report.state_dicts] == ["", "x"]
    assert "tensors" not in report.to_dict()["state_dicts"][0]["other"][0]
