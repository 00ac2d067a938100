"""Parameters, variables and tensors of torch 0.1 to 0.3 are what today's torch makes of them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_checks import assert_same, save

import ckpt_surgery
from ckpt_surgery.checkpoint.description import Storage
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.pickles import NO_STATE, Dict, Global, Node, Object, PersistentId
from ckpt_surgery.torch_objects.tensors import TensorReader

PARAMETER = nn.Parameter.__reduce_ex__


@pytest.fixture(params=["0.1", "0.3"])
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`torch.save` pickles parameters as that version of torch did."""

    def second(self: Any, _: int) -> tuple[Any, ...]:
        state = (self.requires_grad, False, OrderedDict())
        return nn.Parameter, (self.data,), state

    def first(self: Any, _: int) -> tuple[Any, ...]:
        state = (self.data, None, None, self.requires_grad, False)
        return new_parameter(), (nn.Parameter,), state

    reduce = second if request.param == "0.3" else first
    monkeypatch.setattr(nn.Parameter, "__reduce_ex__", reduce)
    return str(request.param)


def new_parameter() -> Any:
    """``copyreg.__newobj__``, which pickle writes as NEWOBJ."""
    import copyreg

    return copyreg.__newobj__


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    return model


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def test_parameters_of_old_are_tensors(old: str, tmp_path: Path) -> None:
    model = net()
    file = saved({"state_dict": OrderedDict(model.named_parameters()), "epoch": 3}, tmp_path / "o")
    with ckpt_surgery.read(file) as checkpoint:
        (state_dict,) = checkpoint.state_dicts
        tensors = dict(state_dict.tensors)
    assert {n: t.shape for n, t in tensors.items()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }
    assert [t.is_parameter for t in tensors.values()] == [True] * 4
    assert [t.requires_grad for t in tensors.values()] == [True, False, True, True]
    ckpt_surgery.rename(file, tmp_path / "out.pth", [ckpt_surgery.AddPrefix("x")])
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    for name, parameter in model.named_parameters():
        new = found["state_dict"][f"x.{name}"]
        assert isinstance(new, nn.Parameter)
        assert new.requires_grad == parameter.requires_grad
        assert_same(new.detach(), parameter.detach())


def test_a_module_of_old_gives_its_state_dict(old: str, tmp_path: Path) -> None:
    file = saved({"model": net(), "epoch": 3}, tmp_path / "m.pth")
    ckpt_surgery.convert(file, tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert list(found) == list(net().state_dict())
    assert_same(dict(found), dict(net().state_dict()))


def test_parameters_beside_the_weights_are_written_as_of_today(old: str, tmp_path: Path) -> None:
    tied = nn.Parameter(torch.ones(2))
    value = {"model": {"w": torch.ones(3)}, "list": [tied, {"again": tied, "n": 1, "m": 2}, 3]}
    file = saved(value, tmp_path / "o.pth")
    ckpt_surgery.rename(file, tmp_path / "out.pth", [ckpt_surgery.AddPrefix("x")])
    data = (tmp_path / "out.pth").read_bytes()
    assert b"_rebuild_parameter" in data
    first, below, _ = torch.load(tmp_path / "out.pth", weights_only=True)["list"]
    assert first is below["again"]
    assert_same(first.detach(), tied.detach())
    # and so they are when their bytes move
    ckpt_surgery.strip(file, tmp_path / "small.pth", compact=True)
    assert_same(torch.load(tmp_path / "small.pth")["list"][0].detach(), tied.detach())


def test_old_parameters_go_into_another_file_as_of_today(old: str, tmp_path: Path) -> None:
    over = saved(OrderedDict(net().named_parameters()), tmp_path / "o.pth")
    base = save({n: torch.zeros_like(p) for n, p in net().named_parameters()}, tmp_path / "b.pth")
    ckpt_surgery.merge([base, over], tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert_same(found["0.weight"].detach(), net()[0].weight.detach())
    assert b"_rebuild_parameter" in (tmp_path / "out.pth").read_bytes()


STORAGE = Storage("0", BY_NAME["float32"], "cpu", Bytes(bytes(48)))
PLACE = PersistentId(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12), STORAGE)
DATA = Object("REDUCE", Global("torch._utils", "_rebuild_tensor"), (PLACE, 0, (3, 4), (4, 1)))
HOOKS = Object("REDUCE", Global("collections", "OrderedDict"), ())
CLASSES = {
    "parameter": Global("torch.nn.parameter", "Parameter"),
    "variable": Global("torch.autograd.variable", "Variable"),
}


def variable(of: str, *state: Node, args: tuple[Node, ...] = (), **more: Any) -> Object:
    op: Any = "REDUCE" if args else "NEWOBJ"
    return Object(op, CLASSES[of], args, state=state, **more)


@pytest.mark.parametrize("of", CLASSES)
@pytest.mark.parametrize("grad", [True, False])
def test_variables_are_told_from_parameters(of: str, grad: bool) -> None:
    for node in (
        variable(of, DATA, None, None, grad, False),
        variable(of, grad, False, HOOKS, args=(DATA,)),
        variable(of, grad, False, None, args=(DATA,)),
    ):
        reader = TensorReader()
        tensor = reader.describe(node)
        assert tensor is not None
        assert tensor.shape == (3, 4)
        assert (tensor.is_parameter, tensor.requires_grad) == (of == "parameter", grad)
        again = TensorReader().describe(reader.modern[id(node)])
        assert again is not None
        assert (again.shape, again.is_parameter, again.requires_grad) == (
            (3, 4), of == "parameter", grad,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["FloatTensor", "cuda.FloatTensor", "cuda.HalfTensor"])
def test_tensors_of_old_classes(name: str) -> None:
    module, _, last = f"torch.{name}".rpartition(".")
    half = PersistentId(PLACE.pid, Storage("0", BY_NAME["float16"], "cuda:0", Bytes(bytes(24))))
    place = half if "Half" in name else PLACE
    node = Object("REDUCE", Global(module, last), (), state=(place, 4, (2, 4), (4, 1)))
    reader = TensorReader()
    tensor = reader.describe(node)
    assert tensor is not None
    assert (tensor.shape, tensor.offset) == ((2, 4), 4)
    modern = reader.modern[id(node)]
    assert isinstance(modern, Object)
    assert modern.name == "torch._utils._rebuild_tensor_v2"
    assert tensor.node is modern
    parameter = variable("parameter", True, False, None, args=(node,))
    assert reader.describe(parameter) is not None


@pytest.mark.parametrize("name", ["DoubleTensor", "Tensor", "cuda.HalfTensor", "IntTensor"])
def test_old_tensor_in_a_storage_of_another_type_is_refused_as_by_torch(name: str) -> None:
    held = BY_NAME["float64" if name == "Tensor" else "float32"]
    storage = Storage("0", held, "cpu", Bytes(bytes(8)))
    module, _, last = f"torch.{name}".rpartition(".")
    state = (PersistentId(PLACE.pid, storage), 0, (1,), (1,))
    node = Object("REDUCE", Global(module, last), (), state=state)
    with pytest.raises(DamagedFileError, match="lies in a storage of"):
        TensorReader().describe(node)
    if "." not in name:
        floats = torch.FloatStorage if name != "Tensor" else torch.DoubleStorage
        with pytest.raises(RuntimeError, match="Expected a Storage of type"):
            getattr(torch, name)().set_(floats(0), 0, (0,), (1,))


def test_gradients_are_said_to_be_left_out(tmp_path: Path) -> None:
    gradient = variable("variable", DATA, None, None, False, False)
    reader = TensorReader()
    assert reader.describe(variable("parameter", DATA, gradient, None, True, False)) is not None
    assert reader.gradients == 1


@pytest.mark.parametrize(
    "node",
    [
        variable("parameter", DATA, None, Dict(["hook", 1]), True, False),
        variable("parameter", True, False, Dict([1, 2]), args=(DATA,)),
        variable("parameter", 1, False, None, args=(DATA,)),
        variable("parameter", True, None, None, args=(DATA,)),
        variable("parameter", True, False, None, args=(DATA,), items=[1, 2]),
        variable("parameter", DATA, None, None, True, False, elements=[1]),
    ],
)
def test_what_no_torch_wrote_is_refused(node: Object) -> None:
    with pytest.raises(DamagedFileError):
        TensorReader().describe(node)


@pytest.mark.parametrize(
    "node",
    [
        variable("parameter", True, False, None, args=(3,)),
        variable("parameter", True, False),
        Object("REDUCE", CLASSES["parameter"], (DATA,)),
        Object("REDUCE", CLASSES["parameter"], (DATA,), state=3),
        Object("REDUCE", Global("torch", "FloatTensor"), (), state=NO_STATE),
        Object("REDUCE", Global("torch", "FloatTensor"), (), state=3),
        Object("NEWOBJ", Global("a", "Parameter"), (), state=(DATA, None, None, True, True)),
        Object("OBJ", CLASSES["parameter"], (DATA,), state=(True, False, None)),
    ],
)
def test_anything_else_is_no_old_tensor(node: Object) -> None:
    assert TensorReader().describe(node) is None
