"""Plain values beside the weights: what `ckpt set` writes and `ckpt get` prints."""

from __future__ import annotations

import argparse
import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ckpt_surgery import CkptError, PlanError, SetRequest, get_value, list_values, set_values
from ckpt_surgery.cli.main import cli


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path_factory.mktemp("values") / "train.pth"
    torch.save(
        {
            "epoch": 90,
            "best": np.float64(71.5),
            "f32": np.float32(0.5),
            "i8": np.int8(3),
            "on": np.bool_(True),
            "args": argparse.Namespace(lr=0.1, data="/x", betas=(0.9, 0.99), resume=None),
            "empty": argparse.Namespace(),
            "hyper_parameters": collections.OrderedDict(
                lr=0.1, name="a", opt={"wd": 1e-4}, steps=[1, 2], path=Path("/x")
            ),
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        path,
    )
    return path


def changed(source: Path, *args: str) -> Any:
    out = source.with_name("out.pth")
    result = ckpt("set", source, *args, "-o", out, "--force")
    assert result.exit_code == 0, result.stderr
    return torch.load(out, weights_only=False)


def at(value: Any, path: str) -> Any:
    for part in path.split("/"):
        if isinstance(value, list | tuple):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value[int(part) if part.isdigit() else part]
        else:
            value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("epoch", "0", 0),
        ("epoch", "1.0", 1.0),
        ("epoch", "-1e3", -1000.0),
        ("epoch", "inf", math.inf),
        ("epoch", "true", True),
        ("epoch", '"7"', "7"),
        ("epoch", "seven", "seven"),
        ("epoch", "./a/b-c.pth", "./a/b-c.pth"),
        ("epoch", "[1, [2.0]]", [1, [2.0]]),
        ("epoch", "{ a = 1, b = { c = 'd' } }", {"a": 1, "b": {"c": "d"}}),
        ("optimizer/param_groups/0/lr", "1e-4", 1e-4),
        ("optimizer/param_groups/0/betas/1", "0.95", 0.95),
        ("args/data", "/data/imagenet", "/data/imagenet"),
        ("args/batch", "32", 32),
        ("empty/new", "1", 1),
        ("hyper_parameters/opt/wd", "0.0", 0.0),
        ("hyper_parameters/steps/1", "9", 9),
        ("hyper_parameters/new", "text", "text"),
        ("new", "3", 3),
    ],
)
def test_value_is_what_toml_types_it_as_and_nothing_else_changes(path, text, wanted, training):
    found = changed(training, f"{path}={text}")
    assert at(found, path) == wanted
    assert type(at(found, path)) is type(wanted)
    shown = ckpt("get", training.with_name("out.pth"), path, "--json")
    assert json.loads(shown.stdout) == (wanted if wanted != math.inf else "inf")
    before = torch.load(training, weights_only=False)
    top = path.partition("/")[0]
    assert set(found) == set(before) | {top}
    for key in set(before) - {top, "state_dict", "optimizer"}:
        assert found[key] == before[key]
    assert torch.equal(found["state_dict"]["weight"], before["state_dict"]["weight"])
    resumed = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    resumed.load_state_dict(found["optimizer"])


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("best", "80", np.float64(80)),
        ("f32", "0.25", np.float32(0.25)),
        ("f32", "inf", np.float32(math.inf)),
        ("i8", "4.0", np.int8(4)),
        ("on", "false", np.bool_(False)),
        ("epoch", "4.0", 4),
        ("args/lr", "1", 1.0),
        ("args/betas", "[1, 0.5]", (1.0, 0.5)),
        ("args/betas", "[1]", (1,)),
        ("args/resume", "x", "x"),
        ("hyper_parameters/steps", "[3.0, 4]", [3, 4]),
        ("hyper_parameters/opt", "{ wd = 1, b = 2 }", {"wd": 1.0, "b": 2}),
        ("hyper_parameters/name", "b", "b"),
    ],
)
def test_like_type_keeps_the_type(path, text, wanted, training):
    found = at(changed(training, f"{path}={text}", "--like-type"), path)
    assert found == wanted
    assert type(found) is type(wanted)
    if isinstance(found, dict):
        assert list(map(type, found.values())) == list(map(type, wanted.values()))


def test_type_that_changes_is_said(training, tmp_path):
    result = ckpt("set", training, "best=3", "args/betas=[1, 2]", "epoch=1", "-o", tmp_path / "o")
    assert "best: 71.5 -> 3\n" in result.stdout
    assert "the type of 'best' is int by now, it was numpy.float64" in result.stdout
    assert "'args/betas' is list by now, it was tuple" in result.stdout
    assert "'epoch' is" not in result.stdout


def test_new_key_near_an_old_one_is_said(training, tmp_path):
    result = ckpt("set", training, "epcoh=3", "-o", tmp_path / "o.pth")
    assert "warning: 'epcoh' is new: did you mean 'epoch'?" in result.stdout
    assert "epcoh: 3, which is new" in result.stdout


def test_what_is_deleted_is_gone(training):
    found = changed(
        training,
        *("--delete", "args/resume", "--delete", "best", "--delete", "hyper_parameters/opt/wd"),
        *("--delete", "optimizer", "epoch=1"),
    )
    assert vars(found["args"]) == {"lr": 0.1, "data": "/x", "betas": (0.9, 0.99)}
    assert found["hyper_parameters"]["opt"] == {}
    assert "best" not in found
    assert "optimizer" not in found
    assert found["epoch"] == 1


def test_values_follow_each_other_in_the_order_given(training):
    found = changed(training, "a={}", "a/b=1", "a/b=2", "a/c={ d = 1 }", "a/c/d=2", "epoch=5")
    assert found["a"] == {"b": 2, "c": {"d": 2}}
    assert found["epoch"] == 5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "nothing is to be set"),
        (["epoch"], "'epoch' is not of the form PATH=VALUE"),
        (["=3"], "is not of the form PATH=VALUE"),
        (["a=.1"], "'.1' is no value of TOML"),
        (["a="], "hint: a text in quotes always is: a='\"\"'"),
        (["a=True"], "hint: TOML writes true"),
        (["a=None"], "is no value of TOML"),
        (["a=1 # c"], "is no value of TOML"),
        (["a=1, b = 2"], "is no value of TOML"),
        (["a=1\nb = 2"], "is no value of TOML"),
        (["a=" + "[" * 5000], "is no value of TOML"),
        (["a=2020-01-01"], "dates and times"),
        (["epoch=1", "--delete", "epoch"], "is both set and deleted"),
        (["optimizer=1"], "it holds tensors"),
        (["state_dict=1"], "it holds tensors"),
        (["state_dict/weight=1"], "hint: 'ckpt edit' changes"),
        (["state_dict/epoch=1"], "what would hold it are the weights"),
        (["nothing/b=1"], "nothing lies at 'nothing/b'"),
        (["args/lr/b=1"], "nothing lies at 'args/lr/b'"),
        (["hyper_parameters/steps/7=1"], "did you mean"),
        (["epoch=1.5", "--like-type"], "(epoch): an int cannot become 1.5 and keep its type"),
        (["epoch=true", "--like-type"], "an int cannot become a bool"),
        (["args=1", "--like-type"], "an argparse.Namespace cannot become an int"),
        (["f32=1e300", "--like-type"], "a number of numpy cannot become 1e+300"),
        (["i8=128", "--like-type"], "a number of numpy cannot become 128"),
        (["i8=text", "--like-type"], "a number of numpy cannot become 'text'"),
        (["--delete", "epcoh"], "did you mean 'epoch'?"),
        (["--delete", "state_dict/weight"], "hint: 'ckpt strip FILE NAME'"),
        (["--delete", "hyper_parameters/steps/0"], "only an entry of a dictionary"),
        (["--delete", "state_dict"], "every state dict would be removed"),
    ],
)
def test_what_cannot_be_is_refused(args, said, training, tmp_path):
    result = ckpt("set", training, *args, "-o", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out.pth").exists()


def test_path_that_leads_to_two_things_is_refused(tmp_path):
    torch.save({"m": {"w": torch.ones(1)}, "a": {"b/c": 1, "b": {"c": 2}}}, tmp_path / "x.pth")
    result = ckpt("get", tmp_path / "x.pth", "a/b/c")
    assert "the path leads to 2 things" in result.stderr


def test_shared_dictionary_is_changed_wherever_it_is(tmp_path):
    shared = {"lr": 0.1}
    torch.save({"m": {"w": torch.ones(1)}, "a": shared, "b": [shared]}, tmp_path / "x.pth")
    found = changed(tmp_path / "x.pth", "b/0/lr=0.2")
    assert found["a"] is found["b"][0]
    assert found["a"] == {"lr": 0.2}


def test_entries_among_the_weights_that_are_no_tensors_are_values(tmp_path):
    state = {f"l{i}.weight": torch.ones(2) for i in range(8)} | {
        "epoch": 3,
        "l0._extra_state": {"a": 1},
    }
    torch.save(state, tmp_path / "x.pth")
    found = changed(tmp_path / "x.pth", "epoch=4", "l0._extra_state/a=2")
    assert (found["epoch"], found["l0._extra_state"]) == (4, {"a": 2})
    assert get_value(tmp_path / "x.pth", "l0._extra_state/a") == 1
    found = changed(tmp_path / "x.pth", "--delete", "epoch", "--delete", "l0._extra_state/a")
    assert found["l0._extra_state"] == {}
    assert "epoch" not in found


def test_metadata_of_safetensors_are_texts(tmp_path):
    file, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"w": torch.ones(2)}, file, metadata={"format": "pt", "a/b": "c"})
    assert get_value(file, "__metadata__/a/b") == "c"
    assert get_value(file, "__metadata__") == {"format": "pt", "a/b": "c"}
    assert list_values(file) == {"__metadata__/format": "pt", "__metadata__/a/b": "c"}
    result = ckpt(
        *("set", file, "__metadata__/license=mit", "__metadata__/step=3", '__metadata__/q="4"'),
        *("--delete", "__metadata__/format", "-o", out, "--record", tmp_path / "r.json"),
    )
    assert result.exit_code == 0, result.stderr
    with safe_open(out, "pt") as opened:
        assert opened.metadata() == {"a/b": "c", "license": "mit", "step": "3", "q": "4"}
    assert ckpt("apply", tmp_path / "r.json", "-o", tmp_path / "2.safetensors").exit_code == 0
    assert (tmp_path / "2.safetensors").read_bytes() == out.read_bytes()
    for args, said in (
        (["epoch=3"], "they lie at '__metadata__/KEY'"),
        (["--delete", "__metadata__/licence"], "the metadata has no 'licence'"),
    ):
        assert said in ckpt("set", file, *args, "-o", tmp_path / "no").stderr
    assert "the metadata has no 'formt'" in ckpt("get", file, "__metadata__/formt").stderr


def test_get_prints_for_pipelines(training):
    for path, plain, toml in (
        ("epoch", "90", "90"),
        ("best", "71.5", "71.5"),
        ("i8", "3", "3"),
        ("on", "true", "true"),
        ("args/data", "/x", '"/x"'),
        ("args/resume", "null", None),
        ("optimizer/state/0/step", "1.0", "1.0"),
        ("args/betas", "[\n  0.9,\n  0.99\n]", "[0.9, 0.99]"),
        ("hyper_parameters/opt", '{\n  "wd": 0.0001\n}', "{ wd = 0.0001 }"),
    ):
        assert ckpt("get", training, path).stdout == f"{plain}\n"
        shown = ckpt("get", training, path, "--toml")
        assert (shown.stdout if toml else shown.exit_code) == (f"{toml}\n" if toml else 2)


def test_get_lists_every_value(training):
    lines = ckpt("get", training).stdout.splitlines()
    assert "epoch = 90" in lines
    assert 'args/data = "/x"' in lines
    assert "args/resume = null" in lines
    assert "optimizer/param_groups/0/lr = 0.001" in lines
    assert '"args/data" = "/x"' in ckpt("get", training, "--toml").stdout
    assert json.loads(ckpt("get", training, "--json").stdout)["args/data"] == "/x"
    assert not any("weight" in line and "decay" not in line for line in lines)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("epcoh", "did you mean 'epoch'?"),
        ("state_dict/weight", "it is a tensor"),
        ("optimizer/state/0/exp_avg", "it is a tensor"),
        ("hyper_parameters/path", "it is a pathlib.PosixPath, which is no plain value"),
        ("hyper_parameters", "'path' in it is a pathlib.PosixPath"),
        ("optimizer", "'state/0/step' in it is a torch._utils"),
    ],
)
def test_get_says_why_there_is_no_value(path, said, training):
    result = ckpt("get", training, path)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(("alone", "hint"), [(True, None), (False, "'--delete' removes it")])
def test_what_holds_tensors_is_no_place_for_a_value(alone, hint, tmp_path):
    """That '--delete' removes it is said where that leaves a model."""
    models = {"a": {"w": torch.ones(1)}} | ({} if alone else {"b": {"w": torch.ones(1)}})
    torch.save(models, tmp_path / "x.pth")
    with pytest.raises(PlanError, match="it holds tensors") as refused:
        set_values(tmp_path / "x.pth", tmp_path / "o.pth", {"a": 1})
    assert refused.value.hint == hint


def test_python2_texts_and_numbers_are_values(tmp_path):
    torch.save(
        {"m": {"w": torch.ones(1)}, "a": np.float64(2.5), "t": "x"},
        tmp_path / "x.pth",
        pickle_protocol=4,
    )
    found = changed(tmp_path / "x.pth", "a=3", "t=y", "--like-type")
    assert (found["a"], type(found["a"]), found["t"]) == (3.0, np.float64, "y")


def test_library_takes_values_and_says_what_changed(training, tmp_path):
    report = set_values(training, tmp_path / "o.pth", {"epoch": 1, "args/data": "/x"})
    assert [(c.path, c.change, c.old, c.new) for c in report.values] == [
        ("epoch", "changed", 90, 1),
        ("args/data", "same", "/x", "/x"),
    ]
    assert report.to_dict()["values"][0] == {
        "path": "epoch", "change": "changed", "old": 90, "new": 1,
        "old_type": "int", "new_type": "int",
    }  # fmt: skip
    with pytest.raises(TypeError):
        set_values(training, tmp_path / "o.pth", SetRequest([("a", "1")]), like_type=True)
    with pytest.raises(CkptError, match="is no value of TOML"):
        set_values(training, tmp_path / "p.pth", SetRequest([("epoch", "x y")]))


def test_recipe_sets_values(training, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"""
[inputs]
a = "{training}"
[variables]
rate = 0.5
[[steps]]
[steps.set]
values = {{ epoch = 0, "args/lr" = "${{rate}}", "args/data" = "a b" }}
delete = ["best"]
[[outputs]]
file = "{tmp_path / "o.pth"}"
""",
        encoding="utf-8",
    )
    result = ckpt("apply", recipe)
    assert result.exit_code == 0, result.stderr
    found = torch.load(tmp_path / "o.pth", weights_only=False)
    assert (found["epoch"], found["args"].lr, found["args"].data) == (0, 0.5, "a b")
    assert "best" not in found
    recipe.write_text(recipe.read_text().replace("values = {", "values = 3 #"), encoding="utf-8")
    assert ckpt("apply", recipe).exit_code == 2
