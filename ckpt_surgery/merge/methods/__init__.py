"""The merge methods: importing a module of this package puts its methods into the catalogue."""

from __future__ import annotations

import importlib
from typing import Final

_MODULES: Final = (
    *("averages", "interpolation", "geometry", "spherical"),
    *("task_vectors", "consensus", "selection"),
)


def load() -> None:
    """Import every module that holds methods."""
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
