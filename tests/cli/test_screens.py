"""Every table as it stands on a real terminal of 80, 120 and 200 columns.

The screens are kept in ``screens/``; CKPT_UPDATE_SCREENS=1 writes them anew, to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pyte = pytest.importorskip("pyte")

_SCREENS = Path(__file__).with_name("screens")
WIDTHS = (80, 120, 200)
COMMANDS = {
    "inspect": ["inspect", "wide.pth"],
    "inspect-index": ["inspect", "wide.pth", "--index"],
    "inspect-stats": ["inspect", "wide.pth", "--stats"],
    "inspect-tree": ["inspect", "wide.pth", "--tree"],
    "inspect-fold": ["inspect", "wide.pth", "--fold"],
    "inspect-training": ["inspect", "train.pth.tar"],
    "merge": ["merge", "wide.pth", "other.pth", "-o", "out.pth"],
    "merge-average": ["merge", "-m", "linear", "--weight", "0.25", "--weight", "0.75", "wide.pth",
                      "other.pth", "-o", "out.pth"],
    "merge-methods": ["merge", "--methods"],
    "match": ["match", "wide.pth", "--like", "net.pth"],
    "fit": ["fit", "net.pth", "--like", "wide.pth", "-o", "out.pth"],
    "freeze-plan": ["freeze-plan", "wide.pth", "--freeze-prefix", "backbone"],
}  # fmt: skip


@pytest.fixture
def wide(folder: Path) -> Path:
    """Names as long as those of real models, and values that are the same everywhere."""
    state = {
        f"backbone.encoder.layers.{i}.attention.{name}.weight": torch.full((64, 64), i - 0.5)
        for i in range(2)
        for name in ("query", "relative_position_bias_table")
    }
    state["head.bias"] = torch.arange(4.0)
    torch.save(state, folder / "wide.pth")
    torch.save({name: value + 1 for name, value in state.items()}, folder / "other.pth")
    return folder


def rendered(text: str, columns: int) -> list[str]:
    """What a terminal shows of `text`, with no line lost at the top."""
    screen = pyte.Screen(columns, 400)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_screen_is_as_it_was_looked_at(name, columns, wide, at_terminal):
    _, text = at_terminal(*COMMANDS[name], columns=columns)
    lines = rendered(text, columns)
    file = _SCREENS / f"{name}.{columns}.txt"
    if os.environ.get("CKPT_UPDATE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == file.read_text(encoding="utf-8").splitlines()


def test_every_kept_screen_is_tested():
    kept = {path.name for path in _SCREENS.iterdir()}
    assert kept == {f"{name}.{columns}.txt" for name in COMMANDS for columns in WIDTHS}
