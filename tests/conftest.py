"""Fixtures and files that every test may need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a slow machine is no fault of the package
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of published and hostile checkpoints, which is not part of the repository.

    It is looked for beside the repository, or where CKPT_SHARED says.
    """
    folder = Path(os.environ.get("CKPT_SHARED", _REPOSITORY.parent / "shared"))
    if not (folder / "real").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the published checkpoints are not in {folder}")
        pytest.skip("the published checkpoints are not here; CKPT_SHARED says where they are")
    return folder
