"""Write `ckpt_surgery/torch_objects/module_versions.py`: what pickled modules do not say.

A pickle names a module's class, but ``_version`` and ``_save_to_state_dict`` are attributes of the
class, which is never imported. So walk the module classes of torch and torchvision here, once for
each release, and keep what differs from ``torch.nn.Module``.

    python scripts/make_module_versions.py > ckpt_surgery/torch_objects/module_versions.py
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

PACKAGES = (
    "torch.nn",
    "torch.ao",
    "torch.fx",
    "torch.distributed",
    "torch.optim",
    "torch.export",
    "torch.utils",
    "torchvision",
)
SKIPPED = ("tensorboard", "benchmark", "__main__", "torchvision.image", "torchvision._C")
METHODS = ("_save_to_state_dict", "state_dict", "get_extra_state")

HEADER = '''\
"""What a pickled module does not say of its class; made by ``scripts/make_module_versions.py``.

Read from torch {torch} and torchvision {torchvision}.
"""

from __future__ import annotations

from typing import Final

DEFAULT_VERSION: Final = {default}
"""``torch.nn.Module._version``."""

_MOVED: Final = (
    ("torch.nn.intrinsic.", "torch.ao.nn.intrinsic."),
    ("torch.nn.qat.", "torch.ao.nn.qat."),
    ("torch.nn.quantizable.", "torch.ao.nn.quantizable."),
    ("torch.nn.quantized.", "torch.ao.nn.quantized."),
    ("torch.quantization.", "torch.ao.quantization."),
)
"""Packages that older releases of torch name otherwise."""


def version_of(class_name: str) -> int:
    """The class's ``_version``, which ``state_dict()`` puts into ``_metadata``; 1 if unknown."""
    return _VERSIONS.get(_current(class_name), DEFAULT_VERSION)


def saves_itself(class_name: str) -> bool:
    """Whether the class replaces what ``torch.nn.Module`` would put into a state dict."""
    return _current(class_name) in _SAVE_THEMSELVES


def _current(class_name: str) -> str:
    for old, new in _MOVED:
        if class_name.startswith(old):
            return new + class_name.removeprefix(old)
    return class_name


_VERSIONS: Final = {{'''


def import_all(package_name: str) -> None:
    package = importlib.import_module(package_name)
    for module in pkgutil.walk_packages(
        package.__path__, f"{package_name}.", onerror=lambda _: None
    ):
        if not any(part in module.name for part in SKIPPED):
            # Many submodules want packages or hardware that this machine lacks.
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)


def version(cls: type[nn.Module]) -> int:
    return cls._version


def classes_below(cls: type[nn.Module]) -> Iterator[type[nn.Module]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from classes_below(subclass)


def saves_itself(cls: type[nn.Module]) -> bool:
    """Whether the class overrides a method; the lazy one's only leaves lazy tensors alone."""
    return any(
        getattr(cls, method)
        not in {getattr(nn.Module, method), getattr(LazyModuleMixin, method, 0)}
        for method in METHODS
    )


def main() -> None:
    warnings.simplefilter("ignore")
    for operator in ("nms", "qnms"):  # torchvision's, if it was built for another device
        with contextlib.suppress(RuntimeError):
            torch.library.define(
                f"torchvision::{operator}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    for package in PACKAGES:
        import_all(package)
    classes = {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for cls in classes_below(nn.Module)
        if cls.__module__.partition(".")[0] in {"torch", "torchvision"}
    }
    print(
        HEADER.format(
            torch=torch.__version__.partition("+")[0],
            torchvision=sys.modules["torchvision"].__version__.partition("+")[0],
            default=version(nn.Module),
        )
    )
    for name, cls in sorted(classes.items()):
        if version(cls) != version(nn.Module):
            print(f'    "{name}": {version(cls)},')
    print("}\n_SAVE_THEMSELVES: Final = frozenset(\n    {")
    for name, cls in sorted(classes.items()):
        if saves_itself(cls):
            print(f'        "{name}",')
    print("    }\n)")


if __name__ == "__main__":
    main()
