"""What people do to checkpoints by hand, done with `ckpt`; torch says whether it is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch_checks import assert_same, assert_torch_reads, load

MODULE = """
import torch

class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(8, 5)
        self.register_buffer("anchors", torch.arange(6.0), persistent=False)
        self.register_buffer("scale", torch.ones(3))
"""
SAVE = """
import sys, torch, vanishing
torch.manual_seed(1)
model = vanishing.Detector()
torch.save(model, "whole.pkl", _use_new_zipfile_serialization=sys.argv[1] == "zip")
torch.save(model.state_dict(), "expected.pth")
"""


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_model_pickled_whole_gives_its_state_dict_without_its_class(ckpt, tmp_path, container):
    (tmp_path / "vanishing.py").write_text(MODULE)
    subprocess.run([sys.executable, "-c", SAVE, container], cwd=tmp_path, check=True)
    (tmp_path / "vanishing.py").unlink()
    expected = load(tmp_path / "expected.pth")
    assert ckpt("inspect", "whole.pkl", "--keys").output.split() == list(expected)
    ckpt("convert", "whole.pkl", "-o", "weights.pth")
    assert_torch_reads(tmp_path / "weights.pth", expected)
    refusal = ckpt("strip", "whole.pkl", "--pattern", "head", "-o", "no.pth", exit_code=2)
    assert "ckpt convert" in refusal.output


def test_the_tree_counts_what_every_subtree_has(ckpt, build, tmp_path):
    model = build("resnet34")
    torch.save(model.state_dict(), tmp_path / "r.pth")
    rows = [
        line.split()
        for line in ckpt("inspect", "r.pth", "--tree", "--depth", "1").output.splitlines()
    ]
    found = {row[1]: row[2:] for row in rows if row and row[0] in {"├──", "└──"}}
    for name, child in model.named_children():
        state = list(child.state_dict().values())
        if state:
            parameters = sum(p.numel() for p in child.parameters())
            nbytes = sum(t.numel() * t.element_size() for t in state)
            assert found.pop(name) == [str(len(state)), f"{parameters:,}", f"{nbytes:,}"]
    assert not found


def test_vgg16_is_cut_to_the_backbone_of_a_detector(ckpt, build, tmp_path):
    model = build("vgg16")
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    ckpt("strip", "vgg16.pth", "--keep", "--prefix", "features", "-o", "features.pth")
    ckpt("rename", "features.pth", "--strip-prefix", "features.", "-o", "backbone.pth")
    state_dict = load(tmp_path / "backbone.pth", weights_only=True)
    assert len(state_dict) == 26
    assert list(state_dict)[-1] == "28.bias"  # conv5_3
    backbone = torch.nn.Sequential(*list(model.features)[:-1])
    copy = torch.nn.Sequential(*list(build("vgg16").features)[:-1])
    copy.load_state_dict(state_dict, strict=True)
    for ours, theirs in zip(copy.parameters(), backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_alexnet_is_listed_with_its_shapes(ckpt, build, tmp_path):
    model = build("alexnet")
    torch.save(model.state_dict(), tmp_path / "alexnet.pth")
    lines = ckpt("inspect", "alexnet.pth").output.splitlines()
    rows = [line.split(maxsplit=2) for line in lines[1:17]]
    expected = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert expected[0] == ("features.0.weight", (64, 3, 11, 11))
    assert expected[-1] == ("classifier.6.bias", (1000,))
    for index, (row, (name, shape)) in enumerate(zip(rows, expected, strict=True)):
        assert row[0] == str(index)
        assert row[1] == name
        assert row[2].startswith(str(shape))


def _same(path: Path, expected: dict[str, torch.Tensor], modules: list[str]) -> None:
    found = load(path, weights_only=True)
    assert list(found) == list(expected)
    assert_same(list(found.values()), list(expected.values()))
    assert list(found._metadata) == modules


def test_wrapper_prefixes_come_and_go_at_any_depth(ckpt, build, tmp_path):
    model = build("resnet18")
    state_dict = model.state_dict()
    modules = list(state_dict._metadata)
    wrapped = torch.nn.DataParallel(model)
    torch.save(wrapped.state_dict(), tmp_path / "parallel.pth")
    ckpt("rename", "parallel.pth", "--strip-prefix", "module.", "-o", "plain.pth")
    _same(tmp_path / "plain.pth", state_dict, modules)
    model.load_state_dict(load(tmp_path / "plain.pth"), strict=True)

    ckpt("rename", "plain.pth", "--add-prefix", "module.base_model.", "-o", "nested.pth")
    nested = [f"module.base_model.{module}".rstrip(".") for module in modules]
    _same(
        tmp_path / "nested.pth",
        {f"module.base_model.{name}": t for name, t in state_dict.items()},
        nested,
    )
    ckpt(
        "rename", "nested.pth", "--strip-prefix", "module", "--strip-prefix", "base_model",
        "-o", "again.pth",
    )  # fmt: skip
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "plain.pth").read_bytes()

    compiled = torch.nn.Module()
    compiled._orig_mod = model
    torch.save(torch.nn.DataParallel(compiled).state_dict(), tmp_path / "both.pth")
    ckpt("rename", "both.pth", "--strip-prefix", "module._orig_mod.", "-o", "bare.pth")
    _same(tmp_path / "bare.pth", state_dict, modules)


def test_an_infix_is_removed_and_put_back(ckpt, tmp_path):
    block = torch.nn.Module()
    block.net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model = torch.nn.Module()
    model.encoder, model.head = block, torch.nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    ckpt("rename", "net.pth", "--replace", ".net", "", "-o", "short.pth")
    flat = torch.nn.Module()
    flat.encoder, flat.head = block.net, model.head
    flat.load_state_dict(load(tmp_path / "short.pth"), strict=True)
    ckpt("rename", "short.pth", "--sub", r"^encoder\.", "encoder.net.", "-o", "long.pth")
    model.load_state_dict(load(tmp_path / "long.pth"), strict=True)
    assert list(load(tmp_path / "long.pth")) == list(model.state_dict())


def test_the_state_dict_of_a_training_checkpoint_is_found_and_the_rest_kept(ckpt, build, tmp_path):
    model = build("resnet18")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    training = {
        "epoch": 7,
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "best_acc1": torch.tensor(71.5),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(training, tmp_path / "checkpoint.pth.tar")
    assert ckpt("inspect", "checkpoint.pth.tar", "--keys").output.split() == list(
        model.state_dict()
    )
    ckpt("rename", "checkpoint.pth.tar", "--at", "state_dict", "--add-prefix", "m", "-o", "r.pth")
    found = load(tmp_path / "r.pth", weights_only=True)
    for name in ("epoch", "arch", "best_acc1", "optimizer"):
        assert_same(found[name], training[name])
    assert list(found["state_dict"]) == [f"m.{name}" for name in model.state_dict()]
    ckpt("convert", "checkpoint.pth.tar", "--state-dict-only", "-o", "alone.pth")
    assert_torch_reads(tmp_path / "alone.pth", training["state_dict"])


def test_a_resnet34_without_its_head_misses_exactly_the_head(ckpt, build, tmp_path):
    model = build("resnet34")
    torch.save(model.state_dict(), tmp_path / "resnet34.pth")
    report = ckpt("strip", "resnet34.pth", "--pattern", "fc", "-o", "b.pth", "--json").output
    assert json.loads(report)["removed"] == ["fc.weight", "fc.bias"]
    expected = OrderedDict((k, v) for k, v in model.state_dict().items() if "fc" not in k)
    expected._metadata = OrderedDict(
        (k, v) for k, v in model.state_dict()._metadata.items() if k != "fc"
    )
    assert_torch_reads(tmp_path / "b.pth", expected)
    five = build("resnet34", num_classes=5)
    answer = five.load_state_dict(load(tmp_path / "b.pth"), strict=False)
    assert answer.missing_keys == ["fc.weight", "fc.bias"]
    assert answer.unexpected_keys == []


def test_the_parameters_of_a_resnet34_are_those_that_torch_names(ckpt, build, tmp_path):
    model = build("resnet34")
    torch.save(model.state_dict(), tmp_path / "r.pth")
    names = ckpt("inspect", "r.pth", "--params-only", "--keys").output.split()
    assert names == [name for name, _ in model.named_parameters()]
    assert len(names) == 110


def test_both_indices_are_shown_and_differ_by_the_buffers(ckpt, build, tmp_path):
    model = build("resnet34")
    torch.save(model.state_dict(), tmp_path / "r.pth")
    lines = ckpt("inspect", "r.pth", "--index").output.splitlines()[1:219]
    parameters = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    for index, (line, name) in enumerate(zip(lines, model.state_dict(), strict=True)):
        assert line.split()[:3] == [str(index), str(parameters.get(name, "-")), name]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".pth.tar", ".bin", ".ckpt", "", ".zip"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_format_is_found_from_the_content(ckpt, tmp_path, suffix, zipped):
    linear = torch.nn.Linear(2, 3)
    name = f"model{suffix}"
    torch.save(linear.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    document = json.loads(ckpt("inspect", name, "--json").output)
    assert document["format"] == ("torch-zip" if zipped else "torch-legacy")
    ckpt("strip", name, "--prefix", "bias", "-o", "out.pth")
    assert list(load(tmp_path / "out.pth", weights_only=True)) == ["weight"]


def test_a_pipe_of_commands_is_the_same_as_files_in_between(build, tmp_path):
    torch.save(build("resnet18").state_dict(), tmp_path / "r.pth")
    ckpt = f"{sys.executable} -m ckpt_surgery"
    line = (
        f"{ckpt} strip r.pth --prefix fc | {ckpt} rename - --add-prefix backbone "
        f"| {ckpt} strip --keep --prefix backbone.layer1 -o piped.pth"
    )
    subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, check=True, env=_env())
    found = load(tmp_path / "piped.pth", weights_only=True)
    expected = [n for n in build("resnet18").state_dict() if n.startswith("layer1.")]
    assert list(found) == [f"backbone.{name}" for name in expected]


def _env() -> dict[str, str]:
    import os

    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root}
