"""Attributes of TorchScript that are tensors become entries, as the module itself has them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch_checks import quiet

from ckpt_surgery import Plan, PlanError, UsageError, convert, read
from ckpt_surgery.cli.main import cli


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
        self.scale = torch.tensor([2.0])
        self.listed = [torch.ones(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.bn(self.conv(x)).mean((2, 3)) * self.scale
        return self.head(pooled) + self.listed[0].sum()


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 1, 5, 5))
    return net.eval()


@pytest.fixture
def script(model: Net, tmp_path: Path) -> Path:
    """An archive that declares no buffers, as torch before 1.6 wrote them."""
    with quiet():
        torch.jit.save(torch.jit.script(model), tmp_path / "new.pt")
    path = tmp_path / "old.pt"
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(path, "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith(".py"):
                data = re.sub(rb"  __buffers__.*\n", b"", data)
            old.writestr(name, data)
    with quiet():
        assert not any("running" in name for name in torch.jit.load(path).state_dict())
    return path


STATISTICS = ("**.running_*", "**.num_batches_tracked")


def test_statistics_load_strictly_into_the_model(model: Net, script: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    report = convert(script, out, attributes=STATISTICS)
    found = torch.load(out, weights_only=True)
    assert list(found) == list(model.state_dict())
    fresh = Net().eval()
    fresh.load_state_dict(found)
    images = torch.randn(2, 1, 5, 5)
    assert torch.equal(fresh(images), model(images))
    assert [(r["text"], r["matched"]) for r in report.rules] == list(
        zip(STATISTICS, (4, 2), strict=True)
    )
    assert report.dropped == ("scale", "listed", "constants")[: len(report.dropped)]
    assert {each["edit"] for each in report.plan} == {"take-attribute", "convert"}


def test_every_attribute_that_is_a_tensor_can_be_taken(script: Path, tmp_path: Path) -> None:
    convert(script, tmp_path / "out.pth", attributes=["**"])
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert found["scale"].tolist() == [2.0]
    assert "listed" not in found  # a list of tensors is none


def test_without_the_option_the_state_dict_is_that_of_torch(script: Path, tmp_path: Path) -> None:
    convert(script, tmp_path / "out.pth")
    with quiet():
        expected = torch.jit.load(script).state_dict()
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == list(expected)


@pytest.mark.parametrize(
    "more", [{"tensors_only": True}, {"dtypes": ["bf16"]}, {"at": ""}], ids=str
)
def test_what_else_is_asked_for_follows(more: dict[str, Any], script: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(script, out, attributes=STATISTICS, **more)
    with read(out) as checkpoint:
        (state_dict,) = checkpoint.state_dicts
        types = {name: tensor.dtype.name for name, tensor in state_dict.tensors}
    assert types["bn.running_mean"] == "float32"  # a statistic, which a cast leaves
    assert types["conv.weight"] == ("bfloat16" if "dtypes" in more else "float32")


def test_plan_is_replayed(script: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.pth", tmp_path / "log.json"
    line = ["convert", str(script), "--attributes", "**.running_*", "-o", str(out)]
    done = CliRunner().invoke(cli, [*line, "--record", str(log)])
    assert done.exit_code == 0
    assert "--attributes **.running_*: took 4 names" in done.stdout
    first = out.read_bytes()
    assert (
        CliRunner().invoke(cli, ["apply", str(log), "-o", str(tmp_path / "b.pth")]).exit_code == 0
    )
    assert (tmp_path / "b.pth").read_bytes() == first
    assert json.loads(log.read_text())["plan"][0] == {
        "edit": "take-attribute", "state_dict": "", "name": "bn.running_mean"
    }  # fmt: skip


def test_glob_that_matches_nothing_is_refused(script: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'--attributes x' matches nothing"):
        convert(script, tmp_path / "out.pth", attributes=["x"])
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="matches nothing") as caught:
        convert(tmp_path / "w.pth", tmp_path / "out.pth", attributes=["**"])
    assert "only a TorchScript archive has attributes" in str(caught.value.hint)
    with quiet():
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "plain.pt")
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "plain.pt", tmp_path / "out.pth", attributes=["**"])
    assert "all of them are in the state dict" in str(caught.value.hint)
    assert not (tmp_path / "out.pth").exists()


def test_plan_of_an_attribute_that_is_not_there_is_refused(script: Path) -> None:
    edit = {"edit": "take-attribute", "state_dict": "", "name": "bn.running_men"}
    with read(script) as checkpoint, pytest.raises(PlanError, match="which is not there") as caught:
        Plan.from_dict([edit]).apply(checkpoint)
    assert "bn.running_mean" in str(caught.value.hint)


def test_published_archive_of_2019_gets_its_statistics(shared_dir: Path, tmp_path: Path) -> None:
    path = shared_dir / "real" / "affnet" / "torchscript_2019_affnet.pt"
    convert(path, tmp_path / "out.pth", attributes=STATISTICS)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    with quiet():
        module = torch.jit.load(path)
    declared = dict(module.state_dict())
    assert len(found) == len(declared) + 18
    for name, value in found.items():
        holder, _, last = name.rpartition(".")
        theirs = declared[name] if name in declared else _attribute(module, holder, last)
        assert torch.equal(value, theirs), name


def _attribute(module: Any, holder: str, name: str) -> torch.Tensor:
    for part in holder.split("."):
        module = module._modules[part]
    return module._c.getattr(name)
