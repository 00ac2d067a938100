"""What `inspect` says of the training state, in JSON and in the footer."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.render.training import training_lines
from ckpt_surgery.training.documents import ScalerFacts, SchedulerFacts, TrainingFacts
from ckpt_surgery.training.optimizers.scalars import scalar


def saved(tmp_path: Any, **entries: Any) -> Any:
    """The report of a file with these entries, and what the footer says of each."""
    torch.save(entries, tmp_path / "t.pth")
    report = ckpt.inspect(tmp_path / "t.pth")
    footer = {path: ", ".join(training_lines(facts)) for path, facts in report.training.items()}
    return report, footer


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def stepped(net: nn.Module, kind: Any, params: Any = None, **options: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = kind(params or list(net.parameters()), **options)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_learning_rates_and_steps_may_be_tensors(tmp_path: Any) -> None:
    net = model()
    optimizer = stepped(net, torch.optim.Adam, lr=torch.tensor(0.25), betas=(0.5, 0.75))
    report, footer = saved(tmp_path, model=net.state_dict(), optimizer=optimizer.state_dict())
    (facts,) = report.training["optimizer"].optimizers
    assert facts.learning_rates == (0.25,)
    assert facts.groups[0].options["betas"] == (0.5, 0.75)
    assert facts.steps == (1,)
    assert footer["optimizer"] == "Adam, 1 group, lr 0.25, step 1, 4 states by order and shapes"


def test_what_is_not_certain_has_candidates(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = stepped(net, torch.optim.RMSprop, list(net[1].parameters()))
    report, footer = saved(tmp_path, model=net.state_dict(), optimizer=optimizer.state_dict())
    document = report.to_dict()["other"][0]["training"]["optimizers"][0]
    assert document["certainty"] == "partial"
    assert document["parameters"][0]["name"] is None
    assert document["parameters"][0]["candidates"] == ["0.weight", "1.weight", "2.weight"]
    assert footer["optimizer"].endswith("2 states only in part")


def test_stored_names_are_said(tmp_path: Any) -> None:
    net = model()
    optimizer = stepped(net, torch.optim.SGD, list(net.named_parameters()), momentum=0.9)
    _, footer = saved(tmp_path, model=net.state_dict(), optimizer=optimizer.state_dict())
    assert footer["optimizer"] == "SGD, 1 group, lr 0.001, 4 states by stored names"


def test_long_lists_are_cut(tmp_path: Any) -> None:
    net = model()
    one = stepped(net, torch.optim.SGD, lr=0.5, momentum=0.9).state_dict()
    groups = [{"params": [torch.zeros(1)], "lr": 0.25 * i} for i in range(6)]
    many = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(many, 1).state_dict()
    report, footer = saved(
        tmp_path,
        state_dict=net.state_dict(),
        optimizer_states=[dict(one) for _ in range(6)],
        lr_schedulers=[scheduler, dict(scheduler)],
        callbacks={"ModelCheckpoint{'monitor': 1}": {"best": 1}, "EarlyStopping": {"n": 2}},
    )
    assert footer["optimizer_states"].endswith("… and 2 more optimizers")
    assert footer["lr_schedulers"] == "2 schedulers, epoch 0, lr 0 0.25 0.5 0.75 …"
    assert footer["callbacks"] == "ModelCheckpoint, EarlyStopping"
    assert report.training["lr_schedulers"].schedulers[0].inner == 0


def test_schedulers_that_run_in_turn_are_counted(tmp_path: Any) -> None:
    state = {"last_epoch": 1, "_schedulers": [{"last_epoch": 1}, {"last_epoch": 0}]}
    report, _ = saved(tmp_path, model=model().state_dict(), scheduler=state)
    assert report.training["scheduler"].to_dict()["schedulers"][0]["inner"] == 2


def test_an_unknown_optimizer_is_of_unknown_parameters(tmp_path: Any) -> None:
    state = {"state": {0: {"odd": torch.zeros(7)}}, "param_groups": [{"params": [0]}]}
    _, footer = saved(tmp_path, model=model().state_dict(), optimizer=state)
    assert footer["optimizer"] == "1 group, 1 state of unknown parameters"


def test_a_scaler_and_odd_numbers() -> None:
    assert list(training_lines(TrainingFacts("scaler", scaler=ScalerFacts(None, None)))) == [
        "scale unknown"
    ]
    facts = TrainingFacts("scheduler", schedulers=(SchedulerFacts(10**5000, (float("nan"),)),))
    assert list(training_lines(facts)) == ["1 scheduler", "epoch huge", "lr nan"]


def test_rates_that_nobody_would_read_are_left_out(tmp_path: Any) -> None:
    scheduler = {"last_epoch": 1, "_last_lr": [0.1] * 1000, "_step_count": 2}
    report, _ = saved(tmp_path, model=model().state_dict(), scheduler=scheduler)
    assert report.training["scheduler"].schedulers[0].last_lr == ()


class Computed:
    """Bytes that no file has."""

    nbytes = 8
    crc32 = None

    def chunks(self, size: int = 0) -> Any:
        yield b"\0\0\0"
        yield b"\0\2\0\0\0"


def one(dtype: str, data: bytes, *, big: bool = False, offset: int = 0) -> Tensor:
    storage = Storage("0", BY_NAME[dtype], "cpu", Bytes(data), big_endian=big)
    return Tensor((), BY_NAME[dtype], (), offset, storage)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (one("float32", struct.pack("<f", 3.0)), 3),
        (one("float32", struct.pack(">f", 0.5), big=True), 0.5),
        (one("int64", struct.pack("<qq", 1, 7), offset=1), 7),
        (one("float64", struct.pack("<d", float("inf"))), float("inf")),
        (one("bool", b"\1"), None),
        (one("complex64", bytes(8)), None),
        (Tensor((), BY_NAME["int32"], (), 1, Storage("c", BY_NAME["int32"], "cpu", Computed())), 2),
        (Tensor((2,), BY_NAME["int8"], (1,), 0, one("int8", b"\1\2").storage), None),
        (Tensor((), BY_NAME["float32"], ()), None),
    ],
)
def test_a_tensor_of_one_element_is_a_number(tensor: Tensor, value: float | None) -> None:
    assert scalar(None, tensor) == value


@pytest.mark.parametrize(("node", "value"), [(3, 3), (3.0, 3), (True, None), ("3", None)])
def test_a_plain_number_is_itself(node: Any, value: float | None) -> None:
    assert scalar(node) == value
