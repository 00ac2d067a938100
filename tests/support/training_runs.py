"""A ResNet-18 that is trained, saved, and trained on from another file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckpt_surgery.models.torchvision_import import import_torchvision

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
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
    """Steps with gradients that depend on a parameter's name, its values and the step only.

    So whatever else was cut from the model they are the same. Parameters below `idle` get none.
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
    frozen: str = "",
    idle: str = "",
    *,
    narrow: bool = True,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after two steps of real training, saved as a training script does."""
    model = resnet(frozen, narrow=narrow)
    optimizer = make(groups(model))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        for name, parameter in model.named_parameters():
            if idle and name.startswith(idle):
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
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


def with_head(classes: int, frozen: str = "", *, narrow: bool = True) -> Any:
    """The same network with another head."""
    model: Any = resnet(frozen, narrow=narrow)
    model.fc = nn.Linear(model.fc.in_features, classes)
    model.fc.requires_grad_(not (frozen and "fc".startswith(frozen)))
    return model
