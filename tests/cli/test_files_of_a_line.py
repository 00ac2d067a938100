"""Laws of the files on a line: none that is read is written to."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

from ckpt_surgery import Output, convert
from ckpt_surgery.cli.files import refuse_inputs_as_outputs
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.cli.types import CheckpointFile, InputFile, OutputFile
from ckpt_surgery.errors import WriteError
from ckpt_surgery.formats.base import LayoutOptions

_LINE = click.Context(cli, info_name="ckpt")
_LINKS = {
    "itself": lambda link, file: link.parent / file.name,
    "symbolic": lambda link, file: link.symlink_to(file) or link,
    "hard": lambda link, file: link.hardlink_to(file) or link,
    "relative": lambda _, file: os.path.relpath(file),
    "roundabout": lambda _, file: file.parent / ".." / file.parent.name / "." / file.name,
    "through a folder": lambda link, file: link.symlink_to(".") or link / file.name,
}


def _parameters(kind):
    for name in COMMANDS:
        for parameter in cli.get_command(_LINE, name).params:
            if isinstance(parameter.type, kind):
                yield name, parameter


def _pairs():
    outputs, inputs = _parameters(OutputFile), list(_parameters((CheckpointFile, InputFile)))
    for (name, output), (other, read) in itertools.product(outputs, inputs):
        if name == other:
            yield pytest.param(name, output, read, id=f"{name} {output.name} {read.name}")


def _words(parameter, path):
    if isinstance(parameter, click.Argument):
        return [str(path)]
    return [parameter.opts[-1], *["other"] * (parameter.nargs - 1), str(path)]


def _required(command, *given):
    """Return words for all that `command` requires, but for what is `given`."""
    return [
        word
        for parameter in command.params
        if parameter.required and parameter not in given
        for word in _words(parameter, "required")
    ]


def test_every_file_on_a_line_is_known_to_be_read_or_written():
    bare = [p.name for _, p in _parameters(click.Path) if type(p.type) is click.Path]
    assert bare == []
    writing = {"strip", "rename", "convert", "fit", "merge", "freeze-plan"}
    assert {name for name, _ in _parameters(OutputFile)} >= writing


@pytest.mark.parametrize("link", _LINKS)
@pytest.mark.parametrize(("name", "output", "read"), list(_pairs()))
def test_no_output_is_an_input(name, output, read, link, tmp_path):
    file = tmp_path / "a.json"
    file.write_text("mine")
    path = _LINKS[link](tmp_path / "link.json", file)
    command = cli.get_command(_LINE, name)
    dry_run = [["--dry-run"]] if any(p.name == "dry_run" for p in command.params) else []
    required = _required(command, output, read)
    for more in ([], ["--force"], *dry_run):
        words = [*_words(output, path), *_words(read, file), *required, *more]
        with command.make_context(name, words, parent=_LINE) as ctx:
            with pytest.raises(WriteError, match=r"is the (input|file of)") as caught:
                refuse_inputs_as_outputs(ctx)
            assert str(caught.value).startswith(f"'{path}': ")
            assert caught.value.hint


PART = "parts/model-00001-of-00002.safetensors"
FIT = ["fit", "net.pth", "--like", "other.pth", "-o", "o.pth"]
LINES = {
    "the record is another file of a merge": (
        ["merge", "net.pth", "other.pth", "-o", "o.pth", "--record", "other.pth"],
        "'--record' is the input",
    ),
    "the output is a file of the recipe": (
        ["merge", "--recipe", "recipe.toml", "-o", "link.pth"],
        "'link.pth': the output is the input",
    ),
    "the record is a file of the recipe": (
        ["merge", "--recipe", "recipe.toml", "-o", "o.pth", "--record", "other.pth"],
        "'other.pth': '--record' is the input",
    ),
    "the output is a file of the folder": (
        ["merge", "runs", "--last", "2", "-m", "average", "-o", "runs/2.pth"],
        "the output is the input",
    ),
    "the map is the file": (
        [*FIT, "--emit-map", "link.pth"],
        "'--emit-map' is the input",
    ),
    "the map is the map": (
        [*FIT, "--rename-map", "map.toml", "--emit-map", "map.toml"],
        "'--emit-map' is the file of '--map'",
    ),
    "the output is what it is like": (
        ["fit", "net.pth", "--like", "other.pth", "-o", "other.pth"],
        "the output is the file of '--like'",
    ),
    "the record is the map": (
        [*FIT, "--emit-map", "new", "--record", "new"],
        "'--record' is '--emit-map'",
    ),
    "the record is replaced in place": (
        ["strip", "net.pth", "--prefix", "fc", "-i", "--record", "net.pth"],
        "'--record' is the input",
    ),
    "the output is the list of names": (
        ["strip", "net.pth", "--keys-from", "names.txt", "-o", "names.txt"],
        "the output is the file of '--keys-from'",
    ),
    "a template is the list of names": (
        [
            "strip",
            "net.pth",
            "--keys-from",
            "names.txt",
            "--output-template",
            "names.txt",
            "--format",
            "torch-zip",
        ],
        "'names.txt': the output is the file of '--keys-from'",
    ),
    "a template is a link to another input": (
        ["rename", "net.pth", "other.pth", "--add-prefix", "m", "--output-template", "hard-{name}"],
        "'hard-net.pth': the output is the input",
    ),
    "the plan is a part of the file": (
        ["freeze-plan", "parts", "--emit", "json", "-o", PART],
        "the output is the input",
    ),
    "the output is a part of what it is like": (
        ["fit", "net.pth", "--like", "parts", "-o", PART],
        "the output is the input",
    ),
    "the map is the model": (
        ["fit", "net.pth", "--model", "our_net:make", "-o", "o.pth", "--emit-map", "our_net.py"],
        "'our_net.py': '--emit-map' is the code of '--model'",
    ),
    "the output is the code of a layer": (
        [
            "fit",
            "net.pth",
            "--model",
            "our_net:make",
            "-o",
            "our_layers.py",
            "--format",
            "torch-zip",
        ],
        "'our_layers.py': the output is the code of '--model'",
    ),
    "the plan is the model": (
        ["freeze-plan", "--model", "our_net:make", "--emit", "python", "-o", "our_net.py"],
        "'our_net.py': the output is the code of '--model'",
    ),
    "an output of the recipe is the model": (
        ["apply", "model.toml"],
        "'our_net.py': the output is the code of '--model'",
    ),
    "an output of the recipe is what is to load into": (
        ["apply", "loads.toml"],
        "'our_layers.py': the output is the code of '--model'",
    ),
    "the plan is the file": (
        ["freeze-plan", "net.pth", "--emit", "json", "-o", "net.pth"],
        "the output is the input",
    ),
    "an output of the recipe is the recipe": (
        ["apply", "itself.toml"],
        "'itself.toml': the output is the recipe",
    ),
    "an output of the recipe is a list of names": (
        ["apply", "list.toml"],
        "'names.txt': the output is the file of '--keys-from'",
    ),
    "an output of the recipe is what an assertion is about": (
        ["apply", "expected.toml"],
        "'other.pth': the output is the",
    ),
}
_STRIP = 'strip = { name = "fc.bias" }'
_RECIPES = {
    "itself.toml": (_STRIP, "itself.toml"),
    "list.toml": ('strip = { keys-from = "names.txt" }', "names.txt"),
    "expected.toml": ('expect = { matches = { like = "other.pth" } }', "other.pth"),
    "model.toml": ('fit = { model = "our_net:make", initial = [] }', "our_net.py"),
    "loads.toml": ('expect = { matches = { model = "our_net:make" } }', "our_layers.py"),
}


_CODE = {
    "our_layers.py": """
import torch

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 4, bias=False)
        self.head.weight = self.fc.weight
        self.blocks = torch.nn.Sequential(*(
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
            for _ in range(2)
        ))
""",
    "our_net.py": "from our_layers import Layers\ndef make(): return Layers()\n",
}


@pytest.fixture
def files(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    for name, text in _CODE.items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    (folder / "hard-net.pth").hardlink_to(folder / "net.pth")
    sharded = {f"{i}.weight": torch.zeros(64) for i in range(2)} | torch.load(folder / "net.pth")
    torch.save(sharded, folder / "sharded.pth")
    convert("sharded.pth", Output("parts", options=LayoutOptions(max_shard_size=600),
                                  format="safetensors-index", allow_loss=True))  # fmt: skip
    other = folder / "other.pth"
    other.write_bytes((folder / "net.pth").read_bytes())
    (folder / "link.pth").symlink_to("net.pth")
    (folder / "names.txt").write_text("fc.bias\n")
    (folder / "map.toml").write_text('"fc.bias" = "fc.bias"\n')
    (folder / "runs").mkdir()
    for number in (1, 2):
        torch.save({"weight": torch.ones(2)}, folder / "runs" / f"{number}.pth")
    for name, (step, output) in _RECIPES.items():
        (folder / name).write_text(
            f'[inputs]\nbase = "net.pth"\n[[steps]]\n{step}\n[[outputs]]\nfile = "{output}"\n'
        )
    (folder / "recipe.toml").write_text(
        'method = "average"\n[[inputs]]\nfile = "net.pth"\n[[inputs]]\nfile = "other.pth"\n'
    )
    return folder


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("line", LINES)
def test_nothing_is_written_by_a_line_that_would_write_over_an_input(line, files, invoke):
    words, message = LINES[line]
    before = snapshot(files)
    for force in ([], ["--force"]):
        done = invoke(*words, *force)
        assert done.exit_code == 2, done.output
        assert snapshot(files) == before
    assert message in done.stderr


@pytest.mark.parametrize("line", [k for k, (words, _) in LINES.items() if "--record" not in words])
def test_a_dry_run_says_so_too(line, files, invoke):
    words, message = LINES[line]
    if words[0] == "freeze-plan":
        return
    done = invoke(*words, "--force", "--dry-run")
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "replaces"),
    [
        (["freeze-plan", "net.pth", "-o", "net.pth"], False),
        (["bom", "net.pth", "-o", "net.pth"], False),
        (["apply", "input.toml"], False),
        (["strip", "net.pth", "--prefix", "fc", "-o", "net.pth"], True),
    ],
)
def test_a_hint_speaks_of_in_place_where_there_is_that_option(words, replaces, files, invoke):
    text = '[inputs]\nbase = "net.pth"\n[[outputs]]\nfile = "net.pth"\n'
    (files / "input.toml").write_text(text)
    done = invoke(*words, "--force")
    assert "the output is the input" in done.stderr
    assert ("--in-place" in done.stderr) == replaces


def test_in_place_with_itself_as_the_target_is_no_conflict(folder, invoke):
    done = invoke("fit", "net.pth", "--like", "net.pth", "--dtype", "float16", "-i")
    assert done.exit_code == 0, done.stderr
    assert torch.load("net.pth")["fc.weight"].dtype == torch.float16


def test_standard_streams_are_files_too(files, environment):
    def run(line):
        command = line.replace("ckpt", f'"{sys.executable}" -m ckpt_surgery', 1)
        return subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True
        )

    before = snapshot(files)
    for line, message in {
        "ckpt strip --prefix fc -o link.pth --force < net.pth": "the output is the input",
        "ckpt strip - --prefix fc -o o.pth --record net.pth --force < net.pth": (
            "'--record' is the input"
        ),
        "ckpt strip net.pth --prefix fc >> net.pth": "standard output is the input",
        "ckpt strip net.pth --keys-from names.txt >> names.txt": (
            "standard output is the file of '--keys-from'"
        ),
        "ckpt strip net.pth --keys-from - -o names.txt --force < names.txt": (
            "the output is the file of '--keys-from'"
        ),
        "ckpt freeze-plan --first 1 --emit json -o net.pth --force < net.pth": (
            "the output is the input"
        ),
    }.items():
        done = run(line)
        assert (done.returncode, done.stdout) == (2, ""), line
        assert message in done.stderr, line
        assert snapshot(files) == before, line
    assert run("ckpt strip net.pth --prefix fc --dry-run >> report.txt").returncode == 0


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_a_plan_has_no_stream(option, folder, invoke):
    done = invoke("freeze-plan", "net.pth", "--emit", "json", option, "-")
    assert done.exit_code == 2
    assert "'-o -' names no file" in done.stderr
    assert not Path("-").exists()


def test_a_directory_with_an_input_in_it_is_not_replaced(folder, invoke):
    (folder / "parts").mkdir()
    (folder / "net.pth").rename(folder / "parts" / "net.pth")
    before = snapshot(folder)
    for more in ([], ["--dry-run"]):
        line = ["convert", "parts/net.pth", "-o", "parts", "--format", "torch-index", "--force"]
        done = invoke(*line, *more)
        assert done.exit_code == 2
        assert "'parts': is a directory, and the input lies in it" in done.stderr
    assert snapshot(folder) == before


def test_a_bill_of_materials_is_written_over_no_part_of_a_model(files, invoke):
    pytest.importorskip("cyclonedx", reason="an extra")
    before = snapshot(files)
    done = invoke("bom", "parts", "-o", PART, "--force")
    assert (done.exit_code, "the output is the input" in done.stderr) == (2, True)
    assert snapshot(files) == before


def test_the_configuration_of_a_model_is_read_too(files, invoke):
    pytest.importorskip("transformers", reason="another project")
    (files / "gpt").mkdir()
    small = {"n_layer": 1, "n_embd": 4, "n_head": 1, "vocab_size": 8, "n_positions": 4}
    said = json.dumps({"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **small})
    (files / "gpt" / "config.json").write_text(said)
    torch.save({"wte.weight": torch.zeros(8, 4)}, files / "gpt.pth")
    line = ["fit", "gpt.pth", "--model", "hf:gpt", "--dry-run", "--force"]
    done = invoke(*line, "--emit-map", "gpt/config.json")
    assert "'--emit-map' is the configuration of '--model'" in done.stderr
    assert (files / "gpt" / "config.json").read_text() == said
