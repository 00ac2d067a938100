"""State dicts are found wherever they are, and everything beside them is named."""

from __future__ import annotations

import argparse
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import archive, reference
from archives import tensor as pickled_tensor
from legacy_files import Raw, dumps
from torch import nn
from torch_checks import save

from ckpt_surgery import Limits, inspect, read
from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import ByteString, Dict, Global, Node, Object, PersistentId
from ckpt_surgery.torch_objects.find import assemble, metadata_of
from ckpt_surgery.torch_objects.kinds import (
    entry_counts,
    kind_of,
    plain_value,
    type_name,
)
from ckpt_surgery.torch_objects.places import Place


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))


def optimizer() -> dict[str, Any]:
    model = net()
    made = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made.state_dict()


def weights() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}


def read_value(value: Any, path: Path, **options: Any) -> Checkpoint:
    checkpoint = read(save(value, path), **options)
    checkpoint.close()
    return checkpoint


def schedule() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(1))
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter]), 3).state_dict()


ENSEMBLE = {"net": weights(), "epoch": 3}
LAYOUTS: dict[str, tuple[Any, list[tuple[str, str]], list[tuple[str, str]]]] = {
    "bare": (weights(), [("", "model")], []),
    "module's": (net().state_dict(), [("", "model")], []),
    "example of imagenet": (
        {"epoch": 3, "arch": "r", "state_dict": net().state_dict(), "optimizer": optimizer()},
        [("state_dict", "model")],
        [("epoch", "int"), ("arch", "str"), ("optimizer", "dict")],
    ),
    "with its average": (
        {"model": weights(), "model_ema": weights(), "lr": 0.1},
        [("model", "model"), ("model_ema", "ema")],
        [("lr", "float")],
    ),
    "averaged model": (
        torch.optim.swa_utils.AveragedModel(net()).state_dict(),
        [("", "ema")],
        [],
    ),
    "deep": (
        {"a": {"b": [{"c": weights()}, 5]}},
        [("a/b/0/c", "model")],
        [("a/b/1", "int")],
    ),
    "list": ([weights(), weights()], [("0", "model"), ("1", "model")], []),
    "scheduler and scaler": (
        {"net": weights(), "lr_sched": schedule(), "s": {"scale": 1.0, "growth_factor": 2.0}},
        [("net", "model")],
        [("lr_sched", "dict"), ("s", "dict")],
    ),
    "optimizer holds tensors by name": (
        {"model": weights(), "optimizer": {"a": torch.ones(1), "b": torch.ones(1)}},
        [("model", "model")],
        [("optimizer", "dict")],
    ),
    "hyper-parameters hold tensors by name": (
        {"model": weights(), "hparams": {"a": torch.ones(1)}, "train_args": {"b": torch.ones(1)}},
        [("model", "model")],
        [("hparams", "dict"), ("train_args", "dict")],
    ),
    "mostly tensors": ({"a": torch.ones(1), "b": torch.ones(1), "epoch": 1}, [("", "model")], []),
    "mostly others": (
        {"a": torch.ones(1), "epoch": 1}, [], [("a", "torch.Tensor"), ("epoch", "int")]
    ),
    "wrapped beside more tensors": (
        {"state_dict": weights(), "mean": torch.ones(3), "std": torch.ones(3)},
        [("state_dict", "model")],
        [("mean", "torch.Tensor"), ("std", "torch.Tensor")],
    ),
    "module that only has metadata": (nn.ReLU().state_dict(), [("", "model")], []),
    "numbered keys": (
        {0: weights(), 1.5: weights(), True: 5, None: 6, ("a", "b"): 7},
        [("0", "model"), ("1.5", "model")],
        [("True", "int"), ("None", "int"), ("tuple", "int")],
    ),
    "keys that look alike": (
        {"a": {"b": weights()}, "a/b": weights(), 1: weights(), "1": weights(), "a/b#2": weights()},
        [(path, "model") for path in ("a/b", "a/b#2", "1", "1#2", "a/b#2#2")],
        [],
    ),
    "other keys that look alike": (
        {"model": weights(), 1: "x", "1": "y"},
        [("model", "model")],
        [("1", "str"), ("1#2", "str")],
    ),
    "object at two places, around a state dict": (
        [ENSEMBLE, ENSEMBLE], [("0/net", "model")], [("0/epoch", "int")]
    ),
    "elements of an object": (deque([weights(), 3]), [("0", "model")], [("1", "int")]),
    "object with metadata": (
        argparse.Namespace(_metadata=OrderedDict(a=1), x=2), [], [("", "argparse.Namespace")]
    ),
    "a number": (3, [], [("", "int")]),
    "a tensor": (torch.ones(3), [], [("", "torch.Tensor")]),
    "a list of numbers": ([1, 2], [], [("", "list")]),
    "empty": ({}, [], [("", "dict")]),
    "no weights": ({"epoch": 3, "acc": 0.5}, [], [("epoch", "int"), ("acc", "float")]),
    "attributes of an object": (
        argparse.Namespace(lr=0.1, net=weights()),
        [("net", "model")],
        [("lr", "float")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dicts_and_others_are_found(name: str, tmp_path: Path) -> None:
    value, state_dicts, others = LAYOUTS[name]
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert [(s.path, s.kind) for s in checkpoint.state_dicts] == state_dicts
    assert [(o.path, o.type) for o in checkpoint.others] == others


def test_state_dict_has_torchs_names_order_and_metadata(tmp_path: Path) -> None:
    expected = net().state_dict()
    (state_dict,) = read_value({"state_dict": expected}, tmp_path / "w.pth").state_dicts
    assert state_dict.names == list(expected)
    assert state_dict.metadata is not None
    assert list(state_dict.metadata) == list(expected._metadata)
    roles = {entry.name: entry.role for entry in state_dict.entries}
    assert roles["1.running_mean"] == roles["1.num_batches_tracked"] == "buffer"
    assert roles["0.weight"] == "unknown"


def test_role_is_told_by_type_and_name(tmp_path: Path) -> None:
    value = {
        "a": nn.Parameter(torch.ones(1)),
        "ids": torch.arange(3),
        "mask": torch.ones(2, dtype=torch.bool),
        "w": torch.ones(1),
        "extra_state": {"x": 1},
    }
    (state_dict,) = read_value(value, tmp_path / "w.pth").state_dicts
    roles = [entry.role for entry in state_dict.entries]
    assert roles == ["parameter", "buffer", "buffer", "unknown", "unknown"]


def test_one_object_at_two_places_is_one_state_dict(tmp_path: Path) -> None:
    shared = weights()
    checkpoint = read_value({"model": shared, "net": shared}, tmp_path / "w.pth")
    assert [s.path for s in checkpoint.state_dicts] == ["model"]
    assert checkpoint.notes == ("'net' is the same object as 'model'",)


def test_object_that_contains_itself_is_read(tmp_path: Path) -> None:
    value: dict[str, Any] = {"model": weights()}
    value["self"] = value
    value["list"] = [value, 3]
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert [s.path for s in checkpoint.state_dicts] == ["model"]
    assert "list" in [o.path for o in checkpoint.others]


def test_tensors_of_others_are_counted_once(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    value = {"model": weights(), "extras": [tensor, (tensor,)], "again": [tensor]}
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert [len(other.tensors) for other in checkpoint.others] == [1, 0]
    assert len(list(checkpoint.all_tensors)) == 3


def test_values_of_others_are_shown_if_short(tmp_path: Path) -> None:
    value = {
        "model": weights(), "epoch": 3, "lr": 0.1, "done": True, "arch": "x" * 200,
        "log": "x" * 201, "big": 2**63, "nothing": None, "lists": [1, 2],
    }  # fmt: skip
    others = {o.path: o.value for o in read_value(value, tmp_path / "w.pth").others}
    assert others == {
        "epoch": 3, "lr": 0.1, "done": True, "arch": "x" * 200,
        "log": None, "big": None, "nothing": None, "lists": None,
    }  # fmt: skip


def test_optimizer_is_counted(tmp_path: Path) -> None:
    path = save({"model": net().state_dict(), "optimizer": optimizer()}, tmp_path / "w.pth")
    report = inspect(path)
    assert report.details == {"optimizer": {"groups": 1, "states": 6}}
    (other,) = report.others
    assert len(other.tensors) == 6


def test_globals_are_those_of_the_pickle(tmp_path: Path) -> None:
    value = {"model": weights(), "args": argparse.Namespace(x=np.float32(1))}
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert "argparse.Namespace" in checkpoint.globals
    assert len(set(checkpoint.globals)) == len(checkpoint.globals)


def test_globals_of_a_graph_are_those_in_it(tmp_path: Path) -> None:
    checkpoint = read_value({"w": torch.ones(1), "v": torch.ones(1)}, tmp_path / "w.pth")
    again = assemble(checkpoint.root, sources=checkpoint.sources, format="torch-zip")
    assert again.globals == checkpoint.globals
    assert "torch._utils._rebuild_tensor_v2" in again.globals


def test_nesting_is_read_up_to_the_limit(tmp_path: Path) -> None:
    def nested(levels: int) -> Any:
        value: Any = weights()
        for _ in range(levels):
            value = [value]
        return value

    limits = Limits(depth=100)
    checkpoint = read_value(nested(80), tmp_path / "w.pth", limits=limits)
    assert checkpoint.state_dicts[0].path == "/".join(["0"] * 80)
    path = save(nested(300), tmp_path / "deep.pth")
    with pytest.raises(LimitExceededError):
        read(path, limits=limits)


def test_nesting_by_state_is_limited_too(tmp_path: Path) -> None:
    nested: Node = 3
    for _ in range(30):
        nested = Object("NEWOBJ", Global("m", "C"), (), state=Dict(["a", nested]))
    root = Dict(["w", nested])
    with read(save(weights(), tmp_path / "w.pth")) as checkpoint:
        file = checkpoint.file
        assert assemble(root, sources=(file,), format="x", names=(), limits=Limits(depth=40)).others
        with pytest.raises(LimitExceededError, match="objects are nested more than 20 deep"):
            assemble(root, sources=(file,), format="x", names=(), limits=Limits(depth=20))


def test_what_leads_nowhere_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, texts and what is empty may be there in millions, a byte each."""
    made: list[str] = []
    original = Place.child
    monkeypatch.setattr(
        Place, "child", lambda self, name, node: made.append(name) or original(self, name, node)
    )
    value = {"log": [None, 1, "text", [], {}, (), {"w": torch.ones(2)}], "epoch": 3}
    checkpoint = read_value(value, tmp_path / "f.pt")
    assert [s.path for s in checkpoint.state_dicts] == ["log/6"]
    assert made == ["log", "6"]


def test_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Text and a byte string of Python 2 are one name."""
    twice = dumps({"x1": pickled_tensor(reference()), "x2": pickled_tensor(reference())})
    data = twice.replace(b"X\x02\x00\x00\x00x2", b"U\x02x1")
    assert data != twice
    with pytest.raises(DamagedFileError, match="keys of one dictionary are the same: 'x1'"):
        read(archive(tmp_path / "w.pth", Raw(data)))


def test_key_that_is_no_text_stands_in_no_state_dict(tmp_path: Path) -> None:
    value = OrderedDict({1: torch.ones(1), "a": torch.ones(1)})
    checkpoint = read_value({"model": value}, tmp_path / "w.pth")
    assert checkpoint.state_dicts == ()
    assert [o.path for o in checkpoint.others] == ["model"]


def test_metadata_with_keys_that_are_no_text_is_refused_or_read(tmp_path: Path) -> None:
    value = nn.Linear(1, 1).state_dict()
    value["more"] = torch.ones(1)
    value[3] = torch.ones(1)
    assert read_value(value, tmp_path / "w.pth").state_dicts == ()


ORDERED = Global("collections", "OrderedDict")


def ordered(*items: Node, state: Node) -> Object:
    return Object("REDUCE", ORDERED, (), items=list(items), state=state)


@pytest.mark.parametrize(
    ("state", "metadata"),
    [
        (Dict(["_metadata", Dict(["", 1, ByteString(b"a"), 2, 3, 4])]), {"": 1, "a": 2}),
        (Dict(["_metadata", "no mapping"]), None),
        (Dict(["other", Dict()]), None),
        ("no mapping", None),
    ],
)
def test_metadata_is_a_mapping_of_names(state: Node, metadata: Any) -> None:
    assert metadata_of(ordered(state=state)) == metadata
    assert metadata_of(Dict()) is None


OPTIMIZER = Dict(["state", Dict([0, Dict()]), "param_groups", [Dict(), Dict()]])


@pytest.mark.parametrize(
    ("node", "counts"),
    [
        (OPTIMIZER, {"groups": 2, "states": 1}),
        ([OPTIMIZER], {"entries": 1}),
        ([Dict()], {"entries": 1}),
        ((1, 2), {"entries": 2}),
        (Dict(["a", 1]), {"entries": 1}),
        (Dict(["state", 3, "param_groups", []]), {"entries": 2}),
        (Dict(["state", Dict(), "param_groups", 3]), {"entries": 2}),
        (Dict(), {}),
        (3, {}),
    ],
)
def test_entries_are_counted(node: Node, counts: dict[str, int]) -> None:
    assert entry_counts(node) == counts


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (Dict(), "dict"),
        (Object("NEWOBJ", Global("a.b", "C"), ()), "a.b.C"),
        (Object("REDUCE", Dict(), ()), "object"),
        (Object("REDUCE", Global("copy_reg", "_reconstructor"), (Global("m", "C"), 1)), "m.C"),
        (Object("REDUCE", Global("copy_reg", "_reconstructor"), ()), "copy_reg._reconstructor"),
        (PersistentId("x"), "torch.Storage"),
        (Global("torch", "float16"), "torch.float16"),
        ("x", "str"),
        (ByteString(b"x"), "str"),
        (None, "None"),
        (True, "bool"),
        (1.0, "float"),
        ([], "list"),
        (b"", "bytes"),
    ],
)
def test_type_is_named(node: Node, name: str) -> None:
    assert type_name(node) == name


def test_byte_string_of_python_2_is_text() -> None:
    assert plain_value(ByteString(b"resnet")) == "resnet"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "model"), ("model_ema", "ema"), ("ema", "ema"), ("EMA/params", "ema"),
        ("swa_state", "ema"), ("average", "ema"), ("shadow-params", "ema"),
        ("schema", "model"), ("emacs", "model"), ("cinema", "model"),
    ],
)  # fmt: skip
def test_average_is_known_by_its_path(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_module_that_cannot_be_read_hides_no_weights(tmp_path: Path) -> None:
    broken = torch.nn.Linear(2, 2)
    broken._non_persistent_buffers_set = ["no set"]  # type: ignore[assignment]
    value = {"criterion": broken, "model": {"w": torch.ones(2)}}
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert [found.path for found in checkpoint.state_dicts] == ["model"]
    assert [other.path for other in checkpoint.others] == ["criterion"]
    assert len(checkpoint.others[0].tensors) == 2
    assert checkpoint.notes == (
        "the module 'criterion' is not understood: '_non_persistent_buffers_set' is no set",
    )
    with pytest.raises(DamagedFileError, match="is no set"):
        read_value(broken, tmp_path / "w.pth")


def test_module_without_entries_is_no_state_dict(tmp_path: Path) -> None:
    value = {"criterion": torch.nn.MSELoss(), "model": {"w": torch.ones(2)}}
    checkpoint = read_value(value, tmp_path / "w.pth")
    assert [found.path for found in checkpoint.state_dicts] == ["model"]
    assert checkpoint.format == "torch-zip"
    alone = read_value(torch.nn.MSELoss(), tmp_path / "w.pth")
    assert alone.format == "torch-module"
    assert alone.state_dicts[0].entries == ()
