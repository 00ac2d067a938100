"""Optimizers through `fit` and `merge`: what is untouched trains on as if nothing had been done."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import (
    GROUPS,
    OPTIMIZERS,
    assert_equal,
    parameters,
    resnet,
    resume,
    steps,
    trained,
    with_head,
)

import ckpt_surgery as ckpt
from ckpt_surgery.fit.adaptations import Adaptation
from ckpt_surgery.fit.values import adapt_moment


@pytest.mark.parametrize(
    ("kind", "grouping", "frozen", "idle", "adapt", "optimizer"),
    [
        ("sgd momentum", "one", "", "layer4.1", True, "resize"),
        ("adam", "head", "layer1", "", True, "resize"),
        ("adam", "head", "layer1", "layer3", True, "reset"),
        ("adam amsgrad", "named", "layer2", "", False, "resize"),
        ("adamw fused", "one", "", "", True, "resize"),
        ("adamw foreach", "head", "", "", False, "reset"),
    ],
)
def test_training_goes_on_after_a_fit(
    kind: str, grouping: str, frozen: str, idle: str, adapt: bool, optimizer: Any, tmp_path: Path
) -> None:
    make, groups = OPTIMIZERS[kind], GROUPS[grouping]
    whole, running = trained(make, groups, tmp_path / "train.pth", frozen, idle)
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
    steps(whole, running, range(2, 4), idle)
    steps(target, again, range(2, 4), idle)
    changed = parameters(target)
    for name in head:
        del changed[name]
    assert_equal(changed, parameters(whole))


def test_a_squared_average_stays_positive_when_it_is_interpolated() -> None:
    moment = torch.zeros(9, 1)  # the embeddings of a grid of three by three
    moment[4] = 1.0
    how = Adaptation("interpolate", old_size=(3, 3), new_size=(7, 7))
    assert (adapt_moment(how, moment, (49, 1)) >= 0).all()
    assert (adapt_moment(how, moment - 0.5, (49, 1)) < -0.5).any()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A training checkpoint, and weights with another head and something more."""
    trained(OPTIMIZERS["adam"], GROUPS["one"], tmp_path / "train.pth")
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
    (group,) = report.plan[-1].pop("groups")
    assert report.plan[-1] == {"edit": "update-optimizer", "path": "optimizer"}
    assert group[:-2] == list(range(len(group) - 2))
    assert [member["reset"] for member in group[-2:]] == [True, True]
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


@pytest.mark.parametrize("method", ["overlay", "average"])
def test_an_optimizer_is_dropped_though_only_values_change(method: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        trained(OPTIMIZERS["adam"], GROUPS["one"], tmp_path / f"{seed}.pth", "", "")
    pair = [tmp_path / "1.pth", tmp_path / "2.pth"]
    report = ckpt.merge(pair, tmp_path / "out.pth", method, scope=ckpt.MergeScope(optimizer="drop"))
    assert [change.action for change in report.optimizers] == ["dropped"]
    assert "optimizer" not in torch.load(tmp_path / "out.pth")
    assert report.dropped == ("optimizer",)


def test_an_optimizer_of_an_untouched_model_is_not_dropped(tmp_path: Path) -> None:
    models = {"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
    file: dict[str, Any] = {name: model.state_dict() for name, model in models.items()}
    for name, model in models.items():
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        file[f"optimizer_{name}"] = optimizer.state_dict()
    torch.save(file, tmp_path / "gan.pth")
    ckpt.merge(
        [tmp_path / "gan.pth", tmp_path / "gan.pth"],
        tmp_path / "out.pth",
        "average",
        scope=ckpt.MergeScope(at=["critic"], optimizer="drop"),
    )
    assert set(file) - set(torch.load(tmp_path / "out.pth")) == {"optimizer_critic"}


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


def linears(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def after_a_step(*models: nn.Module) -> Any:
    optimizer = torch.optim.Adam([p for model in models for p in model.parameters()], lr=0.1)
    for parameter in (p for model in models for p in model.parameters()):
        parameter.grad = parameter.detach() + 1
    optimizer.step()
    return optimizer.state_dict()


def moments(optimizer: Any) -> list[tuple[int, ...]]:
    return [tuple(state["exp_avg"].shape) for state in optimizer["state"].values()]


def test_each_of_two_fitted_models_resizes_its_own_moments(tmp_path: Path) -> None:
    """Also where the first needs no adaptation, and the second does."""
    ready, other = linears(4, 6, 7), linears(4, 5, 9)
    torch.save(
        {
            name: {"model": model.state_dict(), "optimizer": after_a_step(model)}
            for name, model in (("a", ready), ("b", other))
        },
        tmp_path / "two.pth",
    )
    torch.save(ready.state_dict(), tmp_path / "target.pth")
    report = ckpt.fit(
        tmp_path / "two.pth",
        tmp_path / "out.pth",
        like=tmp_path / "target.pth",
        adapt=["overlap"],
    )
    (change,) = report.optimizers
    assert change.path == "b/optimizer"
    assert change.resized == ("0.weight", "0.bias", "1.weight", "1.bias")
    out = torch.load(tmp_path / "out.pth")
    assert moments(out["b"]["optimizer"]) == [(6, 4), (6,), (7, 6), (7,)]


def test_one_optimizer_of_two_fitted_models_is_resized_in_both(tmp_path: Path) -> None:
    one, two = linears(4, 5, 7), linears(4, 5, 9)
    torch.save(
        {"a": one.state_dict(), "b": two.state_dict(), "optimizer": after_a_step(one, two)},
        tmp_path / "shared.pth",
    )
    torch.save(linears(4, 5, 3).state_dict(), tmp_path / "target.pth")
    report = ckpt.fit(
        tmp_path / "shared.pth",
        tmp_path / "out.pth",
        like=tmp_path / "target.pth",
        adapt=["overlap"],
    )
    assert report.optimizers[0].resized == ("a/1.weight", "a/1.bias", "b/1.weight", "b/1.bias")
    sizes = [(5, 4), (5,), (3, 5), (3,)]
    assert moments(torch.load(tmp_path / "out.pth")["optimizer"]) == sizes + sizes


class Embedding(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        if tied:
            self.out.weight = self.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_ties_that_only_one_side_has(tied: bool, tmp_path: Path) -> None:
    """A model's own ties count, whatever lies in one place of the file."""
    source, target = Embedding(tied=tied), Embedding(tied=not tied)
    torch.save(
        {"state_dict": source.state_dict(), "optimizer": after_a_step(source)}, tmp_path / "a.pth"
    )
    torch.save(target.state_dict(), tmp_path / "target.pth")
    report = ckpt.fit(tmp_path / "a.pth", tmp_path / "out.pth", like=tmp_path / "target.pth")
    (change,) = report.optimizers
    assert (change.added, change.removed) == (
        (("out.weight",), ()) if tied else ((), ("embedding.weight",))
    )
    resume(tmp_path / "out.pth", target, OPTIMIZERS["adam"], GROUPS["one"])


def test_the_first_name_of_a_tied_parameter_may_go(tmp_path: Path) -> None:
    """What is left of it stands elsewhere in the model's order, and so does its state."""
    model = Embedding(tied=True)
    state = after_a_step(model)
    torch.save({"state_dict": model.state_dict(), "optimizer": state}, tmp_path / "a.pth")
    ckpt.strip(tmp_path / "a.pth", tmp_path / "out.pth", ckpt.selection(prefix="embedding"))
    out = torch.load(tmp_path / "out.pth")["optimizer"]
    assert moments(out) == [(11, 6), (6, 6), (6,)]
    assert list(out["state"]) == [2, 0, 1]
    assert torch.equal(out["state"][2]["exp_avg"], state["state"][0]["exp_avg"])


def test_a_merge_that_is_refused_names_the_file(tmp_path: Path) -> None:
    model = linears(4, 4, 4)
    optimizer = after_a_step(model[1])
    path = tmp_path / "a.pth"
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer}, path)
    torch.save({"1.weight": torch.zeros(9, 4)}, tmp_path / "b.pth")
    with pytest.raises(ckpt.PlanError, match="may be any of") as refused:
        ckpt.merge([path, tmp_path / "b.pth"], tmp_path / "out.pth")
    assert refused.value.path == path
