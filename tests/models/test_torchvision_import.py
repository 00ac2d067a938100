"""torchvision imports beside any torch, and what is really wrong with it is never hidden."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ckpt_surgery.errors import MissingDependencyError
from ckpt_surgery.models import torchvision_import
from ckpt_surgery.models.torchvision_import import beside_torchvision, import_torchvision


def test_torchvision_imports_and_builds_beside_this_torch() -> None:
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    assert len(torchvision.models.resnet18(weights=None).state_dict()) == 122


class Importer:
    """Stands for ``importlib.import_module``: what each import of torchvision does, in turn."""

    def __init__(self, *outcomes: BaseException | ModuleType) -> None:
        self.outcomes = list(outcomes)

    def __call__(self, name: str) -> Any:
        if name == "torch":
            return ModuleType("torch")
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*outcomes: BaseException | ModuleType) -> Importer:
        importer = Importer(*outcomes)
        monkeypatch.setattr(torchvision_import.importlib, "import_module", importer)
        monkeypatch.setattr(torchvision_import, "_forget", lambda package: None)
        return importer

    return install


@pytest.mark.parametrize("operator", ["nms", "qnms"])
def test_missing_operators_are_declared_and_the_import_repeated(
    imports: Any, operator: str
) -> None:
    found = ModuleType("torchvision")
    importer = imports(RuntimeError(f"operator torchvision::{operator} does not exist"), found)
    assert import_torchvision() is found
    assert importer.outcomes == []


def test_declaring_twice_is_harmless() -> None:
    torchvision_import._declare_operators()
    torchvision_import._declare_operators()
    import torch

    assert hasattr(torch.ops.torchvision, "nms")
    assert hasattr(torch.ops.torchvision, "qnms")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::roi_align does not exist"),
        RuntimeError("PyTorch and torchvision were compiled with different CUDA major versions"),
        ImportError("libpng is missing"),
        ModuleNotFoundError("No module named 'PIL'", name="PIL"),
    ],
)
def test_other_import_errors_are_not_hidden(imports: Any, error: Exception) -> None:
    imports(error)
    with pytest.raises(type(error), match=str(error)[:20]) as raised:
        import_torchvision()
    assert raised.value is error


def test_missing_package_is_named(imports: Any) -> None:
    imports(ModuleNotFoundError("No module named 'torchvision'", name="torchvision"))
    with pytest.raises(MissingDependencyError, match="'torchvision' is not installed") as raised:
        import_torchvision()
    assert "pip install torchvision" in str(raised.value.hint)


def test_what_a_failed_import_leaves_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("half", "half.part", "halfway"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    torchvision_import._forget("half")
    assert "half" not in sys.modules
    assert "half.part" not in sys.modules
    assert "halfway" in sys.modules


def test_code_that_imports_torchvision_runs_again_and_other_errors_pass() -> None:
    calls: list[str] = []

    def fails_once() -> str:
        calls.append("call")
        if len(calls) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        return "done"

    assert beside_torchvision(fails_once) == "done"
    assert len(calls) == 2
    other = RuntimeError("operator torchvision::roi_align does not exist")

    def fails() -> None:
        calls.append("call")
        raise other

    with pytest.raises(RuntimeError) as raised:
        beside_torchvision(fails)
    assert raised.value is other
    assert len(calls) == 3
