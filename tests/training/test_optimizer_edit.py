"""Optimizers edited with their model, loaded and stepped by torch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from optimizer_helpers import describe, from_nodes, run, shapes, to_nodes, understood
from torch import nn
from training_runs import resnet, with_head

from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Dict, Global, Node, Object
from ckpt_surgery.training.optimizers import (
    Edited,
    OptimizerState,
    Target,
    align,
    correspond,
    read_optimizer,
    remove,
    rename,
)
from ckpt_surgery.training.optimizers.members import members_of

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


Groups = Callable[[nn.Module], list[dict[str, Any]]]


def one_group(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def body_and_head(model: nn.Module) -> list[dict[str, Any]]:
    parts = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return [
        {"params": [p for n, p in parts.items() if not n.startswith("fc")], "lr": 0.01},
        {"params": [p for n, p in parts.items() if n.startswith("fc")], "lr": 0.1},
    ]


def decay_and_none(model: nn.Module) -> list[dict[str, Any]]:
    parts = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parts if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parts if p.ndim > 1], "weight_decay": 0.05},
    ]


GROUPS: dict[str, Groups] = {
    "one group": one_group,
    "body and head": body_and_head,
    "decay and none": decay_and_none,
}


def freeze(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(("conv1", "layer1.0"))
    return model


def idle(name: str) -> bool:
    """Whether a parameter gets no gradient."""
    return name.startswith("layer3.1")


def trained(make: Make, groups: Groups, model: nn.Module) -> tuple[nn.Module, Any]:
    optimizer = make(groups(model))
    run(model, optimizer, range(2), idle)
    return model, optimizer


def loaded(edited: Edited, target: nn.Module, make: Make, groups: Groups) -> Any:
    optimizer = make(groups(target))
    optimizer.load_state_dict(copy.deepcopy(from_nodes(edited.node)))
    return optimizer


def assert_next_step_is_the_same(
    cut: nn.Module, cut_optimizer: Any, whole: nn.Module, optimizer: Any
) -> None:
    """Every parameter of `cut` that `whole` has is bit-identical after one more step."""
    for model, each in ((whole, optimizer), (cut, cut_optimizer)):
        run(model, each, range(2, 3), idle)
    kept = dict(cut.named_parameters())
    both = [n for n, p in whole.named_parameters() if n in kept and kept[n].shape == p.shape]
    assert len(both) >= 60
    for name in both:
        assert torch.equal(kept[name], whole.get_parameter(name)), name


CASES = [
    ("rmsprop", "one group"),
    *((kind, groups) for kind in ("momentum", "adamw fused") for groups in GROUPS),
]


@pytest.mark.parametrize(("kind", "groups"), CASES)
def test_after_a_strip_the_next_step_is_that_of_the_uncut_run(kind: str, groups: str) -> None:
    make = OPTIMIZERS[kind]
    whole, optimizer = trained(make, GROUPS[groups], freeze(resnet()))
    cut = freeze(copy.deepcopy(whole))
    cut.fc = nn.Identity()
    read = understood(optimizer.state_dict())
    edited = remove(read, correspond(read, shapes(whole)), ["fc.weight", "fc.bias"])
    assert edited.removed == (
        ("fc.bias", "fc.weight") if groups == "decay and none" else ("fc.weight", "fc.bias")
    )
    assert edited.emptied == ((1,) if groups == "body and head" else ())
    new = loaded(edited, cut, make, GROUPS[groups])
    assert_next_step_is_the_same(cut, new, whole, optimizer)


def test_without_state_nothing_shows_which_parameters_were_frozen() -> None:
    model, optimizer = trained(OPTIMIZERS["sgd"], one_group, freeze(resnet()))
    read = understood(optimizer.state_dict())
    with pytest.raises(PlanError, match="may be any of"):
        remove(read, correspond(read, shapes(model)), ["fc.weight", "fc.bias"])


@pytest.mark.parametrize(("kind", "policy"), [("momentum", "reset"), ("amsgrad", "resize")])
def test_after_a_fit_with_another_head_the_next_step_is_the_same(kind: str, policy: str) -> None:
    make = OPTIMIZERS[kind]
    whole, optimizer = trained(make, one_group, resnet())
    fitted = with_head(7)
    fitted.load_state_dict(
        {k: v for k, v in whole.state_dict().items() if k[:2] != "fc"}, strict=False
    )
    read = understood(optimizer.state_dict())
    found = correspond(read, shapes(whole))
    targets = []
    for name, parameter in fitted.named_parameters():
        key = found.key_of(name)
        assert key is not None
        moments = {m.name: m for m in read.states[key].moments} if key in read.states else {}
        if name.startswith("fc"):
            assert moments
            cut = {
                n: to_nodes(held_of(m.node)[: len(parameter)].clone()) for n, m in moments.items()
            }
            targets.append(Target(name, name, policy == "reset", cut if policy == "resize" else {}))
        else:
            targets.append(Target(name, name))
    edited = align(read, found, targets)
    assert edited.reset == (("fc.weight", "fc.bias") if policy == "reset" else ())
    assert edited.removed == edited.added == edited.emptied == ()
    new = loaded(edited, fitted, make, one_group)
    held = new.state[fitted.fc.weight]
    assert all(v.shape == fitted.fc.weight.shape for v in held.values() if v.ndim)
    assert bool(held) == (policy == "resize")
    assert_next_step_is_the_same(fitted, new, whole, optimizer)


def held_of(node: Node) -> torch.Tensor:
    held = describe(node)
    assert held is not None
    return held.tensor


def test_a_deeper_model_gets_places_for_its_new_parameters() -> None:
    make = OPTIMIZERS["adam"]
    whole, optimizer = trained(make, one_group, resnet())
    deeper = copy.deepcopy(whole)
    deeper.layer2.append(copy.deepcopy(deeper.layer2[1]))
    read = understood(optimizer.state_dict())
    old = {name for name, _ in shapes(whole)}
    targets = [Target(n, n if n in old else None) for n, _ in shapes(deeper)]
    edited = align(read, correspond(read, shapes(whole)), targets)
    assert set(edited.added) == {n for n, _ in shapes(deeper)} - old
    new = loaded(edited, deeper, make, one_group)
    assert_next_step_is_the_same(deeper, new, whole, optimizer)


# --- the form of what is edited


def small() -> nn.Module:
    return nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 4), c=nn.Linear(4, 5)))


def state(make: Make = OPTIMIZERS["adam"], *, names: bool = False, model: Any = None) -> Any:
    model = model or small()
    optimizer = make(model.named_parameters() if names else model.parameters())
    run(model, optimizer, range(1))
    return optimizer.state_dict()


def cut(value: Any, *gone: str) -> Edited:
    read = understood(value)
    return remove(read, correspond(read, shapes(small())), gone)


def plain(edited: Edited) -> Any:
    return from_nodes(edited.node)


def without_a(read: OptimizerState) -> Node:
    return remove(read, correspond(read, shapes(small())), ["a.weight"]).node


def test_removal_renumbers_and_keeps_the_options() -> None:
    before = state()
    after = plain(cut(before, "b.weight"))
    assert list(after["state"]) == [0, 1, 2, 3, 4]
    assert after["param_groups"] == [{**before["param_groups"][0], "params": [0, 1, 2, 3, 4]}]
    for old, new in zip([0, 1, 3, 4, 5], range(5), strict=True):
        assert torch.equal(after["state"][new]["exp_avg"], before["state"][old]["exp_avg"])


def test_what_is_read_is_never_changed() -> None:
    read = understood(state(names=True))
    before = from_nodes(read.node)
    node = copy.copy(read.node)
    found = correspond(read, shapes(small()))
    remove(read, found, ["a.weight"])
    rename(read, found, {"b.weight": "x"})
    align(read, found, [Target("b.weight", "b.weight", reset=True)])
    assert repr(from_nodes(read.node)) == repr(before)
    assert isinstance(node, Dict)


def test_without_a_change_the_node_is_the_same_object() -> None:
    read = understood(state(names=True))
    found = correspond(read, shapes(small()))
    assert remove(read, found, []).node is read.node
    assert remove(read, found, ["not.in.it"]).node is read.node
    assert rename(read, found, {"other": "x"}).node is read.node
    nameless = understood(state())
    assert rename(nameless, found, {"a.weight": "x"}).node is nameless.node
    same = [Target(name, name) for name, _ in shapes(small())]
    assert align(read, found, same) == Edited(read.node, members_of(read))


def test_states_that_stay_are_the_same_objects() -> None:
    read = understood(state())
    after = read_optimizer(without_a(read), describe)
    assert after is not None
    assert after.states[0].node is read.states[1].node


def test_stored_names_lose_what_is_removed_and_follow_renames() -> None:
    read = understood(state(names=True))
    found = correspond(read, shapes(small()))
    removed = plain(remove(read, found, ["b.weight", "b.bias"]))
    assert removed["param_groups"][0]["param_names"] == ["a.weight", "a.bias", "c.weight", "c.bias"]
    renamed = plain(rename(read, found, {name: f"net.{name}" for name, _ in shapes(small())}))
    assert renamed["param_groups"][0]["param_names"] == [f"net.{n}" for n, _ in shapes(small())]
    assert renamed["param_groups"][0]["params"] == list(range(6))


def test_names_as_keys_follow_too() -> None:
    value = {
        "state": {"a.weight": {"momentum_buffer": torch.ones(3, 2)}, "b.bias": {}},
        "param_groups": [{"params": ["a.weight", "b.bias"]}],
    }
    read = understood(value)
    found = correspond(read, shapes(small()))
    after = plain(rename(read, found, {"a.weight": "x"}))
    assert list(after["state"]) == after["param_groups"][0]["params"] == ["x", "b.bias"]
    after = plain(remove(read, found, ["a.weight"]))
    assert list(after["state"]) == after["param_groups"][0]["params"] == ["b.bias"]


def test_indices_that_do_not_count_from_zero_stay_as_they_are() -> None:
    value = state()
    ids = [140, 17, 30, 99, 5, 60]  # torch before 1.6 stored id(parameter)
    value["param_groups"][0]["params"] = ids
    value["state"] = {ids[i]: v for i, v in value["state"].items()}
    assert plain(cut(value, "b.bias"))["param_groups"][0]["params"] == [140, 17, 30, 5, 60]
    read = understood(value)
    targets = [Target(n, n) for n, _ in shapes(small())]
    targets.insert(2, Target("new", None))
    after = plain(align(read, correspond(read, shapes(small())), targets))
    assert after["param_groups"][0]["params"] == [140, 17, 141, 30, 99, 5, 60]


def test_state_of_no_parameter_is_carried_over() -> None:
    value = state()
    value["state"]["global"] = {"n": 3}
    value["state"][None] = 4
    value["more"] = 5
    after = plain(cut(value, "a.weight"))
    assert after["state"]["global"] == {"n": 3}
    assert after["state"][None] == 4
    assert after["more"] == 5


def test_state_of_no_parameter_in_the_way_is_refused() -> None:
    value = state()
    value["state"][6] = {}
    read = understood(value)
    targets = [*(Target(n, n) for n, _ in shapes(small())), Target("new", None)]
    with pytest.raises(PlanError, match="state 6 of no parameter"):
        align(read, correspond(read, shapes(small())), targets)


def test_a_mapping_keeps_its_class() -> None:
    value = to_nodes(state())
    assert isinstance(value, Dict)
    ordered = Object("REDUCE", Global("collections", "OrderedDict"), (), items=value.items)
    read = read_optimizer(ordered, describe)
    assert read is not None
    node = without_a(read)
    assert isinstance(node, Object)
    assert node.name == "collections.OrderedDict"
    old_style = Object("REDUCE", Global("collections", "OrderedDict"),
                       ([[k, v] for k, v in value.pairs()],))  # fmt: skip
    read = read_optimizer(old_style, describe)
    assert read is not None
    node = without_a(read)
    assert isinstance(node, Object)
    assert (node.args, len(node.items or [])) == ((), 4)


# --- what is refused


def test_groups_without_state_are_refused() -> None:
    model = small()
    parameters = list(model.parameters())
    value = torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}]).state_dict()
    with pytest.raises(PlanError, match=r"may be any of 'a\.weight'") as caught:
        cut(value, "c.weight")
    assert "--optimizer drop" in (caught.value.hint or "")


def test_doubt_about_other_parameters_does_not_hinder() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 5)))
    optimizer = OPTIMIZERS["adam"]([model.a.weight, *model.c.parameters()])
    run(model, optimizer, range(1))
    read = understood(optimizer.state_dict())
    found = correspond(read, shapes(model))
    assert found.certainty == "partial"
    assert remove(read, found, ["c.weight", "c.bias"]).removed == ("c.weight", "c.bias")
    with pytest.raises(PlanError, match=r"'a\.weight', 'b\.weight'"):
        remove(read, found, ["a.weight"])
    kept = [Target(name, name) for name, _ in shapes(model)]
    changed = [replace(t, reset=t.name == "c.weight") for t in kept]
    edited = align(read, found, changed)
    assert edited.reset == ("c.weight",)
    assert list(plain(edited)["state"]) == [0, 2]
    assert align(read, found, [Target("c.bias", "c.bias")]).removed == (
        "a.weight or b.weight",
        "c.weight",
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda targets: targets[1:],
        lambda targets: [replace(t, reset=t.name == "b.weight") for t in targets],
        lambda targets: [*targets[2:4], *targets[:2], *targets[4:]],
        lambda targets: [*targets[:2], Target("new", None), *targets[2:]],
        lambda targets: [*targets, Target("new", None)],
    ],
    ids=["removed", "begun anew", "moved", "neighbour", "after the last"],
)
def test_doubt_about_what_changes_is_refused(change: Any) -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 5)))
    optimizer = OPTIMIZERS["adam"]([model.a.weight, *model.c.parameters()])
    run(model, optimizer, range(1))
    read = understood(optimizer.state_dict())
    names = [name for name, _ in shapes(model)]
    targets = change([Target(name, name) for name in names])
    with pytest.raises(PlanError, match=r"'a\.weight', 'b\.weight'|'new'"):
        align(read, correspond(read, shapes(model)), targets, names)


def test_what_is_new_takes_its_place_among_certain_neighbours() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 3), c=nn.Linear(3, 5)))
    optimizer = OPTIMIZERS["adam"]([model.b.weight, model.c.weight, model.c.bias])
    run(model, optimizer, range(1))
    read = understood(optimizer.state_dict())
    found = correspond(read, shapes(model))
    targets = [Target(name, name) for name, _ in shapes(model)]
    targets.insert(5, Target("new", None))
    edited = align(read, found, targets)
    assert edited.added == ("new",)
    assert plain(edited)["param_groups"][0]["params"] == [0, 1, 2, 3]
    assert list(plain(edited)["state"]) == [0, 1, 3]


def test_a_model_in_another_order_takes_its_optimizer_along() -> None:
    value = state()
    read = understood(value)
    order = ["c.weight", "c.bias", "a.weight", "a.bias", "b.weight", "b.bias"]
    names = [name for name, _ in shapes(small())]
    edited = align(read, correspond(read, shapes(small())), [Target(n, n) for n in order], names)
    after = plain(edited)
    assert after["param_groups"][0]["params"] == list(range(6))
    for new, name in enumerate(order):
        old = value["state"][names.index(name)]
        assert torch.equal(after["state"][new]["exp_avg"], old["exp_avg"])


def test_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be told"):
        cut(state(model=nn.Linear(9, 9)), "a.weight")


def test_parameters_of_other_modules_stay_and_cannot_be_aligned() -> None:
    value = state(names=True)
    value["param_groups"][0]["param_names"][0] = "loss.weight"
    read = understood(value)
    found = correspond(read, shapes(small()))
    after = plain(remove(read, found, ["b.bias"]))
    assert after["param_groups"][0]["param_names"][0] == "loss.weight"
    with pytest.raises(PlanError, match=r"'loss\.weight'"):
        align(read, found, [Target("b.bias", "b.bias")])


def two_groups(model: Any) -> Any:
    optimizer = OPTIMIZERS["adam"](
        [
            {"params": [*model.a.parameters(), *model.b.parameters()]},
            {"params": model.c.parameters()},
        ]
    )
    run(model, optimizer, range(1))
    return optimizer.state_dict()


def aligned(value: Any, place: int, name: str = "new") -> Edited:
    read = understood(value)
    targets = [Target(n, n) for n, _ in shapes(small())]
    targets.insert(place, Target(name, None))
    return align(read, correspond(read, shapes(small())), targets)


@pytest.mark.parametrize(("place", "sizes"), [(1, [5, 2]), (3, [5, 2]), (5, [4, 3])])
def test_a_new_parameter_joins_the_group_of_both_neighbours(place: int, sizes: list[int]) -> None:
    after = plain(aligned(two_groups(small()), place))
    assert [len(group["params"]) for group in after["param_groups"]] == sizes


@pytest.mark.parametrize("place", [0, 4, 6])
def test_a_new_parameter_between_groups_is_refused(place: int) -> None:
    with pytest.raises(PlanError, match="'new'"):
        aligned(two_groups(small()), place)


def test_a_new_parameter_among_frozen_ones_stays_out() -> None:
    model = small()
    optimizer = OPTIMIZERS["adam"](model.c.parameters())  # type: ignore[union-attr]
    run(model.c, optimizer, range(1))  # type: ignore[arg-type]
    edited = aligned(optimizer.state_dict(), 1)
    assert edited.node is not None
    assert edited.added == ()
    assert [len(g["params"]) for g in plain(edited)["param_groups"]] == [2]


def test_where_nothing_old_is_left_one_group_takes_what_is_new() -> None:
    read = understood(state())
    found = correspond(read, shapes(small()))
    edited = align(read, found, [Target("x", None), Target("y", None)])
    assert edited.added == ("x", "y")
    assert len(edited.removed) == 6
    assert plain(edited)["param_groups"][0]["params"] == [0, 1]
    assert plain(edited)["state"] == {}


def test_a_group_in_another_order_than_the_model_is_refused() -> None:
    value = state(names=True)
    group = value["param_groups"][0]
    group["params"].reverse()
    group["param_names"].reverse()
    read = understood(value)
    with pytest.raises(PlanError, match="another order"):
        align(read, correspond(read, shapes(small())), [Target(n, n) for n, _ in shapes(small())])


def test_align_follows_renames() -> None:
    read = understood(state(names=True))
    found = correspond(read, shapes(small()))
    edited = align(read, found, [Target(f"net.{n}", n) for n, _ in shapes(small())])
    names = plain(edited)["param_groups"][0]["param_names"]
    assert names == [f"net.{n}" for n, _ in shapes(small())]


def test_align_leaves_a_name_that_differs_only_by_a_wrapper() -> None:
    read = understood(state(names=True))
    model = [(f"module.{name}", shape) for name, shape in shapes(small())]
    edited = align(read, correspond(read, model), [Target(name, name) for name, _ in model])
    assert edited.node is read.node
