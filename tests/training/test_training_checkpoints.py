"""Training goes on from an edited file as it would have without the edit, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.models.torchvision_import import import_torchvision

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def everything(model: nn.Module) -> Any:
    return [p for p in model.parameters() if p.requires_grad]


def named(model: nn.Module) -> Any:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def two_groups(model: nn.Module) -> Any:
    """The head apart, with a rate of its own."""
    head = {id(p) for name, p in model.named_parameters() if "fc." in name}
    body = [p for p in everything(model) if id(p) not in head]
    return [
        {"params": body},
        {"params": [p for p in everything(model) if id(p) in head], "lr": 0.05},
    ]


def decay_groups(model: nn.Module) -> Any:
    flat = [p for p in everything(model) if p.ndim <= 1]
    return [
        {"params": [p for p in everything(model) if p.ndim > 1]},
        {"params": flat, "weight_decay": 0.0},
    ]


GROUPS = {"one": everything, "named": named, "head": two_groups, "decay": decay_groups}


models: Any = import_torchvision().models


class _Narrow(models.ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A ResNet-18 of an eighth of the width: the same names, groups and order, but fast."""

    def _make_layer(self, block: Any, planes: int, *rest: Any, **named: Any) -> Any:
        return super()._make_layer(block, planes // 8, *rest, **named)


@cache
def _resnet(*, narrow: bool) -> nn.Module:
    torch.manual_seed(0)
    if not narrow:
        whole: nn.Module = models.resnet18(num_classes=10)
        return whole
    model = _Narrow(models.resnet.BasicBlock, [2, 2, 2, 2])
    model.fc = nn.Linear(64, 10)
    return model


def resnet(frozen: str = "", *, narrow: bool = True) -> nn.Module:
    model = copy.deepcopy(_resnet(narrow=narrow))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    return model


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, idle: str = ""
) -> None:
    """Steps with gradients that depend on the parameter's last name, its values and the step.

    Parameters below `idle` get none.
    """
    for number in numbers:
        for name, parameter in model.named_parameters():
            bare = name.removeprefix("backbone.")
            if parameter.requires_grad and not (idle and bare.startswith(idle)):
                factor = (sum(map(ord, bare)) + 3 * number) % 7 - 3.5
                parameter.grad = parameter.detach() * factor + 0.01
        optimizer.step()
        optimizer.zero_grad()


def trained(
    make: Make,
    groups: Callable[[nn.Module], Any],
    path: Path,
    frozen: str,
    idle: str,
    *,
    narrow: bool = True,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after two steps, saved as a training script does."""
    model = resnet(frozen, narrow=narrow)
    optimizer = make(groups(model))
    steps(model, optimizer, range(2), idle)
    state = {"epoch": 2, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path)
    return model, optimizer


def resume(
    path: Path, model: nn.Module, make: Make, groups: Callable[[nn.Module], Any]
) -> torch.optim.Optimizer:
    """Load both halves into new ones, strictly."""
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    optimizer = make(groups(model))
    optimizer.load_state_dict(checkpoint["optimizer"])
    return optimizer


def parameters(model: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): p.detach() for name, p in model.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


CASES = [
    *((optimizer, "one", "", "", True) for optimizer in OPTIMIZERS),
    ("sgd momentum", "head", "", "", False),
    ("adamw", "head", "layer1", "", False),
    ("adam", "one", "conv1", "bn1", True),
    ("adam amsgrad", "named", "layer2", "layer3", False),
    ("adamw fused", "named", "", "layer4", True),
    ("sgd momentum", "named", "layer2", "", True),
]


@pytest.mark.parametrize(("kind", "grouping", "frozen", "idle", "narrow"), CASES)
def test_training_goes_on_after_a_strip(
    kind: str, grouping: str, frozen: str, idle: str, narrow: bool, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, optimizer = trained(make, groups, tmp_path / "train.pth", frozen, idle, narrow=narrow)
    report = ckpt.strip(
        tmp_path / "train.pth", tmp_path / "cut.pth", ckpt.selection(prefix=["fc", "layer4.1"])
    )
    assert [change.action for change in report.optimizers] == ["updated"]
    cut = resnet(frozen, narrow=narrow)
    cut.fc = nn.Identity()
    cut.layer4 = cut.layer4[:1]
    again = resume(tmp_path / "cut.pth", cut, make, groups)
    steps(whole, optimizer, range(2, 4), idle)
    steps(cut, again, range(2, 4), idle)
    assert_equal(parameters(cut), parameters(whole))


@pytest.mark.parametrize(("kind", "grouping", "frozen", "idle", "narrow"), CASES)
def test_training_goes_on_after_a_rename(
    kind: str, grouping: str, frozen: str, idle: str, narrow: bool, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, optimizer = trained(make, groups, tmp_path / "train.pth", frozen, idle, narrow=narrow)
    report = ckpt.rename(tmp_path / "train.pth", tmp_path / "new.pth", [ckpt.AddPrefix("backbone")])
    stored = [change.renamed for change in report.optimizers]
    assert stored == ([len(named(whole))] if grouping == "named" else [])
    wrapped = nn.Module()
    wrapped.backbone = resnet(frozen, narrow=narrow)
    again = resume(tmp_path / "new.pth", wrapped, make, groups)
    if grouping == "named":
        names = torch.load(tmp_path / "new.pth")["optimizer"]["param_groups"][0]["param_names"]
        assert names == [name for name, _ in named(wrapped)]
    steps(whole, optimizer, range(2, 4), idle)
    steps(wrapped, again, range(2, 4), idle)
    assert_equal(parameters(wrapped, "backbone."), parameters(whole))


def test_groups_that_interleave_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    make = OPTIMIZERS["adamw"]
    whole, optimizer = trained(make, decay_groups, tmp_path / "train.pth", "", "")
    ckpt.strip(tmp_path / "train.pth", tmp_path / "cut.pth", ckpt.selection(prefix="fc"))
    cut = resnet()
    cut.fc = nn.Identity()
    again = resume(tmp_path / "cut.pth", cut, make, decay_groups)
    steps(whole, optimizer, range(2, 3))
    steps(cut, again, range(2, 3))
    assert_equal(parameters(cut), parameters(whole))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Weights and their optimizer in one dictionary, so that the optimizer is an entry of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({**model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "flat.pth")
    return tmp_path / "flat.pth"


@pytest.mark.parametrize("choice", ["auto", "drop"])
def test_an_optimizer_among_the_weights_is_never_left_out_of_step(flat: Path, choice: Any) -> None:
    out = flat.with_name("out.pth")
    with pytest.raises(ckpt.PlanError, match="'optimizer' is among the weights"):
        ckpt.strip(flat, out, ckpt.selection(prefix="1"), optimizer=choice)
    with pytest.raises(ckpt.PlanError, match="'optimizer' is among the weights"):
        ckpt.rename(flat, out, [ckpt.AddPrefix("m")], optimizer=choice)
    assert not out.exists()


def test_an_optimizer_among_the_weights_stays_or_goes_when_told_to(flat: Path) -> None:
    kept, gone = flat.with_name("kept.pth"), flat.with_name("gone.pth")
    ckpt.strip(flat, kept, ckpt.selection(prefix="1"), optimizer="keep")
    loaded, original = torch.load(kept), torch.load(flat)
    assert list(loaded) == ["0.weight", "0.bias", "optimizer"]
    assert loaded["optimizer"]["param_groups"] == original["optimizer"]["param_groups"]
    ckpt.strip(flat, gone, ckpt.selection(prefix=["1", "optimizer"]))
    assert list(torch.load(gone)) == ["0.weight", "0.bias"]
