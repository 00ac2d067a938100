"""Whether torch loads a file safely, what of it is to blame, and that the cure cures it."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections import Counter, OrderedDict, defaultdict
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.cli.main import cli
from ckpt_surgery.render import inspection
from ckpt_surgery.torch_objects import safe_loading as room

NET = nn.Linear(3, 2)
WEIGHTS = NET.state_dict()
LATER = timedelta(1)
ARGS = argparse.Namespace(lr=0.1, inner=argparse.Namespace(name="x"))


class Subclass(OrderedDict[str, Any]):
    """A state dict of a class of its own."""


def with_attribute() -> Subclass:
    value = Subclass(WEIGHTS)
    value.epoch = LATER  # type: ignore[attr-defined]
    return value


def with_metadata() -> OrderedDict[str, Any]:
    made: OrderedDict[str, Any] = OrderedDict(WEIGHTS)
    made._metadata = OrderedDict(x=LATER)  # type: ignore[attr-defined]
    return made


# A file, what is to blame, the command that cures it.
CASES: dict[str, tuple[Any, list[str], str | None]] = {
    "weights": (WEIGHTS, [], None),
    "harmless objects": (
        {"m": WEIGHTS, "s": {1}, "c": 1j, "b": b"x", "a": bytearray(b"y"), "n": Counter("x"),
         "t": torch.float16, "z": torch.Size([1]), "d": torch.device("cpu")}, [], None,
    ),
    "parameters": ({"m": dict(NET.named_parameters())}, [], None),
    "module": (NET, [""], "convert"),
    "module beside": ({"model": NET, "epoch": 1, "x": LATER}, ["model", "x"],
                      "convert --tensors-only"),
    "arguments": ({"m": WEIGHTS, "args": ARGS}, ["args", "args/inner"], "convert --plain"),
    "all plain": (
        {"m": WEIGHTS, "best": np.float64(0.5), "p": PurePosixPath("/x"), "l": [np.int64(3)],
         "d": defaultdict(list, {"a": [1]})}, ["best", "p", "l/0", "d"], "convert --plain",
    ),
    "plain and not": ({"m": WEIGHTS, "args": ARGS, "when": LATER}, ["args", "args/inner", "when"],
                      "strip --entry when --plain"),
    "inside a Namespace": ({"m": WEIGHTS, "args": argparse.Namespace(t=LATER)}, ["args", "args/t"],
                           "strip --entry args/t --plain"),
    "inside a list": ({"m": WEIGHTS, "cfg": {"a": [1, LATER]}}, ["cfg/a/1"], "strip --entry cfg/a"),
    "class": ({"m": WEIGHTS, "cfg": {"act": nn.ReLU}}, ["cfg/act"], "strip --entry cfg/act"),
    "class in a list": ({"m": WEIGHTS, "acts": [nn.ReLU]}, ["acts/0"], "strip --entry acts"),
    "class in a call": ({"m": WEIGHTS, "new": partial(nn.ReLU)}, ["new"], "strip --entry new"),
    "class in a default": ({"m": WEIGHTS, "d": OrderedDict(a=int)}, ["d/a"], "strip --entry d/a"),
    "huge number": ({"m": WEIGHTS, "n": 1 << 9000}, ["n"], "strip --entry n"),
    "many": ({"m": WEIGHTS, **{f"x{i}": LATER for i in range(5)}}, [f"x{i}" for i in range(5)],
             "convert --state-dict-only"),
    "one object twice": ({"m": WEIGHTS, "x": LATER, "y": {"z": LATER, "act": nn.ReLU},
                          "act": nn.ReLU}, ["act", "x", "y/act", "y/z"],
                         "convert --state-dict-only"),
    "odd name": ({"m": WEIGHTS, "a b*": LATER}, ["a b*"], "convert --state-dict-only"),
    "odd names, two models": ({"a": WEIGHTS, "b": dict(WEIGHTS), "$x": LATER}, ["$x"],
                              "convert --state-dict-only --at a"),
    "list": ([WEIGHTS, LATER], ["1"], "convert --state-dict-only"),
    "among the weights": ({"m": {**WEIGHTS, "extra": LATER}}, ["m/extra"],
                          "convert --tensors-only"),
    "in the metadata": (with_metadata(), ["_metadata/x"], "convert --tensors-only"),
    "own class": (Subclass(WEIGHTS), [""], "convert --tensors-only"),
    "own class below": ({"model": Subclass(WEIGHTS), "x": 1}, ["model"], "convert --tensors-only"),
    "attribute": (with_attribute(), [""], "convert --tensors-only"),
    "no weights": ({"x": LATER}, ["x"], None),
}  # fmt: skip


def torch_takes(path: str | Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=True)
        except Exception:
            return False
    return True


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said_of(path: str) -> room.SafeLoading:
    found = ckpt.inspect(path).weights_only
    assert found is not None
    return found


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_it_says_what_torch_does_and_the_cure_cures(name: str, legacy: bool, protocol: int) -> None:
    value, blamed, cure = CASES[name]
    torch.save(value, "in.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    found = said_of("in.pth")
    assert found.loads == torch_takes("in.pth")
    assert [path for path, _ in found.entries] == blamed
    if not blamed:
        assert found.loads == (protocol == 2)
        cure = None if found.loads else "convert"
        assert found.loads or "opcode" in str(found.reason)
    assert found.cure == (None if cure is None else f"ckpt {cure}")
    if cure is None:
        return
    verb, *options = shlex.split(cure)
    done = CliRunner().invoke(cli, [verb, "in.pth", *options, "-o", "out.pth"])
    assert done.exit_code == 0, done.stderr
    assert torch_takes("out.pth")
    assert said_of("out.pth").loads


def test_names_that_nothing_is_left_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"m": WEIGHTS}, "in.pth")
    with ckpt.read("in.pth") as checkpoint:
        object.__setattr__(checkpoint, "globals", ("os.system",))
        found = room.safe_loading(checkpoint)
    assert found is not None
    assert (found.reason, found.entries) == ("it names 'os.system'", ())
    assert found.cure == "ckpt convert --tensors-only"


def test_of_more_objects_than_are_listed_that_is_said_and_the_cure_cures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few bytes of a pickle make one, and each takes many times that to list."""
    monkeypatch.setattr(room, "_MOST_BLAMED", 2)
    save({"m": WEIGHTS, "x": LATER, "y": LATER + LATER, "args": ARGS})
    found = said_of("in.pth")
    assert [path for path, _ in found.entries] == ["x", "y"]
    assert found.reason is not None
    assert "more than 2 objects are to blame" in found.reason
    assert "x (datetime.timedelta), y (datetime.timedelta), and others;" in line("in.pth")
    assert found.cure == "ckpt convert --tensors-only"
    assert "x (datetime.timedelta), more than 1 more;" in inspection._loading(found, 1)
    ckpt.convert("in.pth", "out.pth", tensors_only=True)
    assert torch_takes("out.pth")


def test_files_without_a_pickle_say_nothing_and_programs_are_refused() -> None:
    ckpt.convert(save(WEIGHTS), "w.safetensors")
    assert ckpt.inspect("w.safetensors").weights_only is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(NET).save("ts.pt")
    assert said_of("ts.pt").to_dict() == {
        "loads": False,
        "entries": [],
        "reason": "it is a TorchScript archive, which is a program",
        "cure": "ckpt convert",
    }
    assert not torch_takes("ts.pt")


def save(value: object, path: str = "in.pth") -> str:
    torch.save(value, path)
    return path


def test_a_file_nested_too_deeply_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(*_: object, **__: object) -> None:
        raise ckpt.LimitExceededError("too deep")

    monkeypatch.setattr(room, "trails", deep)
    assert ckpt.inspect(save(WEIGHTS)).weights_only is None


def test_the_footer_says_it_in_one_line() -> None:
    save({"m": WEIGHTS, "args": ARGS})
    assert line("in.pth") == (
        "weights_only=True: torch.load refuses args (argparse.Namespace), args/inner "
        "(argparse.Namespace); 'ckpt convert --plain' cures that"
    )
    save(WEIGHTS)
    assert line("in.pth") == "weights_only=True: torch.load takes it"
    torch.save(WEIGHTS, "in.pth", pickle_protocol=4)
    assert "refuses it: it holds the opcode SHORT_BINUNICODE" in line("in.pth")
    save({"x": LATER})
    assert line("in.pth").endswith("refuses x (datetime.timedelta)")


def line(path: str) -> str:
    shown = CliRunner().invoke(cli, ["inspect", path]).stdout
    (found,) = [each for each in shown.splitlines() if each.startswith("weights_only")]
    return found


def test_names_alone_look_at_nothing_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(checkpoint: Checkpoint) -> None:
        raise AssertionError

    monkeypatch.setattr(room, "safe_loading", never)
    save({"m": WEIGHTS, "args": ARGS})
    for option in ("--keys", "--csv"):
        assert CliRunner().invoke(cli, ["inspect", "in.pth", option]).exit_code == 0


def test_plain_values_beside_the_weights_are_shown() -> None:
    hyper = {
        "lr": 0.1, "name": "x", "none": None, "on": True, "betas": [0.9, 0.999], "n": np.int64(3),
        "path": PurePosixPath("/x/y"), "inner": {"depth": 2, "inner": ARGS}, "act": nn.ReLU,
        "long": list(range(99)), "nested": [[1]],
    }  # fmt: skip
    hyper["self"] = hyper
    save({"m": WEIGHTS, "hyper_parameters": hyper, "best": np.float32(0.5), "t": {"x": LATER}})
    found = {each["path"]: each for each in ckpt.inspect("in.pth").to_dict()["other"]}
    assert found["hyper_parameters"]["values"] == {
        "lr": 0.1, "name": "x", "none": None, "on": True, "betas": [0.9, 0.999], "n": 3,
        "path": "/x/y", "inner/depth": 2, "inner/inner/lr": 0.1, "inner/inner/inner/name": "x",
    }  # fmt: skip
    assert found["best"]["value"] == 0.5
    assert "values" not in found["t"]
    shown = CliRunner().invoke(cli, ["inspect", "in.pth"]).stdout
    assert "hyper_parameters: lr = 0.1, name = 'x', none = None, on = True, betas = [0.9" in shown
    assert "  best = 0.5 (numpy" in shown


def test_devices_are_shown_where_they_are_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(NET.parameters(), momentum=0.9)
    NET(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:1")
        save({"m": WEIGHTS, "o": optimizer.state_dict()})
    for options in ([], ["--fold"]):
        shown = CliRunner().invoke(cli, ["inspect", "in.pth", *options]).stdout
        assert "dtype    device  elements" in shown
        assert "float32  cuda:1" in shown
        assert "devices: cuda:1 (4 tensors); '--device cpu' writes it for any machine" in shown
    save({"m": WEIGHTS})
    assert "device" not in CliRunner().invoke(cli, ["inspect", "in.pth"]).stdout
