"""Files saved on a GPU, written so that they open on a machine without one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.serialization
from click.testing import CliRunner
from torch import nn

import ckpt_surgery
from ckpt_surgery import Output, Plan, read, selection
from ckpt_surgery.cli.main import cli
from ckpt_surgery.edits.device import SetDevice

DEVICES = ["cuda:0", "cuda:1", "mps", "xpu:0", "hpu", "npu:0"]


def save_as_from(device, value, path, monkeypatch, **options):
    """Save as torch does where tensors lie on `device`: the tag of each storage is its name."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: device)
        torch.save(value, path, **options)


def training():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cuda:0"),
        "epoch": 1,
    }


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def assert_as_trained(found):
    expected = training()
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
    for key, values in expected["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(found["optimizer"]["state"][key][name], value)
    assert found["device"] == expected["device"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_file_of_a_gpu_opens_without_one(device, legacy, monkeypatch):
    """Job 38. What is no tensor (a device in the configuration) stays as it is."""
    options = {"_use_new_zipfile_serialization": False} if legacy else {}
    save_as_from(device, training(), "gpu.pth", monkeypatch, **options)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        torch.load("gpu.pth", weights_only=True)
    report = ckpt_surgery.convert("gpu.pth", Output("cpu.pth", device="cpu"))
    assert_as_trained(torch.load("cpu.pth", weights_only=True))
    edits = [each for each in report.plan if each["edit"] == "set-device"]
    assert edits == [{"edit": "set-device", "from": device, "to": "cpu"}]


def edit(verb, output):
    torch.save(nn.Linear(3, 2).state_dict(), "like.pth")
    torch.save({"state_dict": nn.Linear(3, 2).state_dict()}, "other.pth")
    verbs = {
        "strip": lambda: ckpt_surgery.strip("gpu.pth", output, selection(name="bias")),
        "rename": lambda: ckpt_surgery.rename("gpu.pth", output, allow_nothing=True),
        "compact": lambda: ckpt_surgery.strip("gpu.pth", output, compact=True),
        "fit": lambda: ckpt_surgery.fit("gpu.pth", output, like="like.pth"),
        "overlay": lambda: ckpt_surgery.merge(["gpu.pth", "other.pth"], output, "overlay"),
        "average": lambda: ckpt_surgery.merge(["gpu.pth", "other.pth"], output, "average"),
        "weights": lambda: ckpt_surgery.convert("gpu.pth", output, state_dict_only=True),
    }
    return verbs[verb]()


@pytest.mark.parametrize(
    "verb", ["strip", "rename", "compact", "fit", "overlay", "average", "weights"]
)
def test_every_verb_writes_for_the_cpu(verb, monkeypatch):
    save_as_from("cuda:0", training(), "gpu.pth", monkeypatch)
    edit(verb, Output("cpu.pth", device="cpu"))
    assert torch.load("cpu.pth", weights_only=True)
    with zipfile.ZipFile("cpu.pth") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        data = archive.read(name)
    assert (b"cuda" in data) == (verb != "weights"), "the configuration's own device alone"
    assert data.count(b"cuda") <= 1


def test_what_another_file_gives_is_said_of_the_cpu_too(monkeypatch):
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, "cpu.pth")
    save_as_from("cuda:1", {"b": torch.ones(2)}, "gpu.pth", monkeypatch)
    ckpt_surgery.merge(["cpu.pth", "gpu.pth"], Output("out.pth", device="cpu"), "overlay")
    assert torch.load("out.pth", weights_only=True)["b"].tolist() == [1.0, 1.0]
    assert b"cuda" not in Path("out.pth").read_bytes()


@pytest.mark.parametrize("verb", ["fit", "merge"])
def test_the_report_of_every_verb_says_it(verb, monkeypatch):
    torch.save(nn.Linear(3, 2).state_dict(), "like.pth")
    save_as_from("cuda:0", training(), "gpu.pth", monkeypatch)
    line = {"fit": ["--like", "like.pth"], "merge": ["like.pth", "--method", "fill"]}[verb]
    done = CliRunner().invoke(cli, [verb, "gpu.pth", *line, "--device", "cpu", "-o", "out.pth"])
    assert "device: cuda:0 -> cpu\n" in done.stdout


def test_several_devices_become_one(monkeypatch):
    tags = iter(["cuda:0", "cuda:1", "cpu", "meta-like"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: next(tags))
        torch.save({name: torch.ones(2) for name in "abcd"}, "gpus.pth")
    report = ckpt_surgery.convert("gpus.pth", Output("cpu.pth", device="cpu"))
    assert [e["from"] for e in report.plan if e["edit"] == "set-device"] == [
        "cuda:0", "cuda:1", "meta-like",
    ]  # fmt: skip
    assert torch.load("cpu.pth", weights_only=True).keys() == set("abcd")


def test_only_the_pickle_changes_and_a_file_for_the_cpu_stays_the_same(monkeypatch):
    save_as_from("cuda:0", training(), "gpu.pth", monkeypatch)
    torch.save(training(), "cpu.pth")
    ckpt_surgery.convert("gpu.pth", Output("out.pth", device="cpu"))
    with zipfile.ZipFile("out.pth") as out, zipfile.ZipFile("cpu.pth") as cpu:
        for name in cpu.namelist():
            # the folder is called after the file, and the id is made of what is in it
            ours = name.replace("cpu/", "gpu/", 1)
            if not name.endswith(".data/serialization_id"):
                assert out.read(ours) == cpu.read(name), name
    ckpt_surgery.convert("cpu.pth", Output("same.pth", device="cpu"))
    assert Path("same.pth").read_bytes() == Path("cpu.pth").read_bytes()


class TestTensorsThatNameTheirDevice:
    """Those without a storage have it among the arguments of the call that makes them."""

    def written(self, value, monkeypatch):
        torch.save({"w": value, "plain": torch.ones(1)}, "in.pth")
        report = ckpt_surgery.convert("in.pth", Output("out.pth", device="cpu"))
        return report, torch.load("out.pth", weights_only=False)

    @pytest.mark.parametrize("device", ["xla:0", torch.device("xla", 0), torch.device("xla")])
    def test_values_of_numpy_for_a_device(self, device, monkeypatch):
        class FromNumpy:
            def __reduce__(self):
                rebuild = torch._utils._rebuild_device_tensor_from_numpy
                return rebuild, (np.ones(2, "f4"), torch.float32, device, False)

        report, found = self.written(FromNumpy(), monkeypatch)
        assert torch.equal(found["w"], torch.ones(2))
        named = str(device)
        assert {"edit": "set-device", "from": named, "to": "cpu"} in report.plan

    def test_a_meta_tensor_stays_without_elements(self, monkeypatch):
        report, found = self.written(torch.ones(2, device="meta"), monkeypatch)
        assert found["w"].device.type == "meta"
        assert not any(e["edit"] == "set-device" for e in report.plan)


def test_devices_are_replaced_one_after_the_other(monkeypatch):
    save_as_from("cuda:0", training(), "gpu.pth", monkeypatch)
    edits = (SetDevice("cuda:0", "cuda:3"), SetDevice("cuda:3", "cpu"))
    plan = Plan.from_dict(json.loads(json.dumps(Plan(edits).to_dict())))
    with read("gpu.pth") as checkpoint:
        assert plan.apply(checkpoint).devices == {"cuda:0": "cpu", "cuda:3": "cpu"}


def test_old_types_of_the_gpu_become_those_of_the_cpu(monkeypatch):
    """The first releases called the class of a storage ``torch.cuda.FloatStorage``."""
    save_as_from("cuda:0", {"w": torch.ones(2)}, "new.pth", monkeypatch)
    with zipfile.ZipFile("new.pth") as new, zipfile.ZipFile("gpu.pth", "w") as old:
        for name in new.namelist():
            data = new.read(name).replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat")
            old.writestr(name, data)
    ckpt_surgery.convert("gpu.pth", Output("cpu.pth", device="cpu"))
    assert torch.equal(torch.load("cpu.pth", weights_only=True)["w"], torch.ones(2))
    assert b"cuda" not in Path("cpu.pth").read_bytes()
