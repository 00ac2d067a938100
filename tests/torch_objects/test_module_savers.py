"""What code adds to a state dict is refused by name, as far as the file tells of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import framework
from torch import nn
from torch.ao.pruning.sparsifier.utils import FakeSparsity
from torch_checks import assert_same, save

import ckpt_surgery as ckpt
from ckpt_surgery.errors import LossyEditError, UsageError
from ckpt_surgery.pickles import Dict, Global, Object
from ckpt_surgery.torch_objects.module_savers import Savers


class Counting(nn.Module):
    """Keeps a number in the state dict that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.seen = 7

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}


def is_refused(file: Path, folder: Path, lost: str) -> None:
    for only in ({}, {"state_dict_only": True}, {"tensors_only": True}):
        out = folder / "out.pth"
        with pytest.raises(LossyEditError, match=re.escape(f"would be lost: {lost}")):
            ckpt.convert(file, out, **only)
        assert not out.exists()
    ckpt.convert(file, ckpt.Output(folder / "leave.pth", allow_loss=True), state_dict_only=True)
    assert torch.load(folder / "leave.pth")


@pytest.mark.filterwarnings("ignore")
def test_the_source_in_the_container_of_old_tells(tmp_path: Path) -> None:
    model = nn.Sequential(Counting(), Counting(), nn.Linear(2, 2))
    file = tmp_path / "m.pth"
    torch.save(model, file, _use_new_zipfile_serialization=False)
    assert "0._extra_state" in model.state_dict()
    is_refused(file, tmp_path, "'0._extra_state', '1._extra_state'")


def made_in_main() -> type[nn.Module]:
    """Return a class that dill pickles by value, as it does those of a script."""
    members = {"get_extra_state": lambda _: 3, "__module__": "__main__"}
    return type("Made", (nn.Module,), members)


@pytest.mark.filterwarnings("ignore")
def test_the_class_that_dill_writes_tells(tmp_path: Path) -> None:
    dill = framework("dill")
    model = made_in_main()()
    model.fc = nn.Linear(2, 2)
    file = tmp_path / "m.pth"
    torch.save(model, file, pickle_module=dill)
    with pytest.raises(LossyEditError, match="would be lost: '_extra_state'"):
        ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_adds_nothing_is_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    torch.save(nn.Sequential(nn.Linear(2, 2)), file, _use_new_zipfile_serialization=False)
    ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)
    assert list(torch.load(tmp_path / "out.pth")) == ["0.weight", "0.bias"]


def added(module: str, name: str, **fields: Any) -> list[str]:
    node = Object("NEWOBJ", Global(module, name), ())
    return list(Savers().added(node, fields))


@pytest.mark.parametrize(
    ("module", "name", "entry"),
    [
        ("bitsandbytes.nn.modules", "Linear8bitLt", "SCB"),
        ("bitsandbytes.nn.modules", "Linear4bit", "weight.quant_state"),
        ("transformer_engine.pytorch.module.linear", "Linear", "_extra_state"),
    ],
)
def test_classes_that_are_known_to_add_entries(module: str, name: str, entry: str) -> None:
    assert added(module, name) == [entry]


def test_of_a_metric_the_states_that_are_saved_are_named(tmp_path: Path) -> None:
    metric = framework("torchmetrics").MeanMetric()
    metric.persistent(mode=True)
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "metric": metric})
    file = save(model, tmp_path / "m.pth")
    states = [name for name in model.state_dict() if name.startswith("metric.")]
    assert states
    with pytest.raises(LossyEditError) as told:
        ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)
    assert all(f"'{name}'" in str(told.value) for name in states)
    metric.persistent(mode=False)
    file = save(model, tmp_path / "m2.pth")
    ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)
    assert list(torch.load(tmp_path / "out.pth")) == list(model.state_dict())


def some_hook(*_: object) -> None:
    """Picklable."""


def hooked(model: nn.Sequential) -> None:
    model[1]._register_state_dict_hook(some_hook)


def hooked_before(model: nn.Sequential) -> None:
    model[1].register_state_dict_pre_hook(some_hook)


def with_its_own_method(model: nn.Sequential) -> None:
    model[1].state_dict = some_hook  # type: ignore[method-assign]


def with_its_own_saving(model: nn.Sequential) -> None:
    model[1]._save_to_state_dict = some_hook  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (hooked, "'1 (by hooks)'"),
        (hooked_before, "'1 (by hooks)'"),
        (with_its_own_method, "'1 (by its own state_dict)'"),
        (with_its_own_saving, "'1 (by its own _save_to_state_dict)'"),
    ],
)
def test_code_that_the_file_has_on_a_module_is_no_matter_of_luck(
    change: Callable[[nn.Sequential], None], lost: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    change(model)
    is_refused(save(model, tmp_path / "m.pth"), tmp_path, lost)


class Empty(nn.Module):
    """Has no entry; of its class nobody knows whether it makes some."""


def test_nothing_is_written_of_a_class_that_is_not_known(tmp_path: Path) -> None:
    file = save(nn.Sequential(Empty()), tmp_path / "m.pth")
    with pytest.raises(LossyEditError, match=r"would be lost: 'the model itself \(by .*Empty\)'"):
        ckpt.convert(file, tmp_path / "out.pth")
    save(nn.Sequential(nn.ReLU()), file)
    ckpt.convert(file, tmp_path / "out.pth")
    assert torch.load(tmp_path / "out.pth") == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["sparsity", "histogram", "fake", "version"])
def test_what_torch_s_own_code_saves_is_known(kind: str, zipped: bool, tmp_path: Path) -> None:
    """Of it the container of old has the source, too, which adds nothing that is not known."""
    quantization = torch.ao.quantization
    inner: nn.Module = {
        "sparsity": lambda: FakeSparsity(torch.ones(2)),
        "histogram": quantization.HistogramObserver,
        "fake": quantization.FakeQuantize,
        "version": lambda: nn.Linear(2, 2),
    }[kind]()
    if kind == "version":
        inner._version = 7  # type: ignore[assignment]
    model = nn.Sequential(inner, nn.Linear(2, 2))
    file, out = tmp_path / "m.pth", tmp_path / "out.pth"
    torch.save(model, file, _use_new_zipfile_serialization=zipped)
    ckpt.convert(file, out)
    assert_same(torch.load(out), model.state_dict())
    assert torch.load(out)._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]


def test_what_is_no_definition_tells_nothing() -> None:
    for callee, args in (
        (Object("REDUCE", Global("dill._dill", "_create_type"), ("type", "C")), ()),
        (Object("REDUCE", Global("dill._dill", "_create_type"), ("t", "C", (), None)), ()),
        (Object("REDUCE", Global("elsewhere", "make"), ()), ()),
        (Global("a", "B"), (Object("REDUCE", Global("elsewhere", "make"), ()),)),
    ):
        assert list(Savers().added(Object("NEWOBJ", callee, args), {})) == []
    plain = Dict(["_save_to_state_dict", 1])
    made = Object("REDUCE", Global("dill._dill", "_create_type"), ("type", "C", (), plain))
    assert list(Savers().added(Object("NEWOBJ", made, ()), {})) == [""]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["", "model"])
def test_a_graph_alone_is_named(place: str, tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    file = save({place: graph} if place else graph, tmp_path / "g.pth")
    told = f"'{place}'" if place else "what it holds"
    with pytest.raises(UsageError, match=rf"{told} is of torch\.fx.*its weights") as error:
        ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)
    assert error.value.hint == "save the model's state_dict() with torch"


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_module_alone_is_named(tmp_path: Path) -> None:
    file = save(torch.ao.nn.quantized.Conv2d(1, 1, 1), tmp_path / "q.pt")
    with pytest.raises(UsageError, match=r"is of torch.ao.nn.quantized.modules.conv\.Conv2d"):
        ckpt.convert(file, tmp_path / "out.pth", state_dict_only=True)
