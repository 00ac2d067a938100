"""Entries beside the weights: dropped, kept, called otherwise, wrapped and unwrapped."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ckpt_surgery import AddPrefix, Output, Plan, read, rename, selection, strip
from ckpt_surgery.edits.drop import DropOther
from ckpt_surgery.edits.entries import RenameEntry, Unwrap, Wrap
from ckpt_surgery.errors import LossyEditError, NameCollisionError, PlanError, UsageError


class Box:
    """An object with attributes, of a class that stays a name to ckpt."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __eq__(self, other):
        return isinstance(other, Box) and self.__dict__ == other.__dict__

    __hash__ = None


def training():
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "state_dict": net.state_dict(),
        "state_dict_ema": {name: value.clone() for name, value in net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 5,
        "args": argparse.Namespace(lr=0.1, data=Box(root="/data", size=3)),
        "hyper_parameters": {"lr": 0.1, "nested": {"deep": [1, {"a": 1, "b": 2}], 3: "three"}},
        "log": OrderedDict(first=[torch.ones(3)], second=torch.zeros(2)),
    }


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(training(), "train.pth")
    torch.save(nn.Linear(2, 2).state_dict(), "plain.pth")
    torch.save({"a": {"b": {"w": torch.ones(2)}}}, "deep.pth")


def load(path):
    return torch.load(path, weights_only=False)


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    elif isinstance(one, argparse.Namespace):
        assert_equal(vars(one), vars(other))
    else:
        assert one == other


def without(*paths):
    """What training keeps, without some entries, removed by Python."""
    found = training()
    for path in paths:
        *above, last = path.split("/")
        place = found
        for name in above:
            if isinstance(place, list):
                place = place[int(name)]
            elif isinstance(place, dict):
                place = place[int(name) if name.isdigit() else name]
            else:
                place = getattr(place, name)
        if isinstance(place, dict):
            del place[int(last) if last.isdigit() else last]
        else:
            delattr(place, last)
    return found


DROPS = [
    (["args"], ["args"]),
    (["args/lr"], ["args/lr"]),
    (["args/data/size"], ["args/data/size"]),
    (["hyper_parameters/**"], ["hyper_parameters/lr", "hyper_parameters/nested"]),
    (["hyper_parameters/nested/deep/1/a"], ["hyper_parameters/nested/deep/1/a"]),
    (["hyper_parameters/nested/3"], ["hyper_parameters/nested/3"]),
    (["**/lr"], ["args/lr", "hyper_parameters/lr", "optimizer/param_groups/0/lr"]),
    (["log/first", "epoch"], ["log/first", "epoch"]),
    (["log", "log/first"], ["log"]),
    (["optimizer"], ["optimizer"]),
    (["optimizer/state"], ["optimizer/state"]),
    (["state_dict_ema"], ["state_dict_ema"]),
    (["state_dict_ema", "hyper*"], ["state_dict_ema", "hyper_parameters"]),
]


@pytest.mark.parametrize(("rules", "gone"), DROPS)
def test_what_is_dropped_is_gone_and_all_else_is_as_it_was(rules, gone):
    report = strip("train.pth", "out.pth", entries=rules)
    assert_equal(load("out.pth"), without(*gone))
    assert set(report.dropped) == set(gone)
    assert [rule["matched"] > 0 for rule in report.rules] == [True] * len(rules)
    again = Plan.from_dict(json.loads(json.dumps(report.plan)))
    with read("train.pth") as checkpoint:
        edited = again.apply(checkpoint)
        assert {o.path for o in edited.others} == set(report.carried)


def test_what_is_dropped_takes_no_bytes():
    strip("train.pth", "out.pth", entries=["log"])
    with read("train.pth") as before, read("out.pth") as after:
        tensors = {"log": 2}
        assert len(list(before.all_tensors)) - len(list(after.all_tensors)) == tensors["log"]
        assert before.file.size - after.file.size >= 2 * 64


@pytest.mark.parametrize(
    ("kept", "gone"),
    [
        (["epoch"], ["optimizer", "args", "hyper_parameters", "log"]),
        (["optimizer", "e*"], ["args", "hyper_parameters", "log"]),
        (["args/lr", "log/**"], ["optimizer", "epoch", "args/data", "hyper_parameters"]),
        (
            ["hyper_parameters/nested/deep"],
            [
                *("optimizer", "epoch", "args", "log"),
                *("hyper_parameters/lr", "hyper_parameters/nested/3"),
            ],
        ),
    ],
)
def test_keep_drops_all_else_but_the_weights(kept, gone):
    report = strip("train.pth", "out.pth", entries=kept, keep_entries=True)
    assert_equal(load("out.pth"), without(*gone))
    assert set(report.dropped) == set(gone)


def test_an_optimizer_goes_before_its_model_changes_and_its_parts_go_after():
    strip("train.pth", "out.pth", selection(name="bias"), entries=["optimizer"])
    assert "optimizer" not in load("out.pth")
    entry = "optimizer/param_groups/0/foreach"
    report = strip("train.pth", "parts.pth", selection(name="bias"), entries=[entry])
    found = load("parts.pth")["optimizer"]
    assert list(found["state"]) == [0]
    assert found["param_groups"][0]["params"] == [0]
    assert "foreach" not in found["param_groups"][0]
    assert report.optimizers[0].removed == ("bias",)


def test_an_edit_inside_an_optimizer_is_not_lost_when_its_model_is_edited_later():
    report = strip("train.pth", Output(dry_run=True), selection(name="bias"))
    edits = [DropOther("optimizer/param_groups/0/foreach").to_dict(), *report.plan]
    with read("train.pth") as checkpoint, pytest.raises(PlanError, match="edited before"):
        Plan.from_dict(edits).apply(checkpoint)


@pytest.mark.parametrize(
    ("options", "error", "message", "hint"),
    [
        ({"entries": ["arg"]}, UsageError, "'--entry arg' matches nothing", "'args'"),
        ({"entries": ["x*"]}, UsageError, "'--entry x*' matches nothing", "inspect"),
        ({"entries": ["weight"]}, UsageError, "matches nothing", "--name weight"),
        ({"entries": ["state_dict*"]}, UsageError, "every state dict", "beside the weights"),
        ({"entries": ["state_dict/weight"]}, UsageError, "matches nothing", ""),
        ({"entries": ["log/first/0"]}, LossyEditError, "only an entry of a dictionary", ""),
        ({"unwrap": True}, PlanError, "has 7 entries: 'state_dict'", "--entry"),
        ({"unwrap": True, "state_dict_only": True}, UsageError, "contradict", ""),
    ],
)
def test_what_cannot_be_is_refused(options, error, message, hint):
    with pytest.raises(error) as caught:
        strip("train.pth", "out.pth", **options)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert not Path("out.pth").exists()


def test_a_rule_may_match_nothing_if_that_is_said():
    choice = selection(allow_unmatched=True)
    report = strip("train.pth", "out.pth", choice, entries=["nope", "epoch"])
    assert [rule["matched"] for rule in report.rules] == [0, 1]


def test_the_same_object_at_two_places_goes_only_from_both():
    weights = nn.Linear(2, 2).state_dict()
    torch.save({"best": weights, "last": weights, "other": {"w": torch.ones(1)}}, "twice.pth")
    with pytest.raises(PlanError, match="is also at 'last', where it would stay"):
        strip("twice.pth", "out.pth", entries=["best"])
    strip("twice.pth", "out.pth", entries=["best", "last"])
    assert list(load("out.pth")) == ["other"]


def test_a_container_goes_with_the_average_in_it():
    found = training()
    found["callbacks"] = {"EMA": {"ema_weights": found.pop("state_dict_ema"), "decay": 0.9}}
    torch.save(found, "in.pth")
    report = strip("in.pth", "out.pth", entries=["callbacks"])
    found.pop("callbacks")
    assert_equal(load("out.pth"), found)
    assert "callbacks/EMA/decay" in report.dropped or "callbacks" in report.dropped


RENAMES = [
    ([("state_dict", "model")], lambda f: f.update(model=f.pop("state_dict"))),
    (
        [("args/lr", "rate"), ("args/data", "set")],
        lambda f: f["args"].__dict__.update(rate=f["args"].lr, set=f["args"].data)
        or (delattr(f["args"], "lr"), delattr(f["args"], "data")),
    ),
    (
        [("hyper_parameters", "hparams"), ("hparams/lr", "rate")],
        lambda f: f.update(hparams={"rate": f["hyper_parameters"].pop("lr")}
                           | f.pop("hyper_parameters")),
    ),
]  # fmt: skip


def as_sets(found):
    """Python cannot rename a key in its place, so order is compared elsewhere."""
    if isinstance(found, dict):
        return {key: as_sets(value) for key, value in sorted(found.items(), key=str)}
    if isinstance(found, argparse.Namespace):
        return argparse.Namespace(**as_sets(vars(found)))
    return found


@pytest.mark.parametrize(("pairs", "change"), RENAMES)
def test_what_is_called_otherwise_stays_what_it_was(pairs, change):
    expected = training()
    change(expected)
    report = rename("train.pth", "out.pth", entries=pairs)
    assert_equal(as_sets(load("out.pth")), as_sets(expected))
    assert report.dropped == ()
    assert [(e["from"], e["to"]) for e in report.plan] == pairs


def test_a_key_stays_in_its_place_and_there_and_back_is_the_same_file():
    rename("train.pth", "out.pth", entries=[("state_dict", "model")])
    assert next(iter(load("out.pth"))) == "model"
    rename("out.pth", "back.pth", entries=[("model", "state_dict")])
    assert Path("back.pth").read_bytes() == Path("train.pth").read_bytes()


def test_names_and_optimizers_are_renamed_with_the_state_dict_they_are_in():
    report = rename("train.pth", "out.pth", [AddPrefix("net")], entries=[("state_dict", "model")])
    assert list(load("out.pth")["model"]) == ["net.weight", "net.bias"]
    assert ("state_dict/weight", "state_dict/net.weight") in report.renamed
    assert report.kept == ()
    assert "epoch" in report.carried


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("state_dict", "epoch")], NameCollisionError, "there is a 'epoch' beside"),
        ([("state_dictt", "model")], UsageError, "'--entry state_dictt' matches nothing"),
        ([("args/lr", "a/b")], UsageError, "names no key"),
        ([("args", "")], UsageError, "names no key"),
        ([("hyper_parameters/nested/3", "x")], PlanError, "its key is a number"),
        ([("log/first/0", "x")], PlanError, "its key is an element of a list"),
    ],
)
def test_a_key_that_cannot_be_is_refused(pairs, error, message):
    with pytest.raises(error, match=message):
        rename("train.pth", "out.pth", entries=pairs)
    assert not Path("out.pth").exists()


def test_a_key_with_a_slash_has_no_other_name():
    torch.save({"a/b": 1, "model": {"w": torch.ones(1)}}, "slash.pth")
    with pytest.raises(PlanError, match="its key holds a slash"):
        rename("slash.pth", "out.pth", entries=[("a/b", "c")])
    strip("slash.pth", "out.pth", entries=["a/b"])
    assert list(load("out.pth")) == ["model"]


def test_a_key_of_what_is_dropped_is_free():
    edits = (DropOther("epoch"), RenameEntry("state_dict", "epoch"), DropOther("optimizer"))
    with read("train.pth") as checkpoint:
        edited = Plan(edits).apply(checkpoint)
        assert [s.path for s in edited.state_dicts] == ["epoch", "state_dict_ema"]
    # the same through the verbs
    strip("train.pth", "mid.pth", entries=["epoch", "optimizer"])
    rename("mid.pth", "out.pth", entries=[("state_dict", "epoch")])
    assert list(load("out.pth"))[:2] == ["epoch", "state_dict_ema"]


@pytest.mark.parametrize("name", ["train.pth", "plain.pth", "deep.pth"])
def test_wrap_then_unwrap_is_the_same_file(name):
    report = rename(name, "wrapped.pth", wrap="model")
    assert_equal(load("wrapped.pth"), {"model": load(name)})
    assert report.dropped == ()
    report = strip("wrapped.pth", "back.pth", unwrap=True)
    assert Path("back.pth").read_bytes() == Path(name).read_bytes()
    assert report.dropped == ()


def test_weights_are_wrapped_for_a_loader_that_wants_it():
    """Job 41: a flat dictionary as {'model': …}, with its metadata, loading strictly."""
    rename("plain.pth", "wrapped.pth", wrap="model")
    nn.Linear(2, 2).load_state_dict(torch.load("wrapped.pth")["model"], strict=True)
    assert torch.load("wrapped.pth")["model"]._metadata == load("plain.pth")._metadata


def test_what_is_left_after_drops_is_unwrapped():
    gone = ["optimizer", "epoch", "args", "hyper_parameters", "log", "state_dict_ema"]
    strip("train.pth", "out.pth", entries=gone, unwrap=True)
    assert_equal(load("out.pth"), training()["state_dict"])


def test_unwrapping_and_editing_agree_with_the_metadata_and_the_names():
    rename("plain.pth", "wrapped.pth", wrap="model")
    strip("wrapped.pth", "out.pth", selection(name="bias"), unwrap=True)
    assert list(load("out.pth")) == ["weight"]


def test_an_optimizer_file_is_wrapped_and_unwrapped():
    torch.save(training()["optimizer"], "optimizer.pth")
    rename("optimizer.pth", "wrapped.pth", wrap="optimizer")
    assert_equal(load("wrapped.pth"), {"optimizer": training()["optimizer"]})
    strip("wrapped.pth", "back.pth", unwrap=True)
    assert_equal(load("back.pth"), training()["optimizer"])


def test_safetensors_are_wrapped_in_an_archive():
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, "w.safetensors")
    rename("w.safetensors", "out.pth", wrap="model")
    assert_equal(load("out.pth")["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("wrap", ["", "a/b"])
def test_a_dictionary_needs_a_key(wrap):
    with pytest.raises(UsageError, match="is no key"):
        rename("plain.pth", "out.pth", wrap=wrap)


def test_entries_contradict_writing_the_weights_alone():
    with pytest.raises(UsageError, match="leaves no"):
        rename("train.pth", "o.pth", state_dict_only=True, entries=[("epoch", "step")])


@pytest.mark.parametrize(
    "edit", [RenameEntry("nope", "x"), Unwrap("nope"), DropOther("nope"), DropOther("args/nope")]
)
def test_an_edit_of_what_is_not_there_is_refused(edit):
    source = "train.pth" if not isinstance(edit, Unwrap) else "deep.pth"
    with read(source) as checkpoint, pytest.raises(PlanError, match="which is not there"):
        Plan((edit,)).apply(checkpoint)


def test_one_wrap_after_another_and_drops_below_it():
    plan = Plan((Wrap("a"), Wrap("b"), DropOther("b/a/args"), RenameEntry("b/a", "c"), Unwrap("b")))
    with read("train.pth") as checkpoint:
        edited = plan.apply(checkpoint)
        assert edited.state_dicts[0].path == "c/state_dict"
        assert [plan.path_after(p) for p in ("epoch", "args", "args/lr")] == ["c/epoch", None, None]
        assert {o.path for o in edited.others} == {
            "c/optimizer", "c/epoch", "c/hyper_parameters", "c/log",
        }  # fmt: skip
