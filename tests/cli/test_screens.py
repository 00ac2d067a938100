"""Every table as it stands on a real terminal of 80, 120 and 200 columns.

The screens are kept in ``screens/``; CKPT_UPDATE_SCREENS=1 writes them anew, to be looked at.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from signing_keys import write_key

from ckpt_surgery.cli.main import COMMANDS as COMMAND_NAMES
from ckpt_surgery.cli.main import cli
from ckpt_surgery.render.layout import Grid
from ckpt_surgery.render.screen import Screen

pyte = pytest.importorskip("pyte")

_SCREENS = Path(__file__).with_name("screens")
_PACKAGE = Path(__file__).resolve().parents[2] / "ckpt_surgery"
_RECIPE = """
[inputs]
base = "wide.pth"

[[steps]]
strip = { glob = "backbone.encoder.layers.0.**" }

[[steps]]
rename = { strip-prefix = "backbone.encoder" }

[[steps]]
expect = { count = 3, finite = true }

[[outputs]]
file = "lean.pth"
"""
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
    "freeze-plan-written": ["freeze-plan", "wide.pth", "--train", "head", "--lr", "0.1", "-o",
                            "plan.json"],
    "inspect-many": ["inspect", "wide.pth", "train.pth.tar", "net.pth"],
    "strip-many": ["strip", "wide.pth", "other.pth", "head.bias", "--output-template",
                   "{stem}-without-its-head{suffix}"],
    "match-many": ["match", "wide.pth", "net.pth", "--like", "other.pth"],
    "edit": ["edit", "wide.pth", "--flip", "**.query.weight=0", "-o", "out.pth"],
    "rename": ["rename", "wide.pth", "--strip-prefix", "backbone", "--allow-unmatched", "-o",
               "out.pth"],
    "verify": ["verify", "wide.pth", "cut.pth"],
    "diff": ["diff", "wide.pth", "other.pth", "--values"],
    "hash": ["hash", "wide.pth", "other.pth"],
    "get": ["get", "train.pth.tar"],
    "set": ["set", "train.pth.tar", "epoch=4", "loss=0.25", "arch=resnet50", "-o", "out.pth"],
    "strip": ["strip", "wide.pth", "--glob", "backbone.encoder.layers.0.**", "-o", "out.pth"],
    "convert": ["convert", "train.pth.tar", "--at", "state_dict", "--allow-loss", "-o",
                "out.safetensors"],
    "verify-many": ["verify", "wide.pth", "cut.pth", "net.pth", "train.pth.tar"],
    "inspect-many-failing": ["inspect", "wide.pth", "cut.pth", "net.pth"],
    "apply": ["apply", "recipe.toml"],
    "apply-dry-run": ["apply", "recipe.toml", "--dry-run"],
    "consolidate": ["consolidate", "ranks", "--axis", "w=1", "--axis", "norm=copies", "-o",
                    "out.pth"],
    "lora-extract": ["lora", "extract", "wide.pth", "tuned.pth", "--rank", "2", "-o", "adapter"],
    "lora-merge": ["lora", "merge", "one", "one", "--scale", "0.5,1", "-o", "both"],
    "sign": ["sign", "wide.pth", "--key", "key.pem"],
    "error": ["strip", "wide.pth", "head.bais", "-o", "out.pth"],
    "error-hint": ["strip", "wide.pth", "backbone.encoder.layers.0.**", "-o", "out.pth"],
}  # fmt: skip
ON_BOTH = {"default", "red", "green", "cyan", "magenta"}
"""Colors of text that can be read on a light and on a dark background."""


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
    (folder / "cut.pth").write_bytes((folder / "wide.pth").read_bytes()[:9000])
    (folder / "recipe.toml").write_text(_RECIPE, encoding="utf-8")
    (folder / "ranks").mkdir()
    for rank in range(2):
        part = {"w": torch.full((2, 2), float(rank)), "norm": torch.ones(2)}
        torch.save({"model": part, "epoch": rank}, folder / f"ranks/rank{rank}.pth")
    tuned = {name: torch.eye(64) if value.ndim == 2 else value for name, value in state.items()}
    torch.save(tuned, folder / "tuned.pth")
    return folder


@pytest.fixture
def prepared(wide: Path, invoke: Callable[..., Result]) -> Callable[[str], None]:
    """What a command needs that another has to make."""

    def prepare(name: str) -> None:
        if name == "lora-merge":
            made = invoke("lora", "extract", "wide.pth", "tuned.pth", "--rank", "1", "-o", "one")
            assert made.exit_code == 0, made.output
        elif name == "sign":
            write_key("key.pem")

    return prepare


def help_file(name: str) -> Path:
    return _SCREENS / f"help-{name}.80.txt"


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
def test_screen_is_as_it_was_looked_at(name, columns, prepared, at_terminal):
    prepared(name)
    _, text = at_terminal(*COMMANDS[name], columns=columns)
    lines = rendered(text, columns)
    assert not any(line.endswith("Traceback") for line in lines)
    file = _SCREENS / f"{name}.{columns}.txt"
    if os.environ.get("CKPT_UPDATE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == file.read_text(encoding="utf-8").splitlines()


def test_every_kept_screen_is_tested():
    kept = {path.name for path in _SCREENS.iterdir()}
    tables = {f"{name}.{columns}.txt" for name in COMMANDS for columns in WIDTHS}
    assert kept == tables | {help_file(name).name for name in ["ckpt", *COMMAND_NAMES]}


_GRIDS = sorted(
    f"{path.stem}.{node.name}"
    for room in ("render", "cli")
    for path in (_PACKAGE / room).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.FunctionDef)
    for call in ast.walk(node)
    if isinstance(call, ast.Call)
    and isinstance(call.func, ast.Attribute)
    and call.func.attr == "grid"
)
"""The functions that print a table."""


def test_every_table_has_a_screen(prepared, monkeypatch):
    """Whatever calls the layout engine is called by one of the commands whose screens are kept."""
    printed = set()
    own = Screen.grid

    def grid(self: Screen, table: Grid) -> None:
        code = sys._getframe(1).f_code
        printed.add(f"{Path(code.co_filename).stem}.{code.co_name}")
        own(self, table)

    monkeypatch.setattr(Screen, "grid", grid)
    for name, words in COMMANDS.items():
        if name != "sign":
            prepared(name)
            for made in ("out.pth", "plan.json", "out.safetensors"):
                Path(made).unlink(missing_ok=True)
            CliRunner().invoke(cli, words)
    assert sorted(printed) == sorted(set(_GRIDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_colors_are_read_on_light_and_on_dark(name, prepared, monkeypatch):
    """No background, no white, no black, no yellow, nothing bright."""
    prepared(name)
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = CliRunner().invoke(cli, COMMANDS[name], color=True)
    screen = pyte.Screen(400, 400)
    pyte.Stream(screen).feed((result.stdout + result.stderr).replace("\n", "\r\n"))
    cells = [cell for line in screen.buffer.values() for cell in line.values()]
    assert cells
    assert {cell.fg for cell in cells} <= ON_BOTH
    assert {cell.bg for cell in cells} == {"default"}
    assert not any(cell.reverse for cell in cells)


@pytest.mark.parametrize("name", ["ckpt", *COMMAND_NAMES])
def test_help_is_as_it_was_looked_at_whatever_the_width(name, at_terminal, capsys, monkeypatch):
    """scripts/make_reference.py writes these anew."""
    words = [] if name == "ckpt" else [name]
    _, text = at_terminal(*words, "--help", columns=80)
    lines = rendered(text, 80)
    assert lines == help_file(name).read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 80
    for columns in ("120", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == lines
