"""Training goes on from an edited file as it would have without the edit, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import (
    GROUPS,
    OPTIMIZERS,
    assert_equal,
    decay_groups,
    named,
    parameters,
    resnet,
    resume,
    steps,
    trained,
    two_groups,
    with_head,
)

import ckpt_surgery as ckpt

STRIPS = [
    *((optimizer, "one", "", "") for optimizer in OPTIMIZERS),
    ("sgd momentum", "head", "layer1", "layer3"),
    ("adam", "one", "conv1", "bn1"),
    ("adamw fused", "named", "", "layer4"),
]


@pytest.mark.parametrize(("kind", "grouping", "frozen", "idle"), STRIPS)
def test_training_goes_on_after_a_strip(
    kind: str, grouping: str, frozen: str, idle: str, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, optimizer = trained(make, groups, tmp_path / "train.pth", frozen, idle)
    report = ckpt.strip(
        tmp_path / "train.pth", tmp_path / "cut.pth", ckpt.selection(prefix=["fc", "layer4.1"])
    )
    assert [change.action for change in report.optimizers] == ["updated"]
    cut: Any = resnet(frozen)
    cut.fc = nn.Identity()
    cut.layer4 = cut.layer4[:1]
    again = resume(tmp_path / "cut.pth", cut, make, groups)
    steps(whole, optimizer, range(2, 4), idle)
    steps(cut, again, range(2, 4), idle)
    assert_equal(parameters(cut), parameters(whole))


@pytest.mark.parametrize(
    ("kind", "grouping", "frozen", "idle"),
    [
        ("adamw", "head", "layer1", ""),
        ("sgd momentum", "named", "layer2", ""),
        ("adam amsgrad", "named", "layer2", "layer3"),
    ],
)
def test_training_goes_on_after_a_rename(
    kind: str, grouping: str, frozen: str, idle: str, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, optimizer = trained(make, groups, tmp_path / "train.pth", frozen, idle)
    report = ckpt.rename(tmp_path / "train.pth", tmp_path / "new.pth", [ckpt.AddPrefix("backbone")])
    stored = [change.renamed for change in report.optimizers]
    assert stored == ([len(named(whole))] if grouping == "named" else [])
    wrapped = nn.Module()
    wrapped.backbone = resnet(frozen)
    again = resume(tmp_path / "new.pth", wrapped, make, groups)
    if grouping == "named":
        names = torch.load(tmp_path / "new.pth")["optimizer"]["param_groups"][0]["param_names"]
        assert names == [name for name, _ in named(wrapped)]
    steps(whole, optimizer, range(2, 4), idle)
    steps(wrapped, again, range(2, 4), idle)
    assert_equal(parameters(wrapped, "backbone."), parameters(whole))


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ResNet-18 as it is, in two groups, partly frozen and partly without gradient."""
    path = tmp_path_factory.mktemp("full") / "train.pth"
    make = OPTIMIZERS["adamw amsgrad"]
    whole, optimizer = trained(make, two_groups, path, "layer1", "layer3.1", narrow=False)
    steps(whole, optimizer, range(2, 3), "layer3.1")
    return path, make, parameters(whole)


def cut_head(path: Path, out: Path) -> Any:
    ckpt.strip(path, out, ckpt.selection(prefix="fc"))
    model: Any = resnet("layer1", narrow=False)
    model.fc = nn.Identity()
    return model


def wrapped(path: Path, out: Path) -> Any:
    ckpt.rename(path, out, [ckpt.AddPrefix("backbone")])
    model = nn.Module()
    model.backbone = resnet("layer1", narrow=False)
    return model


def fitted(path: Path, out: Path) -> Any:
    model = with_head(5, "layer1", narrow=False)
    torch.save(model.state_dict(), path.with_name("target.pth"))
    ckpt.fit(path, out, like=path.with_name("target.pth"), adapt=["overlap"])
    return model


def overlaid(path: Path, out: Path) -> Any:
    model = with_head(5, "layer1", narrow=False)
    head = {name: t for name, t in model.state_dict().items() if name.startswith("fc")}
    torch.save(head, path.with_name("head.pth"))
    ckpt.merge([path, path.with_name("head.pth")], out)
    return model


@pytest.mark.parametrize("verb", [cut_head, wrapped, fitted, overlaid])
def test_training_goes_on_at_full_width_after_every_edit(
    verb: Any, full_width: Any, tmp_path: Path
) -> None:
    path, make, expected = full_width
    model = verb(path, tmp_path / "out.pth")
    again = resume(tmp_path / "out.pth", model, make, two_groups)
    steps(model, again, range(2, 3), "layer3.1")
    found = parameters(model, "backbone.")
    untouched = {n: p for n, p in found.items() if n not in {"fc.weight", "fc.bias"}}
    assert len(untouched) == 60
    assert_equal(untouched if verb is not wrapped else found, expected)


def test_groups_that_interleave_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    make = OPTIMIZERS["adamw"]
    whole, optimizer = trained(make, decay_groups, tmp_path / "train.pth")
    ckpt.strip(tmp_path / "train.pth", tmp_path / "cut.pth", ckpt.selection(prefix="fc"))
    cut: Any = resnet()
    cut.fc = nn.Identity()
    again = resume(tmp_path / "cut.pth", cut, make, decay_groups)
    steps(whole, optimizer, range(2, 3))
    steps(cut, again, range(2, 3))
    assert_equal(parameters(cut), parameters(whole))
