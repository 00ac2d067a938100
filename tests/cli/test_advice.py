"""What a message advises works, and what a report says of a line is what was done."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import pytest
import torch
from commands import ckpt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch_checks import quiet

NAMES = ("conv.weight", "conv.bias", "fc.weight", "fc.bias")


def weights(middle: str = ".") -> OrderedDict[str, torch.Tensor]:
    """Return four tensors; `middle` stands between the names of modules and of tensors."""
    return OrderedDict(
        (name.replace(".", middle if "conv" in name else "."), torch.full((number + 1,), 0.5))
        for number, name in enumerate(NAMES)
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(weights(), "like.pth")
    torch.save({"state_dict": weights(), "epoch": 3}, "run.pth")
    save_file(dict(weights()), "w.safetensors", metadata={"license": "MIT"})
    save_file(dict(weights()), "bare.safetensors")


def test_match_names_the_fit_that_takes_an_infix_out() -> None:
    torch.save(weights(".net."), "infix.pth")
    said = ckpt("match", "infix.pth", "--like", "like.pth", exit_code=1)
    command = re.search(r"'ckpt (fit[^']*)' pairs them", said)
    assert "2 of these names are only spelled otherwise (segment 'net' removed)" in said
    assert command is not None
    ckpt(*command[1].split(), "infix.pth", "--like", "like.pth", "-o", "out.pth")
    assert list(torch.load("out.pth")) == list(NAMES)


def test_match_advises_nothing_for_names_that_only_end_alike() -> None:
    torch.save({f"other.{name}": value for name, value in weights().items()}, "x.pth")
    found = OrderedDict((f"a.b{i}.{name}", v) for i, (name, v) in enumerate(weights().items()))
    torch.save(found, "other.pth")
    assert "spelled" not in ckpt("match", "other.pth", "--like", "x.pth", exit_code=1)


@pytest.mark.parametrize(("old", "new"), [("weight_g", "parametrizations.weight.original0")])
def test_match_names_the_fit_for_an_old_spelling_at_the_top(old: str, new: str) -> None:
    torch.save({old: torch.ones(2, 1)}, "old.pth")
    torch.save({new: torch.ones(2, 1)}, "new.pth")
    said = ckpt("match", "old.pth", "--like", "new.pth", exit_code=1)
    assert "(old spelling): 'ckpt fit' pairs them" in said
    ckpt("fit", "old.pth", "--like", "new.pth", "-o", "out.pth")
    assert list(torch.load("out.pth")) == [new]


@pytest.mark.parametrize("path", ["fc.weight", "state_dict/fc.weight"])
def test_a_name_among_the_weights_is_told_to_who_takes_it_for_an_entry(path: str) -> None:
    said = ckpt("strip", "run.pth", "--entry", path, "-o", "out.pth", exit_code=2)
    assert "it is a name among the weights: --name fc.weight" in said
    ckpt("strip", "run.pth", "--name", "fc.weight", "-o", "out.pth")
    assert "fc.weight" not in torch.load("out.pth")["state_dict"]


def test_an_option_of_other_commands_is_first_looked_for_in_this_one() -> None:
    said = ckpt("strip", "run.pth", "--keys", "x", exit_code=2)
    assert "did you mean '--keys-from'" in said
    assert "'--keys' is an option of 'ckpt inspect'" in said


@pytest.mark.parametrize("average", [False, True])
def test_the_cure_for_pickled_modules_in_a_run_keeps_what_lies_beside_them(average: bool) -> None:
    run = {"model": nn.Linear(2, 2), "epoch": 3} | ({"ema": nn.Linear(2, 2)} if average else {})
    torch.save(run, "run.pt")
    cure = re.search(r"'ckpt ([^']+)' cures that", ckpt("inspect", "run.pt"))
    assert cure is not None
    ckpt(*cure[1].split(), "run.pt", "-o", "out.pt")
    assert torch.load("out.pt", weights_only=True)["epoch"] == 3


def test_what_set_leaves_out_and_does_to_the_file_is_told() -> None:
    with mock.patch.object(torch.serialization, "location_tag", return_value="mps"):
        torch.save({"model": weights(), "epoch": 3}, "mps.pth")
    said = ckpt("set", "mps.pth", "epoch=4", "--device", "cpu", "-o", "out.pth")
    assert "device: mps -> cpu\n" in said
    assert torch.load("out.pth")["epoch"] == 4
    said = ckpt("set", "w.safetensors", "--delete", "__metadata__/license", "-o", "out.pth",
                exit_code=2)  # fmt: skip
    assert "the metadata has no 'license'" in said
    torch.save({"model": weights() | {"steps": 3}, "epoch": 3}, "loose.pth")
    out = ("-o", "out.safetensors", "--allow-loss")
    said = ckpt("set", "loose.pth", "epoch=4", *out)
    assert "removed: model/steps\n" in said
    assert "converted: torch-zip -> safetensors\n" in said
    assert "removed beside them: epoch" in ckpt("set", "run.pth", "note=4", *out, "--force")


def test_texts_are_set_where_the_output_has_a_place_for_them() -> None:
    line = ("set", "w.safetensors", "__metadata__/note=x")
    said = ckpt(*line, "-o", "out.pth", exit_code=2)
    assert "a file of 'torch-zip' has no texts beside the tensors" in said
    assert "-o FILE.safetensors" in said
    assert not Path("out.pth").exists()
    ckpt(*line, "-o", "out.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata() == {"license": "MIT", "note": "x"}
    said = ckpt("set", "w.safetensors", "note=x", "-o", "out.pth", exit_code=2)
    assert "'ckpt rename --wrap model' puts a dictionary around them" in said


@pytest.mark.parametrize("file", ["w.safetensors", "bare.safetensors", "like.pth"])
def test_a_wrap_is_refused_by_a_format_that_has_none(file: str) -> None:
    line = ("rename", file, "--wrap", "model")
    said = ckpt(*line, "-o", "out.safetensors", exit_code=2)
    assert "a safetensors file has no dictionary around its tensors" in said
    assert not Path("out.safetensors").exists()
    ckpt(*line, "-o", "out.pth")
    assert set(torch.load("out.pth")["model"]) == set(NAMES)


def test_a_report_s_device_that_a_file_does_not_have_is_refused() -> None:
    for device in ("cuda:0", "mps"):
        with mock.patch.object(torch.serialization, "location_tag", return_value=device):
            torch.save(weights(), f"{device[:3]}.pth")
    ckpt("convert", "cud.pth", "--device", "cpu", "-o", "out.pth", "--record", "report.json")
    said = ckpt("apply", "report.json", "mps.pth", "-o", "other.pth", exit_code=2)
    assert "nothing in it was saved on 'cuda:0', which is to be 'cpu'" in said
    assert "it was saved on: 'mps'" in said
    ckpt("apply", "report.json", "cud.pth", "-o", "other.pth")
    assert list(torch.load("other.pth")) == list(NAMES)


def test_a_torchscript_archive_from_a_gpu_opens_without_one() -> None:
    """The tag is put into the pickle: only torch on a GPU writes it."""
    import zipfile

    with quiet():
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "cpu.pt")
    with zipfile.ZipFile("cpu.pt") as old, zipfile.ZipFile("gpu.pt", "w") as new:
        for each in old.infolist():
            data = old.read(each)
            if each.filename.endswith("data.pkl"):
                assert data.count(b"X\x03\x00\x00\x00cpu") == 1
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(each.filename, data)
    assert "cuda:0 (2 tensors)" in ckpt("inspect", "gpu.pt")
    assert "device: cuda:0 -> cpu" in ckpt("convert", "gpu.pt", "--device", "cpu", "-o", "out.pth")
    assert list(torch.load("out.pth")) == ["weight", "bias"]


def test_the_device_of_a_nested_tensor_is_that_of_its_elements() -> None:
    with mock.patch.object(torch.serialization, "location_tag", return_value="cuda:0"):
        with quiet():
            nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])
        torch.save({"ragged": nested, "w": torch.ones(1)}, "nested.pth")
    (found,) = json.loads(ckpt("inspect", "nested.pth", "--json"))["state_dicts"]
    assert {each["device"] for each in found["tensors"]} == {"cuda:0"}


@pytest.mark.parametrize("name", ["a-2020.pth", "a-12345678-deadbeef.pth", "a-1f.pth"])
def test_a_hash_goes_into_any_name_in_which_torch_hub_finds_it(name: str) -> None:
    from torch.hub import HASH_REGEX

    said = ckpt("convert", "like.pth", "--hash-name", "-o", name)
    written = re.search(r"written to (\S+),", said)
    assert written is not None
    digits = HASH_REGEX.search(written[1])
    assert digits is not None
    assert len(digits[1]) == 8
    assert "would take a part" in ckpt("convert", "like.pth", "--hash-name", "-o", "a-20.x.pth",
                                       exit_code=2)  # fmt: skip
