"""`ckpt freeze-plan` on the command line."""

from __future__ import annotations

import json
import runpy

import pytest
import torch

from ckpt_surgery import FreezePlan


def groups_of(plan, net):
    return [{**g, "params": [id(p) for p in g["params"]]} for g in plan.apply(net)]


def test_table_says_what_trains_and_what_it_saves(folder, invoke):
    result = invoke("freeze-plan", "net.pth", "--train-prefix", "fc", "--lr", "0.1", "--no-decay")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["index", "name", "shape", "elements", "trains", "lr", "decay"]
    values = ["0", "blocks.0.0.weight", "(4,", "4,", "1,", "1)", "16", "frozen", "-", "-"]
    assert lines[1].split() == values
    assert "7  fc.bias" in result.stdout
    assert "trainable: 2 parameters, 20 elements (29.41%)" in lines
    assert "frozen: 6 parameters, 48 elements (70.59%)" in lines
    assert "192 bytes of gradients" in result.stdout
    assert "group base: 1 parameter, lr 0.1" in lines
    assert "group no_decay: 1 parameter, lr 0.1, weight_decay 0" in lines
    assert "warning: 2 frozen layers keep running statistics" in result.stdout


@pytest.mark.parametrize(
    ("rules", "frozen"),
    [
        (["--first", "3"], 3),
        (["--last", "1"], 7),
        (["--before", "fc"], 6),
        (["--until", "blocks.0"], 3),
        (["--first-children", "1"], 6),
        (["--freeze", "*.*.*.weight"], 4),
        (["--freeze", "pattern=bias$"], 3),
        (["--freeze-prefix", "blocks", "--train", "blocks.1"], 3),
        (["--train", "blocks.1", "--freeze-prefix", "blocks"], 8),
        (["--freeze", "all", "--train", "fc"], 6),
        (["--freeze", "nothing", "--allow-unmatched"], 0),
        (["--stage", "0: fc", "--stage", "2: blocks.1"], 6),
        (["--stage", "0: fc", "--stage", "2: blocks.1", "--epoch", "2"], 3),
    ],
)
def test_rules_apply_in_the_order_of_the_line(folder, invoke, rules, frozen):
    document = json.loads(invoke("freeze-plan", "net.pth", *rules, "--json").stdout)
    assert sum(parameter["frozen"] for parameter in document["parameters"]) == frozen


def test_json_is_a_plan_and_a_report(folder, invoke, net):
    line = ("freeze-plan", "net.pth", "--train", "fc", "--lr", "0.1", "--group", "fc.bias:lr=1")
    document = json.loads(invoke(*line, "--json").stdout)
    assert (document["schema"], document["command"], document["exit_code"]) == (1, "freeze-plan", 0)
    assert (document["inputs"], document["output"]) == (["net.pth"], None)
    plan = FreezePlan.from_dict(document)
    emitted = FreezePlan.from_dict(json.loads(invoke(*line, "--emit", "json").stdout))
    assert plan == emitted
    assert [group["lr"] for group in plan.apply(net)] == [0.1, 1]


def test_every_form_gives_the_same_groups(folder, invoke, net):
    line = ("freeze-plan", "net.pth", "--first", "3", "--lr", "0.1", "--layer-decay", "0.5")
    plans = []
    for name in ("plan.json", "plan.toml"):
        result = invoke(*line, "-o", name)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"written to {name}"
        plans.append(groups_of(FreezePlan.load(name), net))
    assert invoke(*line, "-o", "plan.py", "-q").stdout == ""
    emitted = runpy.run_path("plan.py")["parameter_groups"](net)
    plans.append([{**g, "params": [id(p) for p in g["params"]]} for g in emitted])
    assert plans[0] == plans[1] == plans[2]
    assert invoke(*line, "-o", "plan.py").exit_code == 0
    assert invoke(*line[:-2], "-o", "plan.py").exit_code == 2
    assert invoke(*line, "-o", "plan.py", "--force").exit_code == 0
    assert invoke(*line, "--emit", "python").stdout == (folder / "plan.py").read_text()
    for parameter in net.parameters():
        parameter.requires_grad_(True)


def test_fold_shows_subtrees(folder, invoke):
    output = invoke("freeze-plan", "net.pth", "--train", "fc", "--fold").stdout
    assert [line.split()[:3] for line in output.splitlines()[1:3]] == [
        ["0-5", "blocks", "6"],
        ["6-7", "fc", "2"],
    ]


def test_a_model_knows_what_a_file_does_not(folder, invoke):
    model = "torchvision:squeezenet1_0"
    alone = json.loads(invoke("freeze-plan", "--model", model, "--train", "head", "--json").stdout)
    assert alone["inputs"] == [model]
    assert [p["name"] for p in alone["parameters"] if not p["frozen"]] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]
    assert not [w for w in alone["warnings"] if w["code"] == "guessed-roles"]
    changed = invoke(
        "freeze-plan", "--model", model, "--set", "classifier.1.out_channels=5", "--json"
    )
    shapes = {p["name"]: p["shape"] for p in json.loads(changed.stdout)["parameters"]}
    assert shapes["classifier.1.bias"] == [5]


def test_a_file_beside_a_model_is_compared(folder, invoke):
    spec = "torch.nn:Linear"
    line = ("--model", spec, "--model-arg", "in_features=4", "--model-arg", "out_features=4")
    torch.save({"module.weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, "linear.pth")
    document = json.loads(invoke("freeze-plan", "linear.pth", *line, "--json").stdout)
    assert document["inputs"] == ["linear.pth", spec]
    codes = {w["code"]: w["names"] for w in document["notices"]}
    assert codes == {
        "missing-in-file": ["bias"],
        "not-in-model": ["extra"],
        "size-mismatch": ["weight"],
    }
    result = invoke("freeze-plan", "net.pth", *line)
    assert result.exit_code == 2
    assert "no parameter of 'torch.nn:Linear' is in the file" in result.stderr


def test_the_average_of_a_model_is_no_second_one(folder, invoke):
    document = json.loads(invoke("freeze-plan", "train.pth.tar", "--json").stdout)
    assert document["parameters"][0]["name"] == "module.blocks.0.0.weight"
    state = {"weight": torch.zeros(2, 2)}
    torch.save({"a": state, "b": dict(state)}, "two.pth")
    result = invoke("freeze-plan", "two.pth")
    assert (result.exit_code, "choose one, for example with --at a" in result.stderr) == (2, True)
    assert invoke("freeze-plan", "two.pth", "--at", "b").exit_code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["net.pth", "--freeze", "nose"], "'--freeze nose' matches no parameter"),
        (["net.pth", "--first", "99"], "there are 8 parameters"),
        (["net.pth", "--group", "fc:lrr=1"], "no torch optimizer has a group option 'lrr'"),
        (["net.pth", "--stage", "head"], "is not EPOCH: SELECTION"),
        (["net.pth", "--layer-decay", "0.7"], "scale a learning rate"),
        (["net.pth", "--lr", "nan"], "must be finite"),
        (["net.pth", "--no-decay-for", "nose"], "matches no parameter"),
        (["net.pth", "--model-arg", "a=1"], "'--model-arg' is about a model"),
        (["net.pth", "--set", "fc.a=1"], "'--set' is about a model"),
        (["net.pth", "--json", "--emit", "toml"], "contradict each other"),
        (["net.pth", "--fold", "--json"], "'--fold' is about the table"),
        (["net.pth", "--fold", "--emit", "python"], "'--fold' is about the table"),
        (["net.pth", "-o", "plan.txt"], "does not say in which form"),
        (["net.pth", "-o", "plan", "--emit", "table"], "does not say in which form"),
        (["--model", "nothing"], "does not name a model"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(folder, invoke, line, message):
    result = invoke("freeze-plan", *line)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_decay_for_names_what_it_spares(folder, invoke):
    line = ("--weight-decay", "0.1", "--no-decay-for", "bias", "--no-decay-for", "blocks.0")
    document = json.loads(invoke("freeze-plan", "net.pth", *line, "--json").stdout)
    decay = {g["name"]: g["options"]["weight_decay"] for g in document["groups"]}
    spared = [p["name"] for p in document["parameters"] if not decay[p["group"]]]
    assert "fc.bias" in spared
    assert "blocks.0.0.weight" in spared
    assert "blocks.1.0.weight" not in spared
