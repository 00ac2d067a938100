"""Real architectures with seeded random weights, and `ckpt` as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from ckpt_surgery.cli.main import cli
from ckpt_surgery.models.torchvision_import import import_torchvision


@pytest.fixture(scope="session")
def build() -> Callable[..., torch.nn.Module]:
    """A torchvision model by its name, its weights drawn with seed 0."""
    models: Any = import_torchvision().models

    def make(name: str, **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        model = models.get_model(name, weights=None, **arguments)
        assert isinstance(model, torch.nn.Module)
        return model

    return make


@pytest.fixture
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line in `tmp_path`; it must end with `exit_code`."""
    monkeypatch.chdir(tmp_path)

    def run(*line: str, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(cli, list(line))
        assert result.exit_code == exit_code, result.output
        return result

    return run
