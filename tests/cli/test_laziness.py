"""What a command does not need it does not import."""

from __future__ import annotations

import re
import subprocess
import sys
from inspect import cleandoc
from pathlib import Path

import click
import pytest
import torch

from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.formats.registry import _WRITABLE

HEAVY = {"torch", "torchvision", "numpy", "timm", "transformers", "safetensors"}
_GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if {{name, name.partition(".")[0]}} & {forbidden!r}:
            raise ImportError("imported " + name)
sys.meta_path.insert(0, Guard())
from ckpt_surgery.cli.main import cli
cli.main({args!r})
"""


def run_without(forbidden, args, environment):
    code = _GUARD.format(forbidden=set(forbidden), args=args)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["inspect", "train.pth.tar"],
        ["strip", "net.pth", "--prefix", "fc", "--compact", "-o", "s.pth"],
        ["rename", "net.pth", "--add-prefix", "m", "-o", "r.pth"],
        ["convert", "net.pth", "-o", "c.pth"],
        ["hash", "net.pth", "train.pth.tar"],
        ["verify", "net.pth", "train.pth.tar"],
        ["diff", "net.pth", "net.pth"],
        ["freeze-plan", "net.pth", "--train", "head", "--lr", "0.1", "--emit", "python"],
        ["strip", "--help"],
        ["strip", "train.pth.tar", "--training-state", "--ema", "-o", "s.pth"],
        ["edit", "net.pth", "--copy", "fc.bias=fc.twin", "-o", "e.pth"],
        ["set", "train.pth.tar", "epoch=4", "-o", "e.pth"],
        ["get", "train.pth.tar", "optimizer/param_groups/0/lr"],
        ["apply", "recipe.toml", "-o", "a.pth"],
        ["match", "net.pth", "--like", "net.pth"],
        ["fit", "net.pth", "--like", "net.pth", "-o", "f.pth"],
        ["consolidate", "net.pth", "-o", "w.pth"],
        ["convert", "train.pth.tar", "--plain", "--device", "cpu", "-o", "c.pth"],
        ["convert", "module.pth", "-o", "c.pth"],
        ["verify", "net.pth", "--salvage", "v.pth"],
    ],
    ids=" ".join,
)
def test_no_command_imports_torch(folder, environment, args):
    Path("recipe.toml").write_text(
        '[inputs]\na = "net.pth"\n'
        '[[steps]]\nrename = { add-prefix = "m" }\n[[steps]]\nexpect = { count = 15 }\n'
    )
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    done = run_without(HEAVY, args, environment)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", _WRITABLE)
def test_no_format_is_written_or_read_with_torch(folder, environment, name):
    made = ["convert", "net.pth", "--format", name, "-o", "made"]
    for line in (made, ["inspect", "made"], ["verify", "made"]):
        done = run_without(HEAVY, line, environment)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("form", [["--keys"], ["--json"], ["--csv"], ["--tree"], []], ids=" ".join)
def test_inspect_into_a_pipe_does_without_rich(folder, environment, form):
    forbidden = {"rich", "importlib.metadata", "typing_extensions", "concurrent", "torch", "numpy"}
    done = run_without(forbidden, ["inspect", "net.pth", *form], environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_guard_notices():
    """The tests above can fail."""
    done = run_without({"click"}, ["--help"], None)
    assert b"imported click" in done.stderr


def test_help_of_the_group_imports_no_command(environment):
    code = (
        "import sys; from ckpt_surgery.cli.main import COMMANDS, cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "loaded = [m for m in ('inspect', 'strip', 'rename', 'convert')"
        " if 'ckpt_surgery.cli.' + m in sys.modules]\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(name.encode() in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_help_of_the_table_and_examples(name):
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1]
    assert "\b\nExamples:\n  " in cleandoc(command.help or "")
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_has_every_option_under_a_heading(name, invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke(name, "--help").stdout
    assert [line for line in text.splitlines() if len(line) > 80] == []
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    for option in options:
        assert re.search(rf"^  (-\w, )?{option.opts[-1]}\b", text, re.MULTILINE), option.opts
    assert "\nReport:\n" in text


def test_collections_never_look_at_what_a_command_has_read(folder, environment):
    """With torch imported they would take longer than many a command."""
    torch.save({"a": torch.ones(1)}, "net.pth")
    code = (
        "import atexit, gc, sys; from ckpt_surgery.cli.main import run\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "sys.argv = ['ckpt', 'inspect', '--keys', 'net.pth']\n"
        "run()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines() == [b"a", b"True"]


def test_importing_torch_costs_one_collection_at_most(environment):
    """The one that is due when it is done, instead of hundreds meanwhile."""
    code = (
        "import gc, sys; from ckpt_surgery.compute.elements import require_torch\n"
        "runs = []; gc.collect(); gc.callbacks.append(lambda phase, info: runs.append(phase))\n"
        "require_torch(); assert 'torch' in sys.modules\n"
        "print(runs.count('start') <= 1, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.stdout.split(), done.stderr) == ([b"True", b"True"], b"")


def test_unknown_command_is_none():
    with click.Context(cli) as context:
        assert cli.get_command(context, "nope") is None


def test_object_that_is_no_command_is_a_bug(monkeypatch):
    monkeypatch.setitem(COMMANDS, "odd", ("ckpt_surgery.cli.commands.strip:output_options", "Odd."))
    with click.Context(cli) as context, pytest.raises(TypeError, match="no command"):
        cli.get_command(context, "odd")
