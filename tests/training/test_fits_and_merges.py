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


class Grown(nn.Module):
    """A layer, perhaps another one, and a head."""

    def __init__(self, grown: bool) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        if grown:
            self.b = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)


def _by_axes(model: nn.Module) -> list[dict[str, Any]]:
    own = list(model.parameters())
    vectors, matrices = ([p for p in own if (p.ndim > 1) is large] for large in (False, True))
    return [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]


def _by_module(model: nn.Module) -> list[dict[str, Any]]:
    own = [p for name, p in model.named_parameters() if not name.startswith("head")]
    return [{"params": own}, {"params": list(model.head.parameters())}]  # type: ignore[union-attr]


def _grow(groups: Any, folder: Path, **options: Any) -> tuple[Any, nn.Module]:
    """The report of a fit to a model with a layer more, and that model."""
    torch.manual_seed(0)
    small, grown = Grown(grown=False), Grown(grown=True)
    optimizer = torch.optim.AdamW(groups(small))
    sum(p.square().sum() for p in small.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    saved = {"model": small.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, folder / "small.pth")
    torch.save(grown.state_dict(), folder / "grown.pth")
    out = ckpt.Output(folder / "out.pth", force=True)
    report = ckpt.fit(folder / "small.pth", out, like=folder / "grown.pth", **options)
    grown.load_state_dict(torch.load(folder / "out.pth")["model"])
    return report, grown


def _state_of(model: nn.Module, groups: Any, folder: Path) -> dict[str, Any]:
    """What an optimizer with these groups has of each parameter of `model` after loading."""
    optimizer = torch.optim.AdamW(groups(model))
    optimizer.load_state_dict(torch.load(folder / "out.pth")["optimizer"])
    return {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}


def test_a_new_layer_joins_the_groups_that_are_split_by_axes(tmp_path: Path) -> None:
    """It was refused: the layers beside it are in two groups."""
    report, model = _grow(_by_axes, tmp_path)
    (change,) = report.optimizers
    assert dict(zip(change.added, change.added_groups, strict=True)) == {"b.weight": 1, "b.bias": 0}
    saved = torch.load(tmp_path / "small.pth")["optimizer"]["state"]
    state = _state_of(model, _by_axes, tmp_path)
    assert not state["b.weight"]
    for name, key in (("a.bias", 0), ("head.bias", 1), ("a.weight", 2), ("head.weight", 3)):
        assert torch.equal(state[name]["exp_avg"], saved[key]["exp_avg"])


def test_a_new_layer_between_two_groups_joins_the_one_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ckpt.PlanError, match=r"'b\.weight' belongs to is not certain") as raised:
        _grow(_by_module, tmp_path)
    assert "--optimizer-group b.weight=K" in str(raised.value.hint)
    report, model = _grow(_by_module, tmp_path, optimizer_group=["b=0"])
    assert report.optimizers[0].added_groups == (0, 0)
    assert _state_of(model, _by_module, tmp_path)["head.weight"]
    report, _ = _grow(_by_module, tmp_path, optimizer_group=["b=1", "b.bias=0"])
    assert report.optimizers[0].added_groups == (1, 0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["b=2"], "there is no group 2 for 'b.weight': the optimizer has 2"),
        (["b=0", "hed=1"], "'optimizer_group hed=1' applies to nothing"),
        (["b=0", "head=1"], "'optimizer_group head=1' applies to nothing"),
        (["b"], "'optimizer_group b' names no group"),
        (["b=-1"], "names no group"),
        (["b=0", "b=1"], "gives 'b' two groups"),
    ],
)
def test_a_group_that_cannot_be_is_an_error(rules: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ckpt.CkptError, match=message):
        _grow(_by_module, tmp_path, optimizer_group=rules)


def test_a_group_for_an_optimizer_that_is_left_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ckpt.UsageError, match="no meaning with 'optimizer drop'"):
        _grow(_by_axes, tmp_path, optimizer="drop", optimizer_group=["b=0"])
    torch.save(Grown(grown=False).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ckpt.UsageError, match="applies to nothing"):
        ckpt.fit(
            tmp_path / "bare.pth", tmp_path / "o.pth", like=tmp_path / "grown.pth",
            optimizer_group=["b=0"],
        )  # fmt: skip


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
