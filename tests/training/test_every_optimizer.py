"""Every optimizer of torch through every edit: in step bit for bit, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import assert_equal, parameters, steps

import ckpt_surgery as ckpt
from ckpt_surgery.writing.output import Output

Make = Callable[[Any], torch.optim.Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam with a tensor's rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}
if hasattr(torch.optim, "Muon"):
    MAKERS["muon"] = lambda p: torch.optim.Muon(
        [each for each in p if (each[1] if isinstance(each, tuple) else each).ndim == 2], lr=0.1
    )


class Net(nn.Module):
    def __init__(self, classes: int = 7, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.mid = nn.Linear(6, 8)
        self.fc = nn.Linear(8, classes)


def members(model: nn.Module, *, named: bool) -> list[Any]:
    return list(model.named_parameters()) if named else list(model.parameters())


def save(path: Path, make: Make, *, named: bool = False) -> tuple[nn.Module, Any]:
    model = Net()
    optimizer = make(members(model, named=named))
    steps(model, optimizer, range(2))
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return model, optimizer


def strip(path: Path, output: Output) -> tuple[Any, nn.Module]:
    model = Net()
    del model.fc
    return ckpt.strip(path, output, ckpt.selection(prefix="fc")), model


def fit(path: Path, output: Output) -> tuple[Any, nn.Module]:
    model = Net(9, channels=4)
    torch.save(model.state_dict(), path.with_name("target.pth"))
    adapt = ["overlap", "channels=zero"]
    return ckpt.fit(path, output, like=path.with_name("target.pth"), adapt=adapt), model


def overlay(path: Path, output: Output) -> tuple[Any, nn.Module]:
    model = Net(9, channels=4)
    head = {n: t for n, t in model.state_dict().items() if n in {"conv.weight", "fc.weight"}}
    torch.save(head | {"fc.bias": torch.zeros(9)}, path.with_name("head.pth"))
    return ckpt.merge([path, path.with_name("head.pth")], output), model


CHANGED = {"conv.weight", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("verb", [strip, fit, overlay])
@pytest.mark.parametrize("named", [False, True], ids=["by number", "by name"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_next_step_is_the_same_or_there_is_none(
    kind: str, named: bool, verb: Any, tmp_path: Path
) -> None:
    make = MAKERS[kind]
    whole, optimizer = save(tmp_path / "train.pth", make, named=named)
    out = tmp_path / "out.pth"
    if kind == "adafactor" and not named:  # its state shows no shapes
        with pytest.raises(ckpt.PlanError, match="kind that shows no shapes"):
            verb(tmp_path / "train.pth", Output(out))
        return
    dry, _ = verb(tmp_path / "train.pth", Output(dry_run=True))
    report, model = verb(tmp_path / "train.pth", Output(out))
    assert (dry.optimizers, dry.warnings) == (report.optimizers, report.warnings)
    loaded = torch.load(out)
    model.load_state_dict(loaded["state_dict"])
    again = make(members(model, named=named))
    again.load_state_dict(loaded["optimizer"])
    before = {name: value.clone() for name, value in parameters(model).items()}
    steps(whole, optimizer, range(2, 4))
    steps(model, again, range(2, 4))
    found = parameters(model)
    left = CHANGED if verb is not strip else set()
    assert_equal({n: p for n, p in found.items() if n not in left}, parameters(whole))
    if kind == "rprop":  # a new element has a rate to begin with, not the least there is
        assert all((found[n] - before[n]).abs().min() > 0.01 for n in left)


def test_what_new_elements_begin_with(tmp_path: Path) -> None:
    for kind, moment, value in (("rprop", "step_size", 0.1), ("adagrad", "sum", 0.5)):
        save(tmp_path / "train.pth", MAKERS[kind])
        report, _ = fit(tmp_path / "train.pth", Output(tmp_path / f"{kind}.pth"))
        assert report.optimizers[0].resized == ("conv.weight", "fc.weight", "fc.bias")
        old = torch.load(tmp_path / "train.pth")["optimizer"]["state"]
        new = torch.load(tmp_path / f"{kind}.pth")["optimizer"]["state"]
        for key, size in ((6, 7), (7, 7)):
            assert torch.equal(new[key][moment][:size], old[key][moment])
            assert (new[key][moment][size:] == value).all()
        assert (new[0][moment][:, 3:] == value).all()


def test_a_moment_that_nobody_knows_begins_anew(tmp_path: Path) -> None:
    """As the iterate of schedule-free optimizers, which begins as a copy of the weights."""
    save(tmp_path / "train.pth", MAKERS["adamax"])
    file = torch.load(tmp_path / "train.pth")
    for state in file["optimizer"]["state"].values():
        state["z"] = state.pop("exp_inf")
    torch.save(file, tmp_path / "train.pth")
    report, _ = fit(tmp_path / "train.pth", Output(tmp_path / "out.pth"))
    assert report.optimizers[0].resized == ()
    assert report.optimizers[0].reset == ("conv.weight", "fc.weight", "fc.bias")
    assert sorted(torch.load(tmp_path / "out.pth")["optimizer"]["state"]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("named", [False, True], ids=["by number", "by name"])
def test_state_of_all_parameters_together_cannot_follow(named: bool, tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.LBFGS(members(model, named=named), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(lambda: torch.tensor(1.0))
    path = tmp_path / "train.pth"
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    for verb in (strip, fit, overlay):
        with pytest.raises(ckpt.PlanError, match="state is one of all parameters together"):
            verb(path, Output(tmp_path / "out.pth"))
    report = ckpt.rename(path, tmp_path / "out.pth", [ckpt.AddPrefix("m")])
    assert [change.renamed for change in report.optimizers] == ([8] if named else [])
    assert ckpt.inspect(path).training["optimizer"].optimizers[0].layout == "LBFGS"


@pytest.mark.parametrize("kind", ["muon", "adafactor"])
def test_options_tell_what_the_state_does_not(kind: str, tmp_path: Path) -> None:
    if kind not in MAKERS:
        pytest.skip("this torch has no such optimizer")
    save(tmp_path / "train.pth", MAKERS[kind])
    facts = ckpt.inspect(tmp_path / "train.pth").training["optimizer"].optimizers[0]
    assert facts.layout == kind.capitalize()
