"""Rows R4, R5, R6, R11, R17 and R18 as a user runs them, followed by real training steps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from ckpt_surgery import FreezePlan

Build = Callable[..., nn.Module]
Ckpt = Callable[..., Result]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1),
}


class Detector(nn.Module):
    """A backbone under a prefix, and modules added around it."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        resnet.fc = nn.Identity()
        self.resnet = resnet
        self.norm = nn.BatchNorm1d(512)
        self.out = nn.Linear(512, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.norm(self.resnet(x)))
        return scores


def train(model: nn.Module, optimizer: torch.optim.Optimizer, mode: Any) -> set[str]:
    """Three steps; the names of the entries that changed."""
    before = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        mode(model)
        optimizer.zero_grad()
        images = torch.rand(4, 3, 32, 32, generator=generator)
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def emitted(text: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(text, "groups.py", "exec"), namespace)  # noqa: S102  # it is what is tested
    return namespace


def shown(model: nn.Module, groups: Any) -> list[tuple[list[str], dict[str, Any]]]:
    """Groups with names for parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        ([names[id(p)] for p in g["params"]], {k: v for k, v in g.items() if k != "params"})
        for g in groups
    ]


def frozen(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_r4_a_frozen_backbone_stays_bit_identical(
    kind: str, build: Build, ckpt: Ckpt, tmp_path: Path
) -> None:
    model = Detector(build("resnet18"))
    torch.save(model.state_dict(), tmp_path / "ckpt.pth")
    ckpt("freeze-plan", "ckpt.pth", "--freeze-prefix", "resnet", "-o", "plan.json")
    plan = FreezePlan.load(tmp_path / "plan.json")
    optimizer = OPTIMIZERS[kind](plan.apply(model))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in model.named_parameters() if not n.startswith("resnet.")}
    changed = train(model, optimizer, plan.train_mode)
    assert changed == {name for name in model.state_dict() if not name.startswith("resnet.")}


def test_r5_what_is_first_is_counted_in_parameters_not_entries(
    build: Build, ckpt: Ckpt, tmp_path: Path
) -> None:
    model = build("resnet18")
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    entries, parameters = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    rows = map(str.split, ckpt("inspect", "--index", "r18.pth").output.splitlines())
    counted = {row[2]: (row[0], row[1]) for row in rows if len(row) > 2 and row[2] in entries}
    for name in entries:
        own = str(parameters.index(name)) if name in parameters else "-"
        assert counted[name] == (str(entries.index(name)), own)
    ckpt("freeze-plan", "r18.pth", "--first", "45", "-o", "plan.json")
    FreezePlan.load(tmp_path / "plan.json").apply(model)
    assert frozen(model) == parameters[:45]
    refused = ckpt("freeze-plan", "r18.pth", "--first", str(len(entries)), exit_code=2)
    assert "there are 62 parameters" in refused.output
    assert f"--first-keys {len(entries)} counts every key" in refused.output


class Half(nn.Module):
    """Frozen as the row does it: half way through ``__init__``."""

    def __init__(self, *, freezes: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        if freezes:
            for parameter in self.parameters():
                parameter.requires_grad = False
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 2)


@pytest.mark.parametrize("rule", [("--before", "fc1"), ("--until", "conv2")])
def test_r6_half_way_through_init(rule: tuple[str, str], ckpt: Ckpt, tmp_path: Path) -> None:
    model = Half(freezes=False)
    torch.save(model.state_dict(), tmp_path / "half.pth")
    ckpt("freeze-plan", "half.pth", *rule, "-o", "plan.toml")
    FreezePlan.load(tmp_path / "plan.toml").apply(model)
    assert frozen(model) == frozen(Half(freezes=True))


def test_r11_children_without_parameters_count_where_they_can_be_seen(
    build: Build, ckpt: Ckpt, tmp_path: Path
) -> None:
    expected = build("resnet50")
    for place, child in enumerate(expected.children()):
        for parameter in child.parameters():
            parameter.requires_grad = place >= 6
    model = build("resnet50")
    line = ("freeze-plan", "--first-children", "6")
    ckpt(*line, "--model", "torchvision:resnet50", "-o", "plan.json")
    FreezePlan.load(tmp_path / "plan.json").apply(model)
    assert frozen(model) == frozen(expected)
    torch.save(build("resnet18").state_dict(), tmp_path / "r18.pth")
    document = json.loads(ckpt(*line, "r18.pth", "--emit", "json").output)
    (told,) = [w for w in document["warnings"] if w["code"] == "named-children"]
    assert "children" in told["message"]
    assert {p["name"].split(".")[0] for p in document["parameters"] if p["frozen"]} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4",
    }  # fmt: skip


def test_r17_the_head_has_a_rate_of_its_own(build: Build, ckpt: Ckpt, tmp_path: Path) -> None:
    model = build("resnet18", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    line = ("freeze-plan", "r18.pth", "--lr", "1e-3", "--group", "fc:lr=1e-2")
    for form in ("json", "toml"):
        (tmp_path / f"plan.{form}").write_text(ckpt(*line, "--emit", form).stdout)
    groups = FreezePlan.load(tmp_path / "plan.json").apply(model)
    wanted = shown(model, groups)
    assert [options["lr"] for _, options in wanted] == [1e-3, 1e-2]
    assert [names for names, _ in wanted][1] == ["fc.weight", "fc.bias"]
    assert sorted(n for names, _ in wanted for n in names) == sorted(
        n for n, _ in model.named_parameters()
    )
    toml = FreezePlan.load(tmp_path / "plan.toml")
    assert shown(model, toml.apply(model)) == wanted
    python = emitted(ckpt(*line, "--emit", "python").stdout)
    assert shown(model, python["parameter_groups"](model)) == wanted
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    assert train(model, optimizer, nn.Module.train) == set(model.state_dict())


def test_r18_groups_can_be_used_twice_and_a_typo_is_found_at_once(
    build: Build, ckpt: Ckpt, tmp_path: Path
) -> None:
    model = build("resnet18")
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    line = ("freeze-plan", "r18.pth", "--train", "fc", "--lr", "1e-3")
    python = emitted(ckpt(*line, "--emit", "python").stdout)
    groups = python["parameter_groups"](model)
    for _ in range(2):
        assert shown(model, groups) == [(["fc.weight", "fc.bias"], {"lr": 1e-3, "name": "base"})]
    assert shown(model, python["parameter_groups"](model)) == shown(model, groups)
    refused = ckpt(*line, "--group", "fc:lrr=1e-2", exit_code=2)
    assert "lrr" in refused.output
