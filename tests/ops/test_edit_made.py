"""Entries that `ckpt edit` makes of others, and the state of them; torch is the oracle."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch_checks import assert_same

from ckpt_surgery.cli.main import cli

W = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
State = dict[str, torch.Tensor]


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def edited(state: Any, folder: Path, *rules: str) -> Any:
    torch.save(state, folder / "in.pth")
    result = ckpt("edit", folder / "in.pth", *rules, "-o", folder / "out.pth", "--force")
    assert result.exit_code == 0, result.stderr
    return torch.load(folder / "out.pth", weights_only=True)


def test_layers_are_stacked_anew(tmp_path):
    net = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(6))})
    state = net.state_dict()
    state["head"] = W
    found = edited(state, tmp_path, "--layers", "layers=0-3,2-5")
    order = [0, 1, 2, 3, 2, 3, 4, 5]
    stacked = nn.ModuleDict({"layers": nn.ModuleList(net["layers"][i] for i in order)})
    assert list(found) == [*stacked.state_dict(), "head"]
    for name, tensor in stacked.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert dict(found._metadata) == dict(stacked.state_dict()._metadata)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 17
    fewer = edited(state, tmp_path, "--layers", "layers.*=5,0")
    assert torch.equal(fewer["layers.0.weight"], net["layers"][5].weight)
    assert [name for name in fewer if "weight" in name] == ["layers.0.weight", "layers.1.weight"]
    plain = {f"l.{i}": torch.ones(2) * i for i in range(3)} | {"l.x": W, "ll.0": W}
    assert list(edited(plain, tmp_path, "--layers", "l=2")) == ["l.0", "l.x", "ll.0"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_cast_is_that_of_torch(dtype, tmp_path):
    torch.manual_seed(0)
    w = torch.randn(40, 30)
    found = edited({"w": w, "v": w + 1}, tmp_path, "--transpose", "w", "--cast", f"w={dtype}")
    assert torch.equal(found["w"].float(), w.t().to(getattr(torch, dtype)).float())
    assert torch.equal(found["v"], w + 1)


def test_cast_that_makes_infinity_is_refused(tmp_path):
    torch.save({"w": torch.tensor([1e30])}, tmp_path / "in.pth")
    line = ("edit", tmp_path / "in.pth", "--cast", "w=half", "-o", tmp_path / "out.pth")
    assert "1 becomes infinite" in ckpt(*line).stderr
    assert not (tmp_path / "out.pth").exists()
    assert ckpt(*line, "--allow-loss").exit_code == 0


def test_clone_holds_its_own_elements_alone(tmp_path):
    whole = torch.randn(1000, 4)
    state = edited({"a": whole[:2], "b": whole[1:3].t()}, tmp_path, "--clone", "glob:*")
    assert [t.untyped_storage().nbytes() for t in state.values()] == [32, 32]
    assert torch.equal(state["b"], whole[1:3].t())


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("b.*.qkv.w=q.w,k.w,v.w", "b.{0}.q.w b.{0}.k.w b.{0}.v.w"),
        ("b.*.qkv.w=b.*.q,b.*.k,b.*.v", "b.{0}.q b.{0}.k b.{0}.v"),
        ("**.qkv.w=**.x,**.y,**.z", "b.{0}.x b.{0}.y b.{0}.z"),
        (r"pattern:b\.(\d)\.(\w+)\.w=\1.\2.x,\1.y,\1.z", "{0}.qkv.x {0}.y {0}.z"),
    ],
)
def test_captures_name_the_results(rule, names, tmp_path):
    state = {f"b.{i}.qkv.w": torch.randn(6, 2) for i in range(2)}
    found = edited(state, tmp_path, "--split", rule)
    assert list(found) == [name for i in range(2) for name in names.format(i).split()]


# ---------------------------------------------------------------------------- optimizers


KINDS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


def trained(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = KINDS[kind](model.parameters())
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        made.step()
    return made


def split(w: State) -> State:
    q, k, v = w["a"].chunk(3)
    return {"q": q, "k": k, "v": v, "b": w["b"], "c": w["c"], "d": w["d"]}


def interleaved(w: State) -> State:
    x, y, z = w["a"].view(2, 3, 2, 4).unbind(1)
    parts = {"x": x.reshape(4, 4), "y": y.reshape(4, 4), "z": z.reshape(4, 4)}
    return parts | {name: w[name] for name in "bcd"}


def joined(w: State) -> State:
    return {"a": w["a"], "bcd": torch.cat([w["b"], w["c"], w["d"]])}


def turned(w: State) -> State:
    return {"a": w["a"].t()[:, 2:6], "bd": torch.cat([w["b"].t(), w["d"].t()]), "c": w["c"]}


def copied(w: State) -> State:
    return {"a": w["a"], "b": w["b"], "e": w["b"], "c": w["c"], "d": w["d"]}


def two_thirds(w: State) -> State:
    x, y, z = w["a"].chunk(3)
    return {"y": y, "a": torch.cat([z, x]), "b": w["b"], "c": w["c"], "d": w["d"]}


def cast(w: State) -> State:
    return {name: t.bfloat16() if name == "a" else t for name, t in w.items()}


def padded(w: State) -> State:
    q, k, v = split(w)["q"], split(w)["k"], split(w)["v"]
    more = nn.functional.pad(q, (0, 0, 0, 2))
    return {"q": more, "k": k, "v": v, "b": w["b"], "c": w["c"], "d": w["d"]}


REMADE = [
    (["--split", "a=q,k,v"], split),
    (["--split", "a=x,y,z:heads=2"], interleaved),
    (["--concat", "{b,c,d}=bcd"], joined),
    (["--transpose", "glob:[abd]", "--concat", "b,d=bd", "--slice", "a=1:2:6"], turned),
    (["--copy", "b=e"], copied),
    (["--split", "a=x,y,z", "--concat", "z,x=a"], two_thirds),
    (["--split", "a=q,k,v", "--pad", "q=0:6:9"], padded),
    (["--cast", "a=bf16"], cast),
]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("rules", "remade"), REMADE, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_next_steps_are_those_of_a_model_remade_in_torch(kind, rules, remade, tmp_path):
    torch.manual_seed(0)
    sizes = {"a": (12, 4), "b": (2, 4), "c": (2, 4), "d": (2, 4)}
    model = nn.ParameterDict({name: torch.randn(size) for name, size in sizes.items()})
    before = {"model": model.state_dict(), "optimizer": trained(kind, model).state_dict()}
    before = copy.deepcopy(before)
    found = edited(before, tmp_path, *rules)
    gradients = remade({name: torch.randn(size) for name, size in sizes.items()})
    weights = remade(before["model"]) if remade is not padded else found["model"]
    assert sorted(found["model"]) == sorted(weights)
    order = list(found["model"])
    old = before["optimizer"]["state"]
    new: dict[int, Any] = {place: {} for place in range(len(order))}
    for name, value in old[0].items():
        tensors = {each: old[place][name] for place, each in enumerate(sizes)}
        moved = remade(tensors) if value.dim() else dict.fromkeys(order, value)
        for place, each in enumerate(order):
            new[place][name] = moved[each].clone()
    states = {"state": new, "param_groups": copy.deepcopy(before["optimizer"]["param_groups"])}
    states["param_groups"][0]["params"] = list(new)

    def steps(weights: State, states: Any) -> State:
        own = nn.ParameterDict(
            {name: weights[name].detach().contiguous().clone() for name in order}
        )
        optimizer = KINDS[kind]([own[name] for name in order])
        optimizer.load_state_dict(states)
        for _ in range(2):
            for name in order:
                own[name].grad = gradients[name].contiguous().to(own[name].dtype)
            optimizer.step()
        return {name: own[name].detach() for name in order}

    assert_same(steps(found["model"], found["optimizer"]), steps(weights, states))
    torch.save(before, tmp_path / "in.pth")
    ckpt("edit", tmp_path / "in.pth", *rules, "-o", tmp_path / "1", "--record", tmp_path / "r")
    assert ckpt("apply", tmp_path / "r", "-o", tmp_path / "2").exit_code == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_stored_names_follow(tmp_path):
    model = nn.ParameterDict({"a": torch.randn(4, 4), "b": torch.randn(3)})
    optimizer = torch.optim.Adam(model.named_parameters())
    for parameter in model.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    group = edited(before, tmp_path, "--split", "a=x,y")["optimizer"]["param_groups"][0]
    assert group["param_names"] == ["x", "y", "b"]


def test_untied_names_have_the_same_state(tmp_path):
    model = nn.ParameterDict({"a": torch.randn(4, 4), "b": torch.randn(3)})
    state = dict(model.state_dict())
    before = {"model": state | {"c": state["a"]}, "optimizer": trained("adam", model).state_dict()}
    found = edited(before, tmp_path, "--untie", "c")
    states = found["optimizer"]["state"]
    assert found["optimizer"]["param_groups"][0]["params"] == [0, 1, 2]
    assert torch.equal(states[2]["exp_avg"], states[0]["exp_avg"])
    assert states[2]["step"].data_ptr() != states[0]["step"].data_ptr()
    tied = edited(found, tmp_path, "--tie", "c=a")
    assert_same(tied["optimizer"], before["optimizer"])
    turned = edited(found, tmp_path, "--transpose", "a", "--tie", "c=a")["optimizer"]
    assert turned["param_groups"][0]["params"] == [0, 1]
    assert torch.equal(turned["state"][0]["exp_avg"], states[0]["exp_avg"].t())


def test_what_was_its_own_already_changes_no_optimizer(tmp_path):
    model = nn.ParameterDict({"a": torch.randn(4, 4), "b": torch.randn(3)})
    before = {"model": model.state_dict(), "optimizer": trained("adam", model).state_dict()}
    torch.save(before, tmp_path / "in.pth")
    result = ckpt("edit", tmp_path / "in.pth", "--clone", "a", "-o", tmp_path / "o.pth", "--json")
    assert json.loads(result.stdout)["optimizers"] == []
    found = torch.load(tmp_path / "o.pth", weights_only=True)["optimizer"]
    assert_same(found, before["optimizer"])


@pytest.mark.parametrize("scaled", [[], ["a"], ["b"], ["a", "b"]])
def test_what_is_made_of_a_part_that_began_anew_begins_anew(scaled, tmp_path):
    model = nn.ParameterDict({name: torch.randn(2, 4) for name in "abc"})
    before = {"model": model.state_dict(), "optimizer": trained("adam", model).state_dict()}
    rules = [word for name in scaled for word in ("--scale", f"{name}=2")]
    found = edited(before, tmp_path, *rules, "--concat", "{a,b}=ab", "--optimizer", "reset")
    assert list(found["optimizer"]["state"]) == ([1] if scaled else [0, 1])


@pytest.mark.parametrize("to", ["a", "b"])
def test_what_is_tied_to_numbers_that_began_anew_begins_anew(to, tmp_path):
    model = nn.ParameterDict({name: torch.randn(2, 4) for name in "abc"})
    before = {"model": model.state_dict(), "optimizer": trained("adam", model).state_dict()}
    name = "ab".replace(to, "")
    rules = ("--scale", f"{to}=2", "--tie", f"{name}={to}", "--optimizer", "reset")
    found = edited(before, tmp_path, *rules)["optimizer"]
    assert (found["param_groups"][0]["params"], list(found["state"])) == ([0, 1], [1])
    assert_same(found["state"][1], before["optimizer"]["state"][2])


@pytest.mark.parametrize(
    ("rules", "params", "like"),
    [
        ("--scale b=2", 3, {0: 0, 2: 2}),
        ("--untie b", 3, {0: 0, 1: 0, 2: 2}),
        ("--untie b --scale b=2", 3, {0: 0, 2: 2}),
        ("--copy b=e", 3, {0: 0, 1: 0, 2: 2}),
        ("--tie d=b", 2, {0: 0, 1: 2}),
        ("--concat b=f", 3, {0: 0, 1: 0, 2: 2}),
    ],
)
def test_rules_go_on_from_a_tie(rules, params, like, tmp_path):
    """What is tied has the other's state: while it is one with it, and as its own from then on."""
    names = "abcd" if "d=b" in rules else "abc"
    model = nn.ParameterDict({name: torch.randn(2, 4) for name in names})
    before = {"model": model.state_dict(), "optimizer": trained("adam", model).state_dict()}
    words = ("--tie", "b=a", *rules.split(), "--optimizer", "reset")
    found = edited(before, tmp_path, *words)["optimizer"]
    assert found["param_groups"][0]["params"] == list(range(params))
    assert list(found["state"]) == list(like)
    for new, old in like.items():
        assert_same(found["state"][new], before["optimizer"]["state"][old])


def test_what_is_tied_and_turned_has_the_state_of_the_other_turned(tmp_path):
    model = nn.ParameterDict({name: torch.randn(2, 4) for name in "ab"})
    before = {"model": model.state_dict(), "optimizer": trained("adam", model).state_dict()}
    found = edited(before, tmp_path, "--tie", "b=a", "--transpose", "b")["optimizer"]["state"]
    own = before["optimizer"]["state"][0]
    assert_same(found[0], own)
    assert torch.equal(found[1]["exp_avg"], own["exp_avg"].t())
    parts = edited(before, tmp_path, "--tie", "b=a", "--split", "b=x,y")["optimizer"]["state"]
    assert torch.equal(torch.cat([parts[1]["exp_avg"], parts[2]["exp_avg"]]), own["exp_avg"])
    both = edited(before, tmp_path, "--tie", "b=a", "--concat", "{a,b}=d")["optimizer"]["state"]
    assert torch.equal(both[0]["exp_avg"], own["exp_avg"].repeat(2, 1))


def test_layers_that_come_again_have_the_state_of_theirs(tmp_path):
    net = nn.ModuleDict({"l": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
    before = {"model": net.state_dict(), "optimizer": trained("adam", net).state_dict()}
    found = edited(before, tmp_path, "--layers", "l=0-1,1-2")
    old, new = before["optimizer"]["state"], found["optimizer"]["state"]
    for place, source in enumerate((0, 1, 1, 2)):
        assert_same(new[2 * place], old[2 * source])


@pytest.mark.parametrize("what", ["step", "group", "state"])
def test_what_cannot_be_joined_is_refused_or_begins_anew(what, tmp_path):
    model = nn.ParameterDict({name: torch.randn(2, 4) for name in "abc"})
    groups = [{"params": [model["a"]]}, {"params": [model["b"], model["c"]]}]
    optimizer = torch.optim.Adam(groups if what == "group" else list(model.values()))
    for name, parameter in model.items():
        parameter.grad = None if (what, name) == ("state", "b") else torch.ones_like(parameter)
    optimizer.step()
    if what == "step":
        model["a"].grad = None
        optimizer.step()
    before = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if what != "group":
        before["optimizer"]["param_groups"][0]["param_names"] = list("abc")
    else:
        for group, names in zip(before["optimizer"]["param_groups"], ("a", "bc"), strict=True):
            group["param_names"] = list(names)
    torch.save(before, tmp_path / "in.pth")
    line = ("edit", tmp_path / "in.pth", "--concat", "{a,b}=ab", "-o", tmp_path / "out.pth")
    refused = ckpt(*line)
    assert refused.exit_code == 2
    if what == "group":
        assert "'a', 'b' are not in one group, and become 'ab'" in refused.stderr
        return
    assert "the optimizer's state of 'ab' cannot follow" in refused.stderr
    result = ckpt(*line, "--optimizer", "reset", "--json")
    assert json.loads(result.stdout)["optimizers"][0]["reset"] == ["ab"]
    found = torch.load(tmp_path / "out.pth", weights_only=True)["optimizer"]
    assert found["param_groups"][0]["params"] == [0, 1]
    assert list(found["state"]) == [1]


def test_parts_of_what_the_optimizer_does_not_train_stay_out(tmp_path):
    model = nn.ParameterDict({"a": torch.randn(6, 4), "b": torch.randn(3), "c": torch.randn(2)})
    optimizer = torch.optim.Adam([model["b"], model["c"]])
    for name in "bc":
        model[name].grad = torch.ones_like(model[name])
    optimizer.step()
    before = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    found = edited(before, tmp_path, "--split", "a=x,y")
    assert_same(found["optimizer"], before["optimizer"])


def test_optimizer_that_has_not_stepped_gets_the_parts_without_state(tmp_path):
    model = nn.ParameterDict({"a": torch.randn(6, 4), "b": torch.randn(3)})
    optimizer = torch.optim.Adam(model.named_parameters())
    before = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    found = edited(before, tmp_path, "--split", "a=x,y")["optimizer"]
    assert found["state"] == {}
    assert found["param_groups"][0]["param_names"] == ["x", "y", "b"]
