"""torchvision's architectures, each described once for all tests."""

from __future__ import annotations

from functools import cache

from ckpt_surgery.models.building import build_target
from ckpt_surgery.models.target import Target


@cache
def architecture(name: str) -> Target:
    return build_target(f"torchvision:{name}")
