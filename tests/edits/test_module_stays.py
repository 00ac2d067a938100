"""A pickled module in which an edit changes nothing stays the module that it is."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.cli.main import cli
from ckpt_surgery.writing.output import Output


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def same(found: nn.Module, wanted: nn.Module) -> bool:
    assert type(found) is type(wanted)
    theirs = wanted.state_dict()
    return list(found.state_dict()) == list(theirs) and all(
        torch.equal(value, theirs[name]) for name, value in found.state_dict().items()
    )


@pytest.fixture
def training(tmp_path: Path) -> Path:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    value = {"epoch": 3, "model": model, "optimizer": optimizer.state_dict(), "args": {"a": 1}}
    return save(value, tmp_path / "last.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_lies_beside_it_goes_and_the_module_stays(legacy: bool, tmp_path: Path) -> None:
    file = save({"epoch": 3, "model": net(), "optimizer": {}}, tmp_path / "in.pt", legacy=legacy)
    report = ckpt.strip(file, tmp_path / "out.pt", entries=["epoch"], training_state=True)
    found = load(tmp_path / "out.pt")
    assert list(found) == ["model"]
    assert same(found["model"], net())
    assert report.format == "torch-module"
    assert not any(edit["edit"] == "convert" for edit in report.plan)


def test_it_is_replaced_in_place_only_by_itself(training: Path) -> None:
    ckpt.strip(training, Output(in_place=True), training_state=True)
    assert same(load(training)["model"], net())
    before = training.read_bytes()
    with pytest.raises(ckpt.LossyEditError, match="without a pickled module"):
        ckpt.rename(training, Output(in_place=True), [ckpt.AddPrefix("x")])
    assert training.read_bytes() == before


def test_a_dictionary_around_it_and_values_beside_it(training: Path, tmp_path: Path) -> None:
    ckpt.rename(training, tmp_path / "1.pt", wrap="run", entries=[("model", "net")])
    assert same(load(tmp_path / "1.pt")["run"]["net"], net())
    ckpt.set_values(training, tmp_path / "2.pt", {"epoch": 0})
    found = load(tmp_path / "2.pt")
    assert (found["epoch"], same(found["model"], net())) == (0, True)


def test_a_module_that_is_the_whole_file(tmp_path: Path) -> None:
    file = save(net(), tmp_path / "module.pt")
    ckpt.rename(file, tmp_path / "wrapped.pt", wrap="model")
    ckpt.strip(tmp_path / "wrapped.pt", tmp_path / "back.pt", unwrap=True)
    assert same(load(tmp_path / "back.pt"), net())
    ckpt.strip(file, tmp_path / "bare.pt", state_dict_only=True)
    assert list(load(tmp_path / "bare.pt")) == list(net().state_dict())


def test_of_what_changes_it_and_of_what_converts_it_the_state_dict_is_written(
    training: Path, tmp_path: Path
) -> None:
    report = ckpt.strip(training, tmp_path / "1.pt", ckpt.selection(prefix="2"))
    assert report.plan[-1] == {"edit": "convert", "from": "torch-module", "to": "torch-zip"}
    assert list(load(tmp_path / "1.pt")["model"]) == list(net().state_dict())[:-2]
    ckpt.convert(training, tmp_path / "2.pt")
    ckpt.strip(training, Output(tmp_path / "3.pt", plain=True), training_state=True)
    for name in ("2.pt", "3.pt"):
        found = torch.load(tmp_path / name, weights_only=True)["model"]
        assert list(found) == list(net().state_dict())


def test_the_average_takes_the_other_s_place_whole(tmp_path: Path) -> None:
    value = {"model": net(), "ema": net(1), "updates": 3}
    file = save(value, tmp_path / "in.pt")
    ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=True)
    found = load(tmp_path / "out.pt")
    assert list(found) == ["model"]
    assert same(found["model"], net(1))


def test_an_average_that_was_saved_alone_takes_the_place_of_none(tmp_path: Path) -> None:
    """As ultralytics saves it: the model is None, and training resumes from the average."""
    value = {"epoch": 1, "model": None, "ema": net(1), "updates": 3, "optimizer": None}
    file = save(value, tmp_path / "in.pt")
    report = ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=True)
    found = load(tmp_path / "out.pt")
    assert list(found) == ["epoch", "model"]
    assert same(found["model"], net(1))
    assert [each["edit"] for each in report.plan][-2:] == ["rename-entry", "drop-entry"]
    ckpt.strip(file, tmp_path / "kept.pt", training_state=True)
    assert list(load(tmp_path / "kept.pt")) == ["epoch", "model", "ema", "updates"]
    save(value | {"state_dict": None}, file)
    with pytest.raises(ckpt.UsageError, match="no moving average"):
        ckpt.strip(file, tmp_path / "no.pt", training_state=True, ema=True)


def test_modules_of_two_classes_are_not_put_for_each_other(tmp_path: Path) -> None:
    """The values are taken then, under the model's names, and both are state dicts."""
    other = nn.ModuleList(copy.deepcopy(list(net(1).children())))
    file = save({"model": net(), "ema": other}, tmp_path / "in.pt")
    ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    assert all(torch.equal(value, found[name]) for name, value in net(1).state_dict().items())


def test_devices_are_renamed_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
    away = save({"model": net()}, tmp_path / "away.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        load(away)
    ckpt.rename(away, Output(tmp_path / "home.pt", device="cpu"), entries=[("model", "net")])
    assert same(load(tmp_path / "home.pt")["net"], net())


def test_a_recipe_gives_the_bytes_of_its_steps(training: Path, tmp_path: Path) -> None:
    ckpt.strip(training, tmp_path / "1.pt", training_state=True)
    ckpt.rename(tmp_path / "1.pt", tmp_path / "2.pt", entries=[("model", "net")])
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"[inputs]\na = '{training}'\n[[steps]]\nstrip = {{ training-state = true }}\n"
        f"[[steps]]\nrename = {{ entry = ['model=net'] }}\n"
        f"[[outputs]]\nfile = '{tmp_path / 'r.pt'}'\n"
    )
    result = CliRunner().invoke(cli, ["apply", str(recipe)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r.pt").read_bytes() == (tmp_path / "2.pt").read_bytes()
    assert same(load(tmp_path / "r.pt")["net"], net())


def test_of_two_modules_the_one_that_is_changed_is_said_to_become_a_state_dict(
    tmp_path: Path,
) -> None:
    """The file is one of a module still, so that no change of its format says it."""
    file = save({"model": net(), "teacher": net(1)}, tmp_path / "in.pt")
    report = ckpt.strip(file, tmp_path / "out.pt", ckpt.selection(prefix="2"), at=["model"])
    assert "the module in 'model' becomes its state dict" in "".join(report.warnings)
    found = load(tmp_path / "out.pt")
    assert list(found["model"]) == list(net().state_dict())[:-2]
    assert same(found["teacher"], net(1))


def test_a_module_in_an_archive_keeps_its_checksums(training: Path, tmp_path: Path) -> None:
    report = ckpt.strip(training, tmp_path / "out.pt", training_state=True)
    assert report.format == "torch-module"
    assert not any("checksums" in warning for warning in report.warnings)
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None
