"""Laws of spellings: one concept has one name in all commands, and the old ones work unseen."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch

from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.cli.spellings import Renamed, spellings

SELECTING = {"--pattern", "--prefix", "--glob", "--name", "--keys-from", "--keep"}
COMMAND = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
OLD = {
    ("fit", "--rename-map"): "--map",
    ("rename", "--rename-map"): "--map",
    ("merge", "--set"): "--method-arg",
}


def frozen(result) -> set[str]:
    assert result.exit_code == 0, result.stderr
    return {p["name"] for p in json.loads(result.stdout)["parameters"] if p["frozen"]}


def test_old_spellings_are_known_and_not_shown(invoke):
    found = {
        (name, old): option.opts[0]
        for name, command in COMMAND.items()
        for option in command.params
        if isinstance(option, Renamed)
        for old in option.aliases
    }
    assert found == OLD
    for (name, old), new in OLD.items():
        shown = invoke(name, "--help").stdout
        assert f" {old} " not in shown
        assert new in shown


@pytest.mark.parametrize("name", ["inspect", "strip", "rename", "merge", "freeze-plan"])
def test_names_are_selected_by_the_same_options(name):
    assert {s for option in COMMAND[name].params for s in spellings(option)} >= SELECTING


def test_maps_have_one_name(folder, invoke):
    Path("map.toml").write_text('"fc.weight" = "out.weight"\n')
    lines = {}
    for option in ("--map", "--rename-map"):
        out = f"{option}.pth"
        assert invoke("rename", "net.pth", option, "map.toml", f"-o./{out}").exit_code == 0
        lines[option] = Path(out).read_bytes()
    assert lines["--map"] == lines["--rename-map"]
    renamed = "./--map.pth"
    for option in ("--map", "--rename-map"):
        line = ("fit", "net.pth", "--like", renamed, "--match", "name", option, "map.toml")
        assert json.loads(invoke(*line, "--dry-run", "--json").stdout)["initial"] == []
    swallowed = invoke("fit", "net.pth", "--like", renamed, "--rename-map", "--dry-run")
    assert "'--rename-map' lacks a value" in swallowed.stderr


def test_parameters_of_a_method_have_the_name_that_those_of_a_model_have(folder, invoke):
    line = ("merge", "net.pth", "net.pth", "-m", "slerp", "--dry-run", "--json")
    a, b = (invoke(*line, option, "t=0.25") for option in ("--method-arg", "--set"))
    assert (a.exit_code, a.stdout) == (0, b.stdout)
    assert "'--method-arg t' has no value" in invoke(*line, "--set", "t").stderr


def test_a_prefix_without_a_number_is_for_all_files_of_a_merge(folder, invoke):
    for name in ("a", "b"):
        torch.save({f"module.{name}": torch.zeros(2)}, f"{name}.pth")
    both = invoke("merge", "a.pth", "b.pth", "--strip-prefix", "module.", "-o", "all.pth")
    assert both.exit_code == 0, both.stderr
    assert sorted(torch.load("all.pth")) == ["a", "b"]
    one = ("--strip-prefix", "2:module.", "--add-prefix", "net.")
    assert invoke("merge", "a.pth", "b.pth", *one, "-o", "one.pth").exit_code == 0
    assert sorted(torch.load("one.pth")) == ["net.b", "net.module.a"]
    base = ("--base", "a.pth", "-m", "task-arithmetic", "--strip-prefix", "module.")
    torch.save({"module.a": torch.ones(2)}, "c.pth")
    assert invoke("merge", "c.pth", *base, "-o", "task.pth").exit_code == 0
    assert torch.load("task.pth")["a"].tolist() == [1, 1]


def test_text_is_deleted_from_names(folder, invoke):
    result = invoke("rename", "net.pth", "--delete", "blocks.", "-o", "out.pth")
    assert result.exit_code == 0, result.stderr
    assert "--delete blocks.: changed 12 names" in result.stdout
    assert "0.0.weight" in torch.load("out.pth")
    assert "has an empty text" in invoke("rename", "net.pth", "--delete", "", "-i").stderr
    missed = invoke("rename", "net.pth", "--delete", "block5", "-i").stderr
    assert "'--delete block5' changes no name" in missed


@pytest.mark.parametrize(
    ("selection", "renamed"),
    [
        (["--prefix", "fc"], ["fc.bias", "fc.weight"]),
        (["--name", "fc.bias"], ["fc.bias"]),
        (["--glob", "fc.*", "--pattern", "^head"], ["fc.bias", "fc.weight", "head.weight"]),
        (["--prefix", "blocks", "--keep"], ["fc.bias", "fc.weight", "head.weight"]),
    ],
)
def test_rules_of_rename_are_for_the_names_that_are_selected(folder, invoke, selection, renamed):
    line = ("rename", "net.pth", "--add-prefix", "x", *selection, "-o", "out.pth", "--json")
    document = json.loads(invoke(*line).stdout)
    assert sorted(old for old, _ in document["renamed"]) == renamed
    assert all(new == f"x.{old}" for old, new in document["renamed"])
    assert sorted(torch.load("out.pth")._metadata) != []
    assert document["rules"][0]["matched"] == len(renamed)


def test_a_selection_that_takes_nothing_is_refused(folder, invoke):
    line = ("rename", "net.pth", "--add-prefix", "x", "--prefix")
    assert "'--prefix nose' matches nothing" in invoke(*line, "nose", "-i").stderr
    assert (
        "there is none" in invoke("rename", "net.pth", "--add-prefix", "x", "--keep", "-i").stderr
    )
    assert "there is none" in invoke("freeze-plan", "net.pth", "--keep").stderr


def test_freeze_plan_freezes_what_is_selected(folder, invoke):
    everything = frozen(invoke("freeze-plan", "net.pth", "--freeze", "all", "--json"))
    for selection in (["--prefix", "fc"], ["--pattern", "^fc"], ["--glob", "fc.*"]):
        chosen = frozen(invoke("freeze-plan", "net.pth", *selection, "--json"))
        assert chosen == {"fc.weight", "fc.bias"}
        others = frozen(invoke("freeze-plan", "net.pth", *selection, "--keep", "--json"))
        assert others == everything - chosen
    # in the order of the line, with the rules of the command's own
    line = ("freeze-plan", "net.pth", "--prefix", "fc", "--train", "fc.bias", "--json")
    assert frozen(invoke(*line)) == {"fc.weight"}


def test_first_keys_count_as_the_state_dict_does(folder, invoke, net):
    keys = list(net.state_dict())
    parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    for count in (1, 7, 13, len(keys)):
        found = frozen(invoke("freeze-plan", "net.pth", "--first-keys", str(count), "--json"))
        assert found == (set(keys[:count]) & parameters) - {"head.weight"}
    model = ("--model", "torchvision:resnet18", "--json")
    names = frozen(invoke("freeze-plan", *model, "--first-keys", "6"))
    assert names == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert invoke("freeze-plan", "net.pth", "--first-keys", "999").exit_code == 2


def test_at_is_the_same_option_everywhere(folder, invoke):
    having = {
        (option.help, option.multiple)
        for command in COMMAND.values()
        for option in command.params
        if "--at" in option.opts
    }
    assert len(having) == 1
    twice = ("train.pth.tar", "--at", "state_dict", "--at", "state_dict_ema")
    assert invoke("convert", *twice, "-o", "two.pth").exit_code == 0
    result = invoke("freeze-plan", *twice)
    assert (result.exit_code, "is about one state dict" in result.stderr) == (2, True)
    once = ("train.pth.tar", "--at", "state_dict_ema")
    assert invoke("convert", *once, "-o", "x.pth").exit_code == 0
    assert invoke("freeze-plan", *once).exit_code == 0
