"""Freeze plans on live models, with real training steps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_surgery.errors import PlanError
from ckpt_surgery.formats import read
from ckpt_surgery.freeze.build import FreezeRecipe, FreezeRule, GroupRule, Stage
from ckpt_surgery.freeze.emit import _to_json, _to_python
from ckpt_surgery.freeze.live import FreezePlan, inventory_of
from ckpt_surgery.freeze.plan import Totals
from ckpt_surgery.freeze.selectors import (
    Before,
    ByName,
    First,
    FirstChildren,
    Until,
    _Everything,
    _Head,
)
from ckpt_surgery.names import Rule as NameRule
from ckpt_surgery.training.parameters import Inventory, NamedEntry

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1),
}


def prefix(text: str) -> ByName:
    return ByName(NameRule("prefix", text), text, f"--prefix {text}")


def freeze(text: str) -> FreezeRule:
    return FreezeRule("freeze", prefix(text))


class Net(nn.Module):
    """A backbone with norms of every kind under `resnet`, and modules added around it."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.BatchNorm2d(4, affine=False),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 36, 6),
            nn.BatchNorm1d(6),
        )
        self.added = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.drop(self.added(self.resnet(x))))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def steps(model: nn.Module, groups: Any, make: Any, mode: Any, count: int = 3) -> Any:
    optimizer = make(groups)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        mode(model)
        optimizer.zero_grad()
        out = model(torch.randn(8, 3, 8, 8, generator=generator))
        nn.functional.cross_entropy(out, torch.arange(8) % 3).backward()
        optimizer.step()
    return optimizer


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_frozen_backbone_is_bit_identical_after_real_steps(net: Net, kind: str) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    before = copy.deepcopy(net.state_dict())
    groups = plan.apply(net)
    optimizer = steps(net, groups, OPTIMIZERS[kind], plan.train_mode)
    differing = changed(before, net)
    assert not {name for name in differing if name.startswith("resnet.")}
    assert differing == {name for name in before if not name.startswith("resnet.")}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in net.named_parameters() if not n.startswith("resnet.")}


def test_plain_train_mode_would_move_the_frozen_statistics(net: Net) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    before = copy.deepcopy(net.state_dict())
    steps(net, plan.apply(net), OPTIMIZERS["sgd"], lambda model: model.train())
    (warning,) = (w for w in plan.warnings if w.code == "moving-statistics")
    moved = {name.rpartition(".")[0] for name in changed(before, net) if name.startswith("resnet")}
    assert set(warning.names) == moved == {"resnet.1", "resnet.3", "resnet.4", "resnet.8"}


def test_dropout_of_frozen_parts_rests_on_request(net: Net) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    plan.apply(net)
    plan.train_mode(net)
    assert net.resnet[5].training
    assert net.drop.training
    assert plan.train_mode(net, dropout=False) is net
    assert not net.resnet[5].training
    assert net.drop.training


def test_a_norm_that_trains_in_part_stays_in_train_mode(net: Net) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("added.weight")]))
    plan.train_mode(net)
    assert net.added.training


@pytest.mark.parametrize("module", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
                                    nn.SyncBatchNorm, nn.InstanceNorm3d])  # fmt: skip
def test_every_norm_with_statistics_rests(module: Any) -> None:
    norm = module(2, affine=True, track_running_stats=True)
    model = nn.Sequential(norm, nn.Linear(2, 2))
    plan = FreezePlan.for_model(model, FreezeRecipe([freeze("0")]))
    plan.train_mode(model)
    assert (norm.training, model[1].training, model.training) == (False, True, True)


def test_norms_without_statistics_are_left_in_train_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2))
    FreezePlan.for_model(model, FreezeRecipe([freeze("0")])).train_mode(model)
    assert model[0].training


# --- which parameters the positions of a plan take (rows R5, R6, R11)


class HalfWay(nn.Module):
    """Everything defined before `stop` is fixed, the idiom that `Before` and `Until` replace."""

    def __init__(self, stop: str) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(1, 2, 3),
            "pool": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(2, 2, 3),
            "bn": nn.BatchNorm2d(2),
            "fc1": nn.Linear(2, 2),
            "fc2": nn.Linear(2, 2),
        }
        for name, part in parts.items():
            if name == stop:
                for parameter in self.parameters():
                    parameter.requires_grad = False
            self.add_module(name, part)


def fixed(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("stop", ["pool", "conv2", "bn", "fc1", "fc2"])
def test_before_is_a_stop_half_way_through_init(stop: str) -> None:
    model = HalfWay("nowhere")
    FreezePlan.for_model(model, FreezeRecipe([FreezeRule("freeze", Before(stop))])).apply(model)
    assert fixed(model) == fixed(HalfWay(stop))


def test_until_takes_the_named_module_too() -> None:
    model = HalfWay("nowhere")
    FreezePlan.for_model(model, FreezeRecipe([FreezeRule("freeze", Until("conv2"))])).apply(model)
    assert fixed(model) == fixed(HalfWay("bn"))


@pytest.mark.parametrize("count", range(1, 9))
def test_first_is_the_index_over_parameters(net: Net, count: int) -> None:
    by_hand = copy.deepcopy(net)
    for index, parameter in enumerate(by_hand.parameters()):
        parameter.requires_grad = index >= count
    FreezePlan.for_model(net, FreezeRecipe([FreezeRule("freeze", First(count))])).apply(net)
    assert fixed(net) == fixed(by_hand)
    entries = [NamedEntry(n, tuple(t.shape), str(t.dtype)[6:]) for n, t in net.state_dict().items()]
    from_file = FreezePlan.build(
        Inventory.of(entries), FreezeRecipe([FreezeRule("freeze", First(count))])
    )
    from_file.apply(net)
    assert fixed(net) == fixed(by_hand)


@pytest.mark.parametrize("count", range(1, 6))
def test_first_children_counts_children_without_parameters(count: int) -> None:
    by_hand = HalfWay("nowhere")
    for index, child in enumerate(by_hand.children()):
        for parameter in child.parameters():
            parameter.requires_grad = index >= count
    model = HalfWay("nowhere")
    FreezePlan.for_model(model, FreezeRecipe([FreezeRule("freeze", FirstChildren(count))])).apply(
        model
    )
    assert fixed(model) == fixed(by_hand)


# --- groups (rows R17, R18)


def fc_plan(net: nn.Module) -> FreezePlan:
    return FreezePlan.for_model(
        net, FreezeRecipe([freeze("resnet.0")], [GroupRule(prefix("fc"), {"lr": 1e-2})], lr=1e-3)
    )


def test_groups_are_what_an_optimizer_takes(net: Net) -> None:
    groups = fc_plan(net).apply(net)
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    rates = {g["name"]: (g["lr"], g["momentum"]) for g in optimizer.param_groups}
    assert rates == {"base": (1e-3, 0.9), "fc": (1e-2, 0.9)}
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert len(set(members)) == len(members)


def test_groups_may_be_used_twice(net: Net) -> None:
    groups = fc_plan(net).apply(net)
    first, second = (torch.optim.SGD(groups, lr=1.0) for _ in range(2))
    assert [len(g["params"]) for g in first.param_groups] == [
        len(g["params"]) for g in second.param_groups
    ]


def test_named_groups_leave_the_names_in_the_optimizers_state(net: Net) -> None:
    optimizer = torch.optim.SGD(fc_plan(net).apply(net, named=True), lr=1.0)
    names = [group["param_names"] for group in optimizer.state_dict()["param_groups"]]
    assert names[1] == ["fc.weight", "fc.bias"]


def load_python(text: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(text, "plan.py", "exec"), namespace)  # noqa: S102  # our own text
    return namespace


def same_groups(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    def flat(groups: list[dict[str, Any]]) -> list[Any]:
        return [{**g, "params": [id(p) for p in g["params"]]} for g in groups]

    return flat(a) == flat(b)


RECIPES = [
    FreezeRecipe(),
    FreezeRecipe([freeze("resnet")]),
    FreezeRecipe([freeze("resnet"), FreezeRule("train", prefix("resnet.7"))], lr=0.1),
    FreezeRecipe(lr=1.0, layer_decay=0.75, weight_decay=0.05, no_decay=("bias", "norm")),
    FreezeRecipe(
        [FreezeRule("freeze", First(5))],
        [GroupRule(prefix("fc"), {"lr": 1e-2, "nesterov": False})],
        [Stage(4, _Everything())],
        lr=1e-3,
        head_multiplier=10,
    ),
]


@pytest.mark.parametrize(("recipe", "epoch"), list(itertools.product(RECIPES, [0, 4])))
def test_emitted_python_gives_the_groups_of_apply(
    net: Net, recipe: FreezeRecipe, epoch: int
) -> None:
    plan = FreezePlan.for_model(net, recipe)
    emitted = load_python(_to_python(plan))
    for model in (net, nn.DataParallel(net), compiled(net)):
        wanted = plan.at(epoch).apply(model)
        frozen = fixed(net)
        net.requires_grad_(requires_grad=True)
        assert same_groups(emitted["parameter_groups"](model, epoch), wanted)
        assert fixed(net) == frozen
        plan.at(epoch).train_mode(model)
        modes = [m.training for m in net.modules()]
        net.eval()
        emitted["train_mode"](model)
        assert [m.training for m in net.modules()] == modes


def test_emitted_python_refuses_another_model(net: Net) -> None:
    emitted = load_python(_to_python(FreezePlan.for_model(net, RECIPES[1])))
    with pytest.raises(ValueError, match="does not know the parameter"):
        emitted["parameter_groups"](nn.Linear(2, 2))
    net.resnet.append(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="the model has 16"):
        emitted["parameter_groups"](net)


def test_emitted_python_keeps_a_child_that_is_called_module() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "fc": nn.Linear(2, 2)})
    plan = FreezePlan.for_model(model, FreezeRecipe([freeze("module")]))
    emitted = load_python(_to_python(plan))
    assert same_groups(emitted["parameter_groups"](model), plan.apply(model))
    assert fixed(model) == {"module.weight", "module.bias"}


def test_a_plan_that_went_through_a_file_is_the_same(net: Net, tmp_path: Path) -> None:
    plan = FreezePlan.for_model(net, RECIPES[4])
    path = tmp_path / "plan.json"
    path.write_text(_to_json(plan), encoding="utf-8")
    loaded = FreezePlan.load(path)
    assert isinstance(loaded, FreezePlan)
    assert same_groups(loaded.apply(net), plan.apply(net))


# --- stages


def test_stages_unfreeze_without_losing_state(net: Net) -> None:
    plan = FreezePlan.for_model(
        net, FreezeRecipe(stages=[Stage(0, _Head()), Stage(2, prefix("added"))])
    )
    optimizer = steps(net, plan.apply(net), OPTIMIZERS["momentum"], plan.train_mode)
    before = copy.deepcopy(net.state_dict())
    buffer = optimizer.state[net.fc.weight]["momentum_buffer"]
    (added,) = plan.at(2).add_to(optimizer, net)
    assert [id(p) for p in added["params"]] == [id(net.added.weight), id(net.added.bias)]
    assert optimizer.state[net.fc.weight]["momentum_buffer"] is buffer
    assert plan.at(2).add_to(optimizer, net) == []
    steps(net, optimizer.param_groups, lambda _: optimizer, plan.at(2).train_mode)
    assert {n for n in changed(before, net) if "resnet" in n} == set()
    assert {"added.weight", "added.bias", "added.running_mean"} <= changed(before, net)


# --- wrappers


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")  # wraps alike, without loading the compiler


def wrap_inside(net: Net) -> nn.Module:
    net.resnet = compiled(net.resnet)
    return net


WRAPPERS: dict[str, Callable[[Net], Any]] = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled data parallel": lambda net: compiled(nn.DataParallel(net)),
    "data parallel of compiled": lambda net: nn.DataParallel(compiled(net)),
    "compiled inside": wrap_inside,
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_seen_through(net: Net, kind: str) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    wrapped = WRAPPERS[kind](net)
    assert plan.check(wrapped).ok
    plan.apply(wrapped)
    assert len(fixed(wrapped)) == 10
    assert all("resnet." in name for name in fixed(wrapped))
    plan.train_mode(wrapped)
    assert sum(not m.training for m in wrapped.modules()) == 4
    again = FreezePlan.for_model(wrapped, FreezeRecipe([freeze("resnet")]))
    assert [(p.name, p.train_from) for p in again.parameters] == [
        (p.name, p.train_from) for p in plan.parameters
    ]


def test_distributed_data_parallel_is_seen_through(net: Net, process_group: None) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    plan.apply(net)
    wrapped = nn.parallel.DistributedDataParallel(net)
    before = copy.deepcopy(net.state_dict())
    steps(wrapped, plan.apply(wrapped), OPTIMIZERS["momentum"], plan.train_mode)
    assert {name.split(".")[0] for name in changed(before, net)} == {"added", "fc"}


@pytest.mark.parametrize("kind", ["data parallel", "compiled", "compiled data parallel",
                                  "data parallel of compiled"])  # fmt: skip
def test_a_plan_from_a_wrapped_models_file_fits_the_bare_model(net: Net, kind: str) -> None:
    state = WRAPPERS[kind](net).state_dict()
    entries = [NamedEntry(n, tuple(t.shape), str(t.dtype)[6:]) for n, t in state.items()]
    plan = FreezePlan.build(Inventory.of(entries), FreezeRecipe([FreezeRule("train", _Head())]))
    assert plan.check(net).ok
    plan.apply(net)
    assert len(fixed(net)) == len(list(net.parameters())) - 2


# --- fit


def test_what_does_not_fit_is_reported_and_nothing_is_changed(net: Net) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    net.fc = nn.Linear(6, 5)
    net.more = nn.Linear(1, 1)
    del net.added
    fit = plan.check(net)
    assert fit.missing == ("added.weight", "added.bias")
    assert fit.unexpected == ("more.weight", "more.bias")
    assert fit.mismatched == (("fc.weight", (3, 6), (5, 6)), ("fc.bias", (3,), (5,)))
    with pytest.raises(PlanError, match=r"missing in the model: 'added\.weight', 'added\.bias'"):
        plan.apply(net)
    assert fixed(net) == set()


def test_a_fit_that_holds_says_so(net: Net) -> None:
    fit = FreezePlan.for_model(net, FreezeRecipe()).check(net)
    assert (fit.ok, str(fit)) == (True, "the plan fits the model")


def test_a_long_list_is_cut(net: Net) -> None:
    fit = FreezePlan.for_model(net, FreezeRecipe()).check(nn.Linear(1, 1))
    assert "and 11 more" in str(fit)


def test_parameters_tied_in_the_model_must_be_treated_alike() -> None:
    loose = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plan = FreezePlan.for_model(loose, FreezeRecipe([freeze("a.weight")]))
    tied = copy.deepcopy(loose)
    tied["b"].weight = tied["a"].weight
    assert plan.check(tied).tied == (("a.weight", "b.weight"),)
    with pytest.raises(PlanError, match=r"'a\.weight = b\.weight'"):
        plan.apply(tied)
    alike = FreezePlan.for_model(loose, FreezeRecipe([FreezeRule("train", _Head())]))
    alike_plan = FreezePlan.for_model(tied, FreezeRecipe([freeze("a.weight")]))
    assert not alike.check(tied).ok
    assert alike_plan.check(tied).ok
    assert alike_plan.check(loose).ok


def test_an_inventory_tells_what_a_file_cannot(net: Net) -> None:
    inventory = inventory_of(net)
    assert inventory.structure is not None
    assert inventory.structure.children == ("resnet", "added", "drop", "fc")
    assert inventory.structure.modules["resnet.1"] == "norm"
    assert inventory.structure.modules["drop"] == "dropout"
    assert inventory.structure.modules["resnet"] == "other"
    assert inventory.guessed == 0
    assert [p.name for p in inventory.parameters] == [n for n, _ in net.named_parameters()]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_bytes_of_optimizer_state_are_those_that_torch_allocates(net: Net, kind: str) -> None:
    plan = FreezePlan.for_model(net, FreezeRecipe([freeze("resnet")]))
    optimizer = steps(net, plan.apply(net), OPTIMIZERS[kind], plan.train_mode)
    held = [
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    assert Totals.of(plan.trainable).nbytes[kind] == sum(held)
    gradients = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    assert Totals.of(plan.trainable).nbytes["gradients"] == gradients


def test_a_plan_from_a_file_that_torch_saved_fits_its_model(net: Net, tmp_path: Path) -> None:
    net.twin = nn.Linear(6, 3)
    net.twin.weight = net.fc.weight
    path = tmp_path / "net.pth"
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, path)
    with read(path) as checkpoint:
        inventory = Inventory.of_state_dict(checkpoint.state_dicts[0])
    assert [p.name for p in inventory.parameters] == [n for n, _ in net.named_parameters()]
    assert inventory.parameters[-3].aliases == ("twin.weight",)
    assert inventory.statistics == ("resnet.1", "resnet.3", "resnet.4", "resnet.8", "added")
    assert FreezePlan.build(inventory, FreezeRecipe([freeze("resnet")])).check(net).ok


def test_the_plan_is_a_public_name() -> None:
    import ckpt_surgery

    assert ckpt_surgery.FreezePlan is FreezePlan
