"""R27: what a fitted checkpoint is worth in early epochs, by the script that draws the curves."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from ckpt_surgery.cli.main import cli

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(_ROOT / "scripts"))
    module = importlib.import_module("transfer_demo")
    monkeypatch.setattr(module, "_EPOCHS", 3)

    def in_this_process(*line: str) -> str:
        done = CliRunner().invoke(cli, line)
        assert done.exit_code == 0, done.output
        return done.stdout

    monkeypatch.setattr(module, "_ckpt", in_this_process)
    return module


def test_r27_a_fitted_network_is_ahead_in_early_epochs(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scratch, fitted = [], []
    try:
        for seed in range(2):
            file = demo._pretrain_and_fit(tmp_path, seed)
            scratch.append(demo._train_on_few(None, seed))
            fitted.append(demo._train_on_few(file, seed))
    finally:
        torch.set_num_threads(threads)
    for epoch in (1, 2, 3):
        assert demo._mean(fitted)[epoch] > demo._mean(scratch)[epoch] + 0.05, (scratch, fitted)
    said = capsys.readouterr().out
    assert "copied 17 tensors" in said
    assert "initial 3 tensors" in said
    assert demo._draw({"from scratch": scratch, "from the fitted file": fitted}).count("<poly") == 4
