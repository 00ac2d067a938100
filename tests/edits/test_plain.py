"""Plain values in the place of objects: what weights_only=True refused, it loads."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn

import ckpt_surgery
from ckpt_surgery import Output, Plan, read, selection
from ckpt_surgery.edits.drop import DropOther
from ckpt_surgery.edits.plain import ToPlain
from ckpt_surgery.errors import PlanError


def training():
    """A model and an optimizer whose rate a scheduler of numpy left behind."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=float(np.float32(0.01)))
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return net, optimizer


def saved():
    net, optimizer = training()
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = np.float64(state["param_groups"][0]["lr"])
    return {
        "state_dict": net.state_dict(),
        "optimizer": state,
        "best": np.float64(0.9),
        "epoch": np.int64(5),
        "args": argparse.Namespace(
            lr=np.float32(0.1),
            out=pathlib.PurePosixPath("/runs/1"),
            inner=types.SimpleNamespace(a=[np.bool_(True)]),
        ),
        "log": collections.defaultdict(list, loss=[np.float64(1.5), np.float64(1.25)]),
    }


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(saved(), "train.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load("train.pth", weights_only=True)


def edit(verb, output):
    if verb == "strip":
        return ckpt_surgery.strip("train.pth", output, allow_nothing=True)
    if verb == "rename":
        return ckpt_surgery.rename("train.pth", output, allow_nothing=True)
    if verb == "convert":
        return ckpt_surgery.convert("train.pth", output)
    if verb == "fit":
        torch.save(training()[0].state_dict(), "like.pth")
        return ckpt_surgery.fit("train.pth", output, like="like.pth")
    torch.save({"state_dict": training()[0].state_dict()}, "like.pth")
    return ckpt_surgery.merge(["train.pth", "like.pth"], output, "overlay" if verb == "overlay"
                              else "average")  # fmt: skip


@pytest.mark.parametrize("verb", ["strip", "rename", "convert", "fit", "overlay", "average"])
def test_every_verb_writes_plain_values(verb):
    """Job 36: the file loads with weights_only=True, its optimizer kept."""
    report = edit(verb, Output("out.pth", plain=True))
    found = torch.load("out.pth", weights_only=True)
    assert found["args"] == {
        "lr": pytest.approx(0.1), "out": "/runs/1", "inner": {"a": [True]},
    }  # fmt: skip
    assert found["args"]["lr"] == float(np.float32(0.1))
    assert (found["best"], found["epoch"]) == (0.9, 5)
    assert found["log"] == {"loss": [1.5, 1.25]}
    assert type(found["optimizer"]["param_groups"][0]["lr"]) is float
    document = report.to_dict()
    said = {e["path"]: e["from"] for e in document["plan"] if e["edit"] == "plain"}
    scalar = np.float64(1).__reduce__()[0]
    assert said == {
        **dict.fromkeys(
            ["optimizer/param_groups/0/lr", "best", "epoch", "args/lr", "args/inner/a/0",
             "log/loss/0", "log/loss/1"],
            f"{scalar.__module__}.{scalar.__name__}",
        ),
        "args": "argparse.Namespace",
        "args/inner": "types.SimpleNamespace",
        "args/out": f"{pathlib.PurePosixPath.__module__}.PurePosixPath",
        "log": "collections.defaultdict",
    }  # fmt: skip


def test_the_next_step_of_a_resumed_training_is_the_same():
    ckpt_surgery.convert("train.pth", Output("out.pth", plain=True))
    resumed = []
    for path, safely in (("train.pth", False), ("out.pth", True)):
        found = torch.load(path, weights_only=safely)
        net = nn.Linear(3, 2)
        net.load_state_dict(found["state_dict"])
        optimizer = torch.optim.AdamW(net.parameters())
        optimizer.load_state_dict(found["optimizer"])
        net(torch.full((1, 3), 0.5)).sum().backward()
        optimizer.step()
        resumed.append(net.state_dict())
    assert all(torch.equal(resumed[0][name], resumed[1][name]) for name in resumed[0])


def test_the_optimizer_follows_its_model_and_is_plain():
    ckpt_surgery.strip("train.pth", Output("out.pth", plain=True), selection(name="bias"))
    found = torch.load("out.pth", weights_only=True)
    assert found["optimizer"]["param_groups"][0]["params"] == [0]
    assert type(found["optimizer"]["param_groups"][0]["lr"]) is float


def test_a_file_of_plain_values_stays_as_it_is():
    torch.save({"state_dict": training()[0].state_dict(), "epoch": 5}, "plain.pth")
    ckpt_surgery.convert("plain.pth", Output("out.pth", plain=True))
    assert pathlib.Path("out.pth").read_bytes() == pathlib.Path("plain.pth").read_bytes()


def test_one_object_at_several_places_is_plain_at_all_of_them():
    args = argparse.Namespace(lr=np.float64(0.5))
    torch.save({"w": torch.ones(2), "a": args, "b": {"again": args}}, "twice.pth")
    report = ckpt_surgery.convert("twice.pth", Output("out.pth", plain=True))
    found = torch.load("out.pth", weights_only=True)
    assert found["a"] == found["b"]["again"] == {"lr": 0.5}
    assert found["a"] is found["b"]["again"]
    assert [e["path"] for e in report.plan if e["edit"] == "plain"] == ["a", "a/lr"]


def test_what_is_plain_is_described_so_and_edits_go_on_from_there():
    edits = [
        ToPlain("args", "argparse.Namespace"),
        ToPlain("epoch", "numpy._core.multiarray.scalar"),
        DropOther("args/lr"),
        DropOther("args/out"),
        DropOther("args/inner"),
    ]
    if np.float64(1).__reduce__()[0].__module__ != "numpy._core.multiarray":
        pytest.skip("an older numpy")
    plan = Plan.from_dict(json.loads(json.dumps(Plan(tuple(edits)).to_dict())))
    with read("train.pth") as checkpoint:
        edited = plan.apply(checkpoint)
        described = {o.path: (o.type, o.value) for o in edited.others}
        assert described["args"] == ("dict", None)
        assert described["epoch"] == ("int", 5)


def test_an_object_that_is_not_there_cannot_be_made_plain():
    for path, old in (("args", "types.SimpleNamespace"), ("nope", "argparse.Namespace")):
        with read("train.pth") as checkpoint, pytest.raises(PlanError, match="not there"):
            Plan((ToPlain(path, old),)).apply(checkpoint)


def test_safetensors_have_nothing_to_make_plain():
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, "w.safetensors")
    ckpt_surgery.convert("w.safetensors", Output("w2.safetensors", plain=True, device="cpu"))
    data = pathlib.Path("w.safetensors").read_bytes()
    assert pathlib.Path("w2.safetensors").read_bytes() == data
