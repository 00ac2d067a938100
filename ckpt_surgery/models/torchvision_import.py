"""Importing torchvision, also where its compiled operators cannot be loaded.

The wheel of torchvision that the package index serves is built for one CUDA version. Beside a
torch without CUDA its operator library does not load, and then the import itself fails with
``operator torchvision::nms does not exist``: its Python part registers shape functions for
operators that were never declared. Building architectures needs none of them, so declaring the
two schemas is enough (torchvision 0.28 beside torch 2.13+cpu).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeVar

from ckpt_surgery.errors import MissingDependencyError
from ckpt_surgery.startup.collector import collector_paused

_OPERATORS: Final = ("nms", "qnms")
_SCHEMA: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_SYMPTOM: Final = re.compile(r"operator torchvision::(?:nms|qnms) does not exist")

_T = TypeVar("_T")
_declared: list[Any] = []  # the schemas live as long as their Library object


def import_torchvision() -> ModuleType:
    """Return the package ``torchvision``, imported; its compiled operators may be absent.

    Raises MissingDependencyError if torch or torchvision is not installed. Whatever else goes
    wrong during the import is raised as it is.
    """
    _import_installed("torch")
    try:
        return _import_installed("torchvision")
    except RuntimeError as error:
        if not _SYMPTOM.search(str(error)):
            raise
    _forget("torchvision")
    _declare_operators()
    return _import_installed("torchvision")


def beside_torchvision(call: Callable[[], _T]) -> _T:
    """`call()`, once more if it failed because it imports torchvision, in the same plight."""
    try:
        return call()
    except RuntimeError as error:
        if not _SYMPTOM.search(str(error)):
            raise
    import_torchvision()
    return call()


def _import_installed(name: str) -> ModuleType:
    try:
        with collector_paused():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingDependencyError(
            f"'{name}' is not installed", hint=f"install it with 'pip install {name}'"
        ) from error


def _forget(package: str) -> None:
    """Drop what a failed import left behind, so that the next one starts afresh."""
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


def _declare_operators() -> None:
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}{_SCHEMA}")
    _declared.append(library)
