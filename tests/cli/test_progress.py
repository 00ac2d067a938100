"""What may take more than half a second shows a bar on a terminal, and none anywhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import ckpt_surgery
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.render import progress

_RECIPE = """
[inputs]
base = "big.pth"
[[steps]]
strip = { name = "b.bias" }
[[outputs]]
file = "out.pth"
"""
LONG = {
    "inspect --stats": ["inspect", "big.pth", "--stats"],
    "inspect --stats of several": ["inspect", "big.pth", "tuned.pth", "--stats"],
    "strip": ["strip", "big.pth", "b.bias", "-o", "out.pth"],
    "strip -i": ["strip", "big.pth", "b.bias", "-i"],
    "strip of several": ["strip", "big.pth", "tuned.pth", "b.bias", "-i"],
    "rename": ["rename", "big.pth", "--add-prefix", "net", "-o", "out.pth"],
    "edit": ["edit", "big.pth", "--flip", "a.weight=0", "-o", "out.pth"],
    "set": ["set", "training.pth", "epoch=1", "-o", "out.pth"],
    "convert": ["convert", "big.pth", "-o", "out.safetensors"],
    "convert --dtype": ["convert", "big.pth", "--dtype", "float16", "-o", "out.pth"],
    "convert to shards": ["convert", "big.pth", "--format", "safetensors-index", "-o", "shards"],
    "fit": ["fit", "big.pth", "--like", "tuned.pth", "-o", "out.pth"],
    "merge": ["merge", "big.pth", "tuned.pth", "-o", "out.pth"],
    "merge -m linear": ["merge", "-m", "linear", "big.pth", "tuned.pth", "-o", "out.pth"],
    "merge -m ties": ["merge", "-m", "ties", "big.pth", "tuned.pth", "tuned.pth", "-o", "out.pth"],
    "merge -m lora": ["merge", "-m", "lora", "big.pth", "adapter", "-o", "out.pth"],
    "lora extract": ["lora", "extract", "big.pth", "tuned.pth", "--rank", "2", "-o", "out"],
    "lora merge": ["lora", "merge", "adapter", "adapter", "-o", "out"],
    "verify": ["verify", "big.pth"],
    "verify of several": ["verify", "big.pth", "tuned.pth"],
    "verify --values": ["verify", "big.pth", "--values"],
    "verify --salvage": ["verify", "big.pth", "--salvage", "out.pth"],
    "hash": ["hash", "big.pth"],
    "hash of several": ["hash", "big.pth", "tuned.pth"],
    "diff --values": ["diff", "big.pth", "tuned.pth", "--values"],
    "apply": ["apply", "recipe.toml"],
    "consolidate": ["consolidate", "ranks", "--axis", "w=0", "-o", "out.pth"],
    "bom": ["bom", "big.pth"],
}
SHORT = {
    "completion": "prints a script",
    "freeze-plan": "reads names and shapes",
    "get": "reads one value",
    "match": "reads names and shapes",
    "sign": "is done by model-signing, which tells nobody how far it is",
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]
) -> Callable[[str], list[str]]:
    """Give the words of a command whose files are there, with bars that appear at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(256, 256), "b.weight": torch.randn(256, 64)}
    state["b.bias"] = torch.zeros(256)
    torch.save(state, "big.pth")
    torch.save({name: value + 1 for name, value in state.items()}, "tuned.pth")
    torch.save({"model": state, "epoch": 0}, "training.pth")
    Path("recipe.toml").write_text(_RECIPE, encoding="utf-8")
    Path("ranks").mkdir()
    for rank in range(2):
        torch.save({"w": torch.ones(256, 256)}, f"ranks/rank{rank}.pth")

    def words(name: str) -> list[str]:
        if name == "bom":
            pytest.importorskip("cyclonedx")
        if "adapter" in LONG[name]:
            made = invoke(
                *("lora", "extract", "big.pth", "tuned.pth", "--rank", "1", "-o", "adapter")
            )
            assert made.exit_code == 0, made.output
        return LONG[name]

    return words


@pytest.mark.parametrize("name", LONG)
def test_a_long_verb_shows_a_bar_on_a_terminal(name, line, monkeypatch):
    words = line(name)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as left:
        cli.main(words, prog_name="ckpt")
    assert left.value.code in (0, 1), terminal.getvalue()
    assert "━" in terminal.getvalue()


@pytest.mark.parametrize("name", LONG)
def test_a_long_verb_shows_no_bar_in_a_pipe_or_if_it_is_quiet(name, line, monkeypatch):
    words = line(name)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code in (0, 1), result.output
    assert "━" not in result.output


def test_factors_are_counted_while_they_are_computed(line):
    """Which takes longer than writing them."""
    line("lora merge")
    size = torch.load("big.pth")["a.weight"].nbytes * 5 // 4 + 1024
    seen = []

    @contextmanager
    def bar(total):
        seen.append([total, 0])
        yield lambda number: seen[-1].__setitem__(1, seen[-1][1] + number)

    output = ckpt_surgery.Output("made", progress=bar)
    ckpt_surgery.extract_lora("big.pth", "tuned.pth", output, rank=1)
    assert seen[0] == [size, size]
    ckpt_surgery.merge_loras(
        ["adapter", "adapter"], ckpt_surgery.Output("both", progress=bar), rank=1
    )
    (total, done) = seen[len(seen) // 2]
    assert total == done == 2 * 4 * (256 + 256 + 256 + 64)


def test_every_command_is_long_or_says_why_it_is_not():
    assert {name.split(" ")[0] for name in LONG} | set(SHORT) == set(COMMANDS)
