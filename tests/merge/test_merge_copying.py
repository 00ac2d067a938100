"""Merges that compute nothing: whose entry stands under each name, and what goes with it."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch

from ckpt_surgery import (
    AddPrefix,
    MergeScope,
    Output,
    StripPrefix,
    UsageError,
    inspect,
    merge,
    selection,
)
from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.plan import Plan, apply
from ckpt_surgery.formats import read
from ckpt_surgery.models.torchvision_import import import_torchvision

torchvision = import_torchvision()


def net(seed, **changes):
    torch.manual_seed(seed)
    layers = OrderedDict(conv=torch.nn.Conv2d(3, 4, 3), bn=torch.nn.BatchNorm2d(4))
    return torch.nn.Sequential(layers | changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": net(0).state_dict(), "epoch": 7, "args": [1, "x"]}, "a.pth")
    torch.save(net(1, head=torch.nn.Linear(4, 2)).state_dict(), "b.pth")
    return tmp_path


def load(name="o.pth"):
    return torch.load(name, weights_only=False)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_overlay_is_the_dictionary_update(folder):
    report = merge(["a.pth", "b.pth"], "o.pth")
    a, b, o = load("a.pth"), load("b.pth"), load()
    expected = a["model"].copy()
    expected.update(b)
    assert same(o["model"], expected)
    assert list(o["model"]) == list(expected)
    assert (o["epoch"], o["args"]) == (7, [1, "x"])
    assert report.carried == ("epoch", "args")
    assert len(report.taken) == len(b)
    assert o["model"]._metadata["head"] == {"version": 1}


def test_fill_keeps_what_earlier_files_have(folder):
    report = merge(["a.pth", "b.pth"], "o.pth", "fill")
    a, b, o = load("a.pth")["model"], load("b.pth"), load()["model"]
    assert same(o, OrderedDict(b) | a)
    assert [name for name, _ in report.taken] == ["model/head.weight", "model/head.bias"]


def test_of_several_files_the_last_wins_and_with_fill_the_first(folder):
    torch.save({"conv.bias": torch.full((4,), 5.0), "new": torch.ones(1)}, "c.pth")
    torch.save({"conv.bias": torch.full((4,), 6.0), "new": torch.zeros(1)}, "d.pth")
    merge(["a.pth", "c.pth", "d.pth"], "o.pth")
    assert load()["model"]["conv.bias"].tolist() == [6.0] * 4
    merge(["a.pth", "c.pth", "d.pth"], "f.pth", "fill")
    assert load("f.pth")["model"]["new"].item() == 1


def test_backbone_and_head_become_one_checkpoint(folder):
    torch.save(torch.nn.Linear(4, 9).state_dict(), "head.pth")
    rules = {1: [AddPrefix("backbone")], 2: [AddPrefix("head")]}
    report = merge(["b.pth", "head.pth"], "o.pth", scope=MergeScope(renames=rules))
    names = list(load())
    assert names[0] == "backbone.conv.weight"
    assert names[-2:] == ["head.weight", "head.bias"]
    assert ("conv.weight", "backbone.conv.weight") in report.renamed
    assert load()._metadata["backbone.bn"] == {"version": 2}


def test_a_selection_narrows_what_is_taken(folder):
    scope = MergeScope(selection(prefix="bn"))
    merge(["a.pth", "b.pth"], "o.pth", scope=scope)
    a, b, o = load("a.pth")["model"], load("b.pth"), load()["model"]
    assert all(torch.equal(o[k], (b if k.startswith("bn.") else a)[k]) for k in a)
    with pytest.raises(UsageError, match="matches nothing"):
        merge(["a.pth", "b.pth"], "x.pth", scope=MergeScope(selection(prefix="nose")))


def test_wrapped_names_meet_after_stripping_a_prefix(folder):
    torch.save({f"module.{k}": v for k, v in net(3).state_dict().items()}, "w.pth")
    rules = {2: [StripPrefix("module")]}
    merge(["a.pth", "w.pth"], "o.pth", scope=MergeScope(renames=rules), only_existing=True)
    assert same(load()["model"], net(3).state_dict())


def test_ties_of_another_file_stay_ties(folder):
    tied = torch.randn(4)
    torch.save({"x": tied, "y": tied}, "t.pth")
    merge(["a.pth", "t.pth"], "o.pth")
    o = load()["model"]
    assert o["x"].data_ptr() == o["y"].data_ptr()
    assert inspect("o.pth").ties == (("model/x", "model/y"),)


def test_a_broken_tie_is_reported(folder):
    tied = torch.randn(4)
    torch.save({"x": tied, "y": tied}, "t.pth")
    torch.save({"x": torch.zeros(4)}, "u.pth")
    report = merge(["t.pth", "u.pth"], "o.pth")
    assert report.warnings == ("'x' and 'y' were tied and are no longer",)
    assert torch.equal(load()["y"], tied)


def test_compact_leaves_what_is_not_taken_behind(folder):
    flat = torch.arange(1000.0)
    torch.save({"x": flat[:4], "y": flat[4:]}, "flat.pth")
    scope = MergeScope(selection(keys=["x"]), compact=True)
    report = merge(["a.pth", "flat.pth"], "o.pth", scope=scope)
    assert load()["model"]["x"].tolist() == [0, 1, 2, 3]
    assert report.nbytes_after < 6000
    assert report.plan[-1] == {"edit": "compact", "unused_nbytes": 3984}


def test_a_saved_plan_does_the_same(folder):
    report = merge(["a.pth", "b.pth"], "o.pth")
    plan = Plan.from_dict(json.loads(json.dumps(report.to_dict()["plan"])))
    with read("a.pth") as a, read("b.pth") as b, read("o.pth") as o:
        edited = apply(plan, a, others=[b])
        assert _names(edited) == _names(o)


def _names(checkpoint: Checkpoint):
    return [name for name, _ in checkpoint.tensors]


def test_dry_run_writes_nothing_and_reports_the_same(folder):
    dry = merge(["a.pth", "b.pth"], Output(dry_run=True)).to_dict()
    assert not (folder / "o.pth").exists()
    real = merge(["a.pth", "b.pth"], "o.pth").to_dict()
    assert dry | {"output": "o.pth"} == real


def test_state_dict_only_writes_it_alone(folder):
    report = merge(["a.pth", "b.pth"], "o.pth", scope=MergeScope(state_dict_only=True))
    assert "head.bias" in load()
    assert report.dropped == ("epoch", "args")
    assert report.carried == ()


def test_a_changed_shape_is_said(folder):
    torch.save({"conv.bias": torch.zeros(9)}, "c.pth")
    report = merge(["a.pth", "c.pth"], "o.pth")
    assert "'model/conv.bias' changes its shape" in report.warnings[0]


def test_every_readable_format_is_an_input(folder):
    from safetensors.torch import save_file

    save_file(dict(net(4).state_dict()), "s.safetensors")
    merge(["a.pth", "s.safetensors"], "o.pth")
    assert same(load()["model"], net(4).state_dict())
    torch.save(net(5), "whole.pkl")
    report = merge(["whole.pkl", "s.safetensors"], "p.pth")
    assert same(load("p.pth"), net(4).state_dict())
    assert report.plan[-1] == {"edit": "convert", "from": "torch-module", "to": "torch-zip"}
    report = merge(["s.safetensors", "b.pth"], "q.pth")
    assert same(load("q.pth"), load("b.pth"))


@pytest.mark.parametrize("narrow", [{"only_existing": True}, {"same_shape": True}])
def test_nothing_to_take_is_an_error(folder, narrow):
    torch.save({"bn.weight" if "same_shape" in narrow else "else": torch.zeros(1)}, "c.pth")
    with pytest.raises(UsageError, match="nothing to take"):
        merge(["a.pth", "c.pth"], "o.pth", **narrow)
    assert not (folder / "o.pth").exists()


def test_fill_with_nothing_new_says_so(folder):
    report = merge(["a.pth", "a.pth"], "o.pth", "fill")
    assert report.warnings == ("nothing is taken from 'a.pth'",)
    assert (folder / "o.pth").read_bytes() == (folder / "a.pth").read_bytes()


def test_state_dicts_meet_by_path_then_alone_then_by_kind(folder):
    model, ema = net(1).state_dict(), net(2).state_dict()
    torch.save({"state_dict": model, "state_dict_ema": ema}, "two.pth")
    merge(["two.pth", "two.pth"], "o.pth")
    assert same(load()["state_dict_ema"], ema)
    merge(["b.pth", "two.pth"], "p.pth", only_existing=True)
    assert torch.equal(load("p.pth")["conv.bias"], model["conv.bias"])
    torch.save({"model": model, "net": ema}, "vague.pth")
    with pytest.raises(UsageError, match="no state dict belongs") as caught:
        merge(["b.pth", "vague.pth"], "q.pth")
    assert "'model', 'net'" in str(caught.value)


@pytest.mark.parametrize(("shallow", "deep"), [("resnet18", "resnet34")])
def test_r2_r3_pretrained_weights_into_a_deeper_model(folder, shallow, deep):
    """Rows R2 and R3: the keys that the new model also has, a shallow network into a deeper."""
    torch.manual_seed(0)
    pretrained = torchvision.models.get_model(shallow)
    target = torchvision.models.get_model(deep, num_classes=5)
    torch.save(pretrained.state_dict(), "pretrained.pth")
    torch.save(target.state_dict(), "init.pth")
    report = merge(["init.pth", "pretrained.pth"], "o.pth", only_existing=True, same_shape=True)
    target.load_state_dict(load(), strict=True)
    theirs, init, o = pretrained.state_dict(), load("init.pth"), load()
    taken = {name for name, _ in report.taken}
    assert taken == {k for k, v in theirs.items() if k in init and init[k].shape == v.shape}
    assert all(torch.equal(o[k], (theirs if k in taken else init)[k]) for k in o)
    assert set(report.kept) == set(o) - taken
    assert {"fc.weight", "fc.bias"} <= set(report.kept)


def test_r15_alexnet_with_spatial_pyramid_pooling(folder):
    """Row R15: names and shapes that agree are copied, 13 of 16."""
    alexnet = torchvision.models.alexnet()
    torch.save(alexnet.state_dict(), "alexnet.pth")
    spp = alexnet.state_dict()
    spp["classifier.1.weight"] = torch.zeros(4096, 256 * 50)
    spp["classifier.6.weight"], spp["classifier.6.bias"] = torch.zeros(20, 4096), torch.zeros(20)
    torch.save({k: torch.full_like(v, 2.0) for k, v in spp.items()}, "spp.pth")
    report = merge(["spp.pth", "alexnet.pth"], "o.pth", only_existing=True, same_shape=True)
    assert len(report.taken) == 13
    assert report.kept == ("classifier.1.weight", "classifier.6.weight", "classifier.6.bias")
    assert torch.equal(load()["classifier.4.weight"], alexnet.state_dict()["classifier.4.weight"])
