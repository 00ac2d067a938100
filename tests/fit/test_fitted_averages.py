"""Averages are fitted by their model's names, and load as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from averages_as_written import (
    averaged_model,
    ema_pytorch_state,
    lightning_checkpoint,
    mmengine_checkpoint,
    net,
    shadows,
    swa_state,
)
from frameworks import framework
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_checks import assert_same, save

import ckpt_surgery as ckpt


def target(classes: int = 2) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


def fitted(value: Any, folder: Path, model: nn.Module | None = None) -> tuple[Any, Any]:
    like = save((model or target()).state_dict(), folder / "like.pt")
    report = ckpt.fit(save(value, folder / "in.pt"), folder / "out.pt", like=like)
    return torch.load(folder / "out.pt", weights_only=False), report


def test_averaged_model_loads_into_what_it_averages(tmp_path: Path) -> None:
    """Its counter and its wrapper were taken off."""
    model = net()
    found, _ = fitted({"model": model.state_dict(), "ema": averaged_model(model)}, tmp_path)
    target().load_state_dict(found["model"])
    average = AveragedModel(target())
    average.load_state_dict(found["ema"])
    assert average.n_averaged == 1
    assert list(found["ema"]) == list(average.state_dict())
    assert list(found["ema"]._metadata) == list(average.state_dict()._metadata)
    assert_same(found["ema"]["module.0.weight"], model.state_dict()["0.weight"])


def test_the_plan_of_a_fitted_average_can_be_read_back(tmp_path: Path) -> None:
    model = net()
    value = {"model": model.state_dict(), "ema": averaged_model(model)}
    _, report = fitted(value, tmp_path)
    plan = ckpt.Plan.from_dict([edit for edit in report.plan if edit["edit"] != "convert"])
    assert [dict(edit) for edit in plan.to_dict()] == [dict(edit) for edit in report.plan]
    assert {edit.prefix for edit in plan.edits} == {"", "module."}  # type: ignore[attr-defined]


def test_ema_pytorch_loads_into_what_it_averages(tmp_path: Path) -> None:
    value = {"model": net().state_dict(), "ema": ema_pytorch_state(net(), net(1))}
    found, _ = fitted(value, tmp_path)
    framework("ema_pytorch").EMA(target()).load_state_dict(found["ema"])
    assert_same(found["ema"]["ema_model.0.weight"], net(1).state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("layout", "trained", "own"),
    [(mmengine_checkpoint, "ema_state_dict", {"steps"}),
     (lightning_checkpoint, "current_model_state", set())],
)  # fmt: skip
def test_swapped_pairs_are_fitted_together(
    layout: Any, trained: str, own: set[str], tmp_path: Path
) -> None:
    value = layout(net(), net(1).state_dict())
    found, _ = fitted(value, tmp_path)
    target().load_state_dict(found["state_dict"])
    plain = {name.removeprefix("module."): v for name, v in found[trained].items()}
    assert set(plain) == set(target().state_dict()) | own
    assert_same(plain["0.weight"], net().state_dict()["0.weight"])
    assert found.get("averaging_state", {"n_averaged": 4})["n_averaged"] == 4


def test_an_optimizer_of_trained_weights_follows_the_fit(tmp_path: Path) -> None:
    """In mmengine's files it trains what lies under wrapped names."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    value = mmengine_checkpoint(model, net(1).state_dict())
    value["optimizer"] = optimizer.state_dict()
    found, report = fitted(value, tmp_path)
    assert report.optimizers[0].reset == ("module.2.weight", "module.2.bias")
    torch.optim.SGD(target().parameters(), momentum=0.9).load_state_dict(found["optimizer"])
    assert set(found["optimizer"]["state"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["list", "entry"])
def test_averages_that_are_no_state_dicts_are_said_to_stay(kind: str, tmp_path: Path) -> None:
    value: dict[str, Any] = {"model": net().state_dict()}
    if kind == "list":
        value["ema"] = shadows(net(1))
    else:
        value["callbacks"] = {"SWA": swa_state(net(1).state_dict())}
    _, report = fitted(value, tmp_path)
    assert any("is carried over as it was, out of step" in each for each in report.warnings)
    (tmp_path / "out.pt").unlink()
    _, report = fitted(value, tmp_path, net())
    assert not report.warnings


@pytest.mark.parametrize("names", [["net.b.w", "net.a.w"], ["net.b.w"]])
def test_a_list_of_averages_is_in_the_order_of_the_fitted_parameters(names, tmp_path):
    weights = {"a.w": torch.ones(2), "b.w": torch.zeros(3)}
    shadow = [torch.full((2,), 0.5), torch.full((3,), 0.25)]
    average = {"decay": 0.9, "num_updates": 2, "shadow_params": shadow}
    torch.save({"model": weights, "ema": average}, tmp_path / "run.pth")
    torch.save({n: weights[n.removeprefix("net.")] for n in names}, tmp_path / "like.pth")
    like = tmp_path / "like.pth"
    report = ckpt.fit(tmp_path / "run.pth", tmp_path / "out.pth", like=str(like))
    assert not any("out of step" in each for each in report.warnings)
    found = torch.load(tmp_path / "out.pth")
    assert [len(each) for each in found["ema"]["shadow_params"]] == [
        len(found["model"][name]) for name in names
    ]
    assert [each["edit"] for each in report.to_dict()["plan"]] == ["fit", "update-average"]


def test_a_list_of_averages_stays_behind_what_is_new_and_that_is_said(tmp_path):
    weights = {"a.w": torch.ones(2), "b.w": torch.zeros(3)}
    average = {"decay": 0.9, "shadow_params": [v.clone() for v in weights.values()]}
    torch.save({"model": weights, "ema": average}, tmp_path / "run.pth")
    torch.save({"a.w": torch.ones(2), "b.w": torch.ones(5)}, tmp_path / "like.pth")
    like = str(tmp_path / "like.pth")
    report = ckpt.fit(tmp_path / "run.pth", tmp_path / "out.pth", like=like)
    assert any("out of step with its model" in each for each in report.warnings)
    assert len(torch.load(tmp_path / "out.pth")["ema"]["shadow_params"][1]) == 3
