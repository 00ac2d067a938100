"""Optimizers through `fit` and `merge`: what is untouched trains on as if nothing had been done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_checkpoints import (
    GROUPS,
    OPTIMIZERS,
    assert_equal,
    parameters,
    resnet,
    resume,
    steps,
    trained,
)
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.models.adaptations import Adaptation
from ckpt_surgery.models.adapting import adapt_moment


def with_head(classes: int, frozen: str = "") -> Any:
    model = resnet(frozen)
    model.fc = nn.Linear(model.fc.in_features, classes)  # type: ignore[arg-type,union-attr]
    for name, parameter in model.fc.named_parameters():
        parameter.requires_grad_(not (frozen and f"fc.{name}".startswith(frozen)))
    return model


@pytest.mark.parametrize("optimizer", ["resize", "reset"])
@pytest.mark.parametrize(
    ("kind", "grouping", "frozen", "adapt"),
    [
        ("sgd momentum", "one", "", True),
        ("adam", "head", "layer1", True),
        ("adam amsgrad", "named", "", False),
        ("adamw fused", "one", "", True),
        ("adamw foreach", "head", "", False),
    ],
)
def test_training_goes_on_after_a_fit(
    kind: str, grouping: str, frozen: str, adapt: bool, optimizer: Any, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, running = trained(make, groups, tmp_path / "train.pth", frozen, "")
    target = with_head(5, frozen)
    torch.save(target.state_dict(), tmp_path / "target.pth")
    report = ckpt.fit(
        tmp_path / "train.pth",
        tmp_path / "out.pth",
        like=tmp_path / "target.pth",
        adapt=["overlap"] if adapt else [],
        optimizer=optimizer,
    )
    (change,) = report.optimizers
    head = ("fc.weight", "fc.bias")
    assert (change.resized, change.reset) == (
        (head, ()) if adapt and optimizer == "resize" else ((), head)
    )
    again = resume(tmp_path / "out.pth", target, make, groups)
    state = torch.load(tmp_path / "out.pth")["optimizer"]["state"]
    if change.resized:
        old = torch.load(tmp_path / "train.pth")["optimizer"]["state"]
        for name in set(old[0]) - {"step"}:
            last, before = max(state), max(old)
            assert state[last][name].shape == (5,)
            assert torch.equal(state[last][name], old[before][name][:5])
    steps(whole, running, range(2, 4))
    steps(target, again, range(2, 4))
    changed = parameters(target)
    for name in head:
        del changed[name]
    assert_equal(changed, parameters(whole))


def test_a_squared_average_stays_positive_when_it_is_interpolated() -> None:
    moment = torch.zeros(9, 1)  # the embeddings of a grid of three by three
    moment[4] = 1.0
    how = Adaptation("interpolate")
    assert (adapt_moment(how, moment, (49, 1)) >= 0).all()
    assert (adapt_moment(how, moment - 0.5, (49, 1)) < -0.5).any()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A training checkpoint, and weights with another head and something more."""
    trained(OPTIMIZERS["adam"], GROUPS["one"], tmp_path / "train.pth", "", "")
    other = {"fc.weight": torch.zeros(5, 64), "fc.bias": torch.zeros(5)}
    torch.save(other | {"extra.weight": torch.ones(3, 3)}, tmp_path / "other.pth")
    return tmp_path / "train.pth", tmp_path / "other.pth"


def test_an_overlaid_head_begins_anew(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = ckpt.merge(
        pair,
        tmp_path / "out.pth",
        scope=ckpt.MergeScope(selection=ckpt.selection(prefix="fc")),
    )
    (change,) = report.optimizers
    assert change.reset == ("fc.weight", "fc.bias")
    assert report.plan[-1] == {"edit": "update-optimizer", "path": "optimizer"}
    resume(tmp_path / "out.pth", with_head(5), OPTIMIZERS["adam"], GROUPS["one"])


@pytest.mark.parametrize("method", ["overlay", "fill"])
def test_what_comes_from_another_file_joins_the_group(
    method: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    report = ckpt.merge(
        pair,
        tmp_path / "out.pth",
        method,
        scope=ckpt.MergeScope(selection=ckpt.selection(prefix="extra")),
    )
    assert report.optimizers[0].added == ("extra.weight",)
    model = resnet()
    model.extra = nn.Linear(3, 3, bias=False)
    resume(tmp_path / "out.pth", model, OPTIMIZERS["adam"], GROUPS["one"])


@pytest.mark.parametrize(("choice", "action"), [("keep", "kept"), ("drop", "dropped")])
def test_a_merge_may_leave_the_optimizer_alone(
    choice: Any, action: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    report = ckpt.merge(pair, tmp_path / "out.pth", scope=ckpt.MergeScope(optimizer=choice))
    assert [change.action for change in report.optimizers] == [action]
    assert report.to_dict()["optimizers"] == [{"path": "optimizer", "action": action}]
    assert ("optimizer" in torch.load(tmp_path / "out.pth")) == (choice == "keep")
    assert ("optimizer" in report.dropped) == (choice == "drop")


def test_an_average_of_equal_models_changes_no_optimizer(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    report = ckpt.merge([pair[0], pair[0]], tmp_path / "out.pth", "average")
    assert report.optimizers == ()
    before, after = torch.load(pair[0])["optimizer"], torch.load(tmp_path / "out.pth")["optimizer"]
    assert before["param_groups"] == after["param_groups"]
    assert torch.equal(before["state"][3]["exp_avg"], after["state"][3]["exp_avg"])
    alone = ckpt.merge(
        [pair[0], pair[0]],
        tmp_path / "alone.pth",
        "average",
        scope=ckpt.MergeScope(state_dict_only=True),
    )
    assert alone.optimizers == ()
