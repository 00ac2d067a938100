"""Training state is one thing for every command: known by its form, else by a name it may have."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import framework
from optimizer_helpers import run, to_nodes
from torch import nn
from torch.optim import lr_scheduler
from torch_checks import save

import ckpt_surgery
from ckpt_surgery.errors import UsageError
from ckpt_surgery.pickles import Dict, Global, Node, Object
from ckpt_surgery.torch_objects.training_state import (
    TrainingStates,
    _is_training_state,
    holds_optimizer,
)


def form(value: Any) -> str | None:
    return TrainingStates().form(to_nodes(value))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def trained(make: Any = torch.optim.Adam, **options: Any) -> dict[str, Any]:
    model = net()
    optimizer = make(model.parameters(), lr=0.1, **options)
    run(model, optimizer, range(2))
    state: dict[str, Any] = optimizer.state_dict()
    return state


def schedulers() -> list[Any]:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1, momentum=0.9)
    first = lr_scheduler.StepLR(optimizer, 2)
    return [
        first,
        lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        lr_scheduler.CosineAnnealingLR(optimizer, 5),
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5),
        lr_scheduler.LambdaLR(optimizer, float),
        lr_scheduler.ReduceLROnPlateau(optimizer),
        lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5),
        lr_scheduler.PolynomialLR(optimizer),
        torch.optim.swa_utils.SWALR(optimizer, 0.1),
        lr_scheduler.ChainedScheduler([first]),
        lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ConstantLR(optimizer), first], [1]),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_scheduler_of_torch_is_recognised() -> None:
    for scheduler in schedulers():
        state = {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"}
        assert form(state) == "scheduler"
        assert form([state]) == "schedulers"
        assert _is_training_state("any_name", to_nodes(state))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedulers_of_any_name_are_shown_and_removed_alike(tmp_path: Path) -> None:
    """Some of them were shown as schedulers, and kept by `strip --training-state`."""
    beside: dict[str, Any] = {f"s{i}": s.state_dict() for i, s in enumerate(schedulers())}
    beside["s4"].pop("lr_lambdas")
    beside |= {"lr_sched": {"gamma": 0.1}, "scaler2": torch.amp.GradScaler("cpu").state_dict()}
    beside |= {"opts": [trained()], "opt": trained()}
    file = save({"model": net().state_dict(), "epoch": 3, **beside}, tmp_path / "t.pth")
    shown = ckpt_surgery.inspect(file).training
    assert set(shown) == set(beside)
    report = ckpt_surgery.strip(file, tmp_path / "out.pth", training_state=True)
    assert set(report.dropped) == set(beside)
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == ["model", "epoch"]


def test_timm_schedulers_are_recognised() -> None:
    scheduler = framework("timm.scheduler")
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    for made in (
        scheduler.CosineLRScheduler(optimizer, 10),
        scheduler.StepLRScheduler(optimizer, 10),
        scheduler.MultiStepLRScheduler(optimizer, [3]),
        scheduler.TanhLRScheduler(optimizer, 10),
        scheduler.PolyLRScheduler(optimizer, 10),
    ):
        assert form(made.state_dict()) == "scheduler"


# As these projects write them: mmengine 0.10, Lightning 2.6, Trainer of transformers 5,
# accelerate 1.15, apex, fastai 2.8.
LEFT_BY_FRAMEWORKS = [
    ("param_schedulers", [{"param_name": "lr", "begin": 0, "by_epoch": True, "base_values": [0.1],
                           "last_step": 1, "_global_step": 2, "_last_value": [0.1]}], "schedulers"),
    ("message_hub", {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}, "log"),
    ("loops", {"fit_loop": {}, "validate_loop": {}}, "loops"),
    ("callbacks", {"ModelCheckpoint{'monitor': None}": {"best": 1}}, "callbacks"),
    ("MixedPrecision", {"scale": 1.0, "growth_factor": 2.0}, "scaler"),
    ("rng.pth", {"python": (3, (1,), None), "numpy": ("MT19937",), "cpu": [1]}, "rng"),
    ("x", {"step": 1, "random_state": (3,), "numpy_random_seed": (1,), "torch_manual_seed": 2},
     "rng"),
    ("amp", {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}}, "scaler"),
    ("scaler", {}, "scaler"),
    ("opt", {"state": [{"do_wd": True}], "hypers": [{"lr": 0.1}]}, "optimizer"),
    ("extra_state/train_iterator", {"epoch": 3}, "loops"),
    ("last_optimizer_state", {"anything": [1]}, "optimizer"),
    ("optimizer", None, "optimizer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "kind"), LEFT_BY_FRAMEWORKS)
def test_what_frameworks_leave_is_recognised(name: str, value: Any, kind: str) -> None:
    assert TrainingStates().kind(name, to_nodes(value)) == kind


OPTIONS = Object("NEWOBJ", Global("argparse", "Namespace"), (), state=Dict(["lr", 0.1]))


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("data_scaler", Dict(["means", [1.0], "stds", [1.0]])),  # scales the data, not gradients
        ("scaler", Dict(["means", [1.0], "stds", [1.0]])),
        ("scaler", Object("NEWOBJ", Global("sklearn.preprocessing", "StandardScaler"), ())),
        ("opt", Dict(["lr", 0.1, "betas", [0.9, 0.99]])),  # the options of a run
        ("opt", OPTIONS),
        ("opts", [1, 2]),
        ("optimizer", "AdamW"),
        ("lr_scheduler", 3),
        ("amp", True),
        ("optimizer/epoch", 3),
        ("adopted", []),
        ("x", Dict(["state", Dict()])),
        ("x", Dict(["last_epoch", 1, "best", 2])),
        ("epoch", 3),
        ("x" * 300 + "/optimizer" + "s" * 200, Dict()),
    ],
)
def test_a_name_alone_does_not_make_training_state(name: str, node: Node) -> None:
    assert not _is_training_state(name, node)


@pytest.mark.parametrize(
    "node",
    [3, "x", [], [{}], {}, {"epoch": 3}, {"last_epoch": 3}, OrderedDict(weight=1), [[trained()]],
     {0: 1}, {"0": {"w": 1}}, {True: {"step": 1}}, {"state.x": 1}, [{"lr": 1}] * 70],
)  # fmt: skip
def test_nothing_else_has_the_form_of_training_state(node: object) -> None:
    assert form(node) is None


def test_what_lists_hold_is_looked_at_once() -> None:
    loop: list[Node] = []
    loop.append(loop)
    assert TrainingStates().form(loop) is None
    big = Dict([0, Dict(["step", 1])] * 1_000_000)
    states = TrainingStates()
    assert all(states.form(big) == "optimizer" for _ in range(1000))
    holder, other = Dict(["a", big]), Dict(["a", 1])
    assert states.holds_optimizers(holder)
    assert not states.holds_optimizers(other)


FILES = {
    "adam": trained(),
    "amsgrad": trained(amsgrad=True),
    "sgd": trained(torch.optim.SGD, momentum=0.9),
    "plain_sgd": trained(torch.optim.SGD),
    "adagrad": trained(torch.optim.Adagrad),
    "state": trained()["state"],
    "texts": {str(key): value for key, value in trained()["state"].items()},
    "list": [trained(), trained()],
    "flattened": {
        "state.0.weight.step": torch.tensor(1.0),
        "state.0.weight.exp_avg": torch.ones(4, 3),
        "param_groups.0.weight.lr": 0.1,
    },
    "scheduler": lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), 0.1), 1).state_dict(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_an_optimizer_holds_no_model(name: str, tmp_path: Path) -> None:
    """As transformers' Trainer, accelerate and stable-baselines3 leave one beside the model."""
    file = save(FILES[name], tmp_path / "optimizer.pt")
    report = ckpt_surgery.inspect(file)
    assert report.state_dicts == ()
    (other,) = report.others
    kinds = {"list": "optimizers", "scheduler": "scheduler"}
    assert (other.path, report.training[""].kind) == ("", kinds.get(name, "optimizer"))
    with pytest.raises(UsageError, match="nothing would remain"):
        ckpt_surgery.strip(file, tmp_path / "out.pth", training_state=True)
    with pytest.raises(UsageError, match="no state dict"):
        ckpt_surgery.rename(file, tmp_path / "out.pth", [ckpt_surgery.AddPrefix("m")])


def test_several_optimizers_in_one_file_are_several(tmp_path: Path) -> None:
    state = trained()
    report = ckpt_surgery.inspect(save({"a": state, "b": state}, tmp_path / "two.pth"))
    assert report.state_dicts == ()
    assert {path: facts.kind for path, facts in report.training.items()} == dict.fromkeys(
        ("a", "b"), "optimizer"
    )


def test_a_model_beside_the_parts_of_an_optimizer_is_found(tmp_path: Path) -> None:
    value = {**trained(), "net": net().state_dict()}
    report = ckpt_surgery.inspect(save(value, tmp_path / "odd.pth"))
    assert [s.path for s in report.state_dicts] == ["net"]
    assert {other.path for other in report.others} == {"state", "param_groups"}


def test_training_state_below_other_things_goes_alone(tmp_path: Path) -> None:
    trainer = {"name": "run", "optimizer": trained(), "best": 0.5}
    file = save({"model": net().state_dict(), "trainer": trainer}, tmp_path / "t.pth")
    assert set(ckpt_surgery.inspect(file).training) == {"trainer/optimizer"}
    ckpt_surgery.strip(file, tmp_path / "out.pth", training_state=True)
    left = torch.load(tmp_path / "out.pth", weights_only=True)
    assert left["trainer"] == {"name": "run", "best": 0.5}


def test_options_that_are_called_opt_survive(tmp_path: Path) -> None:
    value = {
        "model": net().state_dict(),
        "opt": {"lr": 0.1, "betas": [0.9, 0.99]},
        "data_scaler": {"means": [0.5], "stds": [2.0]},
        "args": argparse.Namespace(lr=0.1),
        "optimizer": trained(),
    }
    file = save(value, tmp_path / "t.pth")
    ckpt_surgery.strip(file, tmp_path / "out.pth", training_state=True)
    left = torch.load(tmp_path / "out.pth", weights_only=False)
    assert list(left) == ["model", "opt", "data_scaler", "args"]
    assert left["opt"] == value["opt"]


@pytest.mark.parametrize("wrap", [dict, OrderedDict])
def test_statistics_beside_a_model_are_no_second_model(wrap: Any, tmp_path: Path) -> None:
    """`--add-prefix` renamed them, and `--state-dict-only` refused two state dicts."""
    normalizer = wrap({"mean": torch.tensor(1.5), "std": torch.tensor(2.0)})
    value = {"state_dict": net().state_dict(), "normalizer": normalizer}
    file = save(value, tmp_path / "norm.pth")
    assert [s.path for s in ckpt_surgery.inspect(file).state_dicts] == ["state_dict"]
    ckpt_surgery.convert(file, tmp_path / "out.pth", state_dict_only=True)
    assert list(torch.load(tmp_path / "out.pth")) == list(net().state_dict())
    (alone,) = ckpt_surgery.inspect(save({"n": normalizer}, tmp_path / "n.pth")).state_dicts
    assert (alone.path, alone.names) == ("n", ["mean", "std"])


@pytest.mark.parametrize(
    ("names", "is_model"),
    [
        (("target_mean", "target_std"), False),
        (("obs_rms_mean", "obs_rms_var", "count"), False),
        (("mu", "sigma"), False),
        (("weight_mean", "weight_std"), True),  # of a Bayesian layer
        (("mean", "weight"), True),
    ],
)
def test_statistics_beside_a_model_are_known_by_their_names(
    names: tuple[str, ...], is_model: bool, tmp_path: Path
) -> None:
    beside = {name: torch.ones(2) for name in names}
    file = save({"model": net().state_dict(), "beside": beside}, tmp_path / "f.pth")
    found = [each.path for each in ckpt_surgery.inspect(file).state_dicts]
    assert found == (["model", "beside"] if is_model else ["model"])


def test_a_list_of_optimizers_holds_optimizers() -> None:
    assert holds_optimizer(to_nodes([trained()]))
    assert not holds_optimizer(to_nodes([trained(), {}]))
