"""Other projects that some tests need: imported with what they need, or the test is skipped."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

import pytest

from ckpt_surgery.models.torchvision_import import import_torchvision


def framework(name: str) -> ModuleType:
    """Import `name`, a module of a project in ``frameworks.txt``, or skip the test.

    Nothing reaches the network, warnings of that project are its own business, and a torchvision
    whose operators were built for another torch imports all the same.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        return pytest.importorskip(name)
