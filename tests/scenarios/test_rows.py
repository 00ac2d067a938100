"""What people do to checkpoints by hand, done with `ckpt`, on torchvision's architectures.

Rows of the list of scenarios (R1, R12 …) that need no target model. torch is the oracle: what the
row's own loop over `torch.load` gives is what the file must hold.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch_checks import assert_same, assert_torch_reads

from ckpt_surgery.cli.main import cli
from ckpt_surgery.models.torchvision_import import import_torchvision

models = import_torchvision().models
Weights = OrderedDict[str, torch.Tensor]


def ckpt(*line: str | Path, code: int = 0) -> str:
    """What `ckpt` prints; it must end with `code`."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli, [str(word) for word in line])
    assert done.exit_code == code, done.output
    return done.stdout


def inspected(*line: str | Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ckpt("inspect", "--json", *line))
    return document


def random_weights(model: nn.Module, seed: int = 0, heavy: str = "") -> Weights:
    """The state dict of a model on the meta device with seeded random numbers.

    Tensors whose names begin with `heavy` get one element that is expanded to their shape, so
    that the file stays small.
    """
    generator = torch.Generator().manual_seed(seed)
    state_dict = model.state_dict()
    for name, tensor in state_dict.items():
        if heavy and name.startswith(heavy):
            state_dict[name] = torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)
        elif tensor.is_floating_point():
            state_dict[name] = torch.rand(tensor.shape, generator=generator)
        else:
            state_dict[name] = torch.tensor(seed)
    return state_dict


def architecture(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = models.get_model(name, **options)
    return model


@pytest.fixture(scope="module")
def resnet34() -> nn.Module:
    return architecture("resnet34")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def resnet34_file(resnet34: nn.Module, folder: Path) -> Path:
    torch.save(random_weights(resnet34), folder / "resnet34.pth")
    return folder / "resnet34.pth"


@pytest.fixture(scope="module")
def resnet18_weights() -> Weights:
    return random_weights(architecture("resnet18"))


MODULE = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1000)
        self.out = nn.Linear(1000, 7)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

class Custom(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = Head()
        self.aside = None
"""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_r1_pickled_model_becomes_its_state_dict_without_its_class(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "custom_net.py").write_text(MODULE)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path / "source")
        torch.manual_seed(1)
        model = importlib.import_module("custom_net").Custom(models.squeezenet1_1())
        torch.save(model, tmp_path / "model.pkl", _use_new_zipfile_serialization=zipped)
    del sys.modules["custom_net"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "model.pkl", weights_only=False)

    document = inspected(tmp_path / "model.pkl")
    assert document["format"] == "torch-module"
    [found] = document["state_dicts"]
    assert [tensor["name"] for tensor in found["tensors"]] == list(model.state_dict())

    ckpt("convert", tmp_path / "model.pkl", "-o", tmp_path / "weights.pth")
    expected = model.state_dict()
    assert_torch_reads(tmp_path / "weights.pth", expected)
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert list(loaded) == list(expected)
    assert loaded._metadata == expected._metadata


def test_r12_tree_has_the_structure_with_sums(resnet34: nn.Module, resnet34_file: Path) -> None:
    lines = ckpt("inspect", "--tree", "--depth", "1", resnet34_file).splitlines()
    rows = {}
    for line in lines:
        words = line.replace("├──", "").replace("└──", "").split()
        if len(words) == 4 and words[0] in dict(resnet34.named_children()):
            rows[words[0]] = [int(word.replace(",", "")) for word in words[1:]]
    with_weights = {n: child for n, child in resnet34.named_children() if child.state_dict()}
    assert list(rows) == list(with_weights)
    for name, child in with_weights.items():
        tensors = child.state_dict().values()
        parameters = sum(parameter.numel() for parameter in child.parameters())
        assert rows[name] == [len(tensors), parameters, sum(t.nbytes for t in tensors)]


def test_r13_vgg_is_cut_down_to_a_backbone(tmp_path: Path) -> None:
    weights = random_weights(architecture("vgg16"), heavy="classifier")
    torch.save(weights, tmp_path / "vgg16.pth")
    features, backbone = tmp_path / "features.pth", tmp_path / "backbone.pth"
    ckpt("strip", tmp_path / "vgg16.pth", "--keep", "--prefix", "features", "-o", features)
    ckpt("rename", features, "--strip-prefix", "features.", "-o", backbone)

    loaded = torch.load(backbone, weights_only=True)
    assert len(loaded) == 26
    assert list(loaded)[-2:] == ["28.weight", "28.bias"]
    assert loaded["28.weight"].shape == (512, 512, 3, 3)
    target = nn.Sequential(*list(architecture("vgg16").features)[:-1])  # type: ignore[arg-type]
    target.load_state_dict(loaded, strict=True, assign=True)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, weights[f"features.{name}"])
    for path, about in target.state_dict()._metadata.items():  # type: ignore[attr-defined]
        assert loaded._metadata[path]["version"] == about["version"]


def test_r14_every_tensor_of_alexnet_is_listed(tmp_path: Path) -> None:
    model = architecture("alexnet")
    torch.save(random_weights(model, heavy="classifier"), tmp_path / "alexnet.pth")
    output = ckpt("inspect", tmp_path / "alexnet.pth")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    rows = [line for line in lines if line[:1].isdigit() and "float32" in line]
    assert len(rows) == 16
    for index, ((name, tensor), row) in enumerate(
        zip(model.state_dict().items(), rows, strict=True)
    ):
        assert row.startswith(f"{index} {name} {tuple(tensor.shape)} float32 {tensor.numel():,} ")
    assert rows[0].startswith("0 features.0.weight (64, 3, 11, 11) ")
    assert rows[-1].startswith("15 classifier.6.bias (1000,) ")


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "module.base_model."])
def test_r19_wrappers_names_come_and_go(
    prefix: str, tmp_path: Path, resnet18_weights: Weights
) -> None:
    plain, wrapped, back = (tmp_path / name for name in ("plain.pth", "wrapped.pth", "back.pth"))
    torch.save(resnet18_weights, plain)
    ckpt("rename", plain, "--add-prefix", prefix, "-o", wrapped)
    model: nn.Module = architecture("resnet18")
    for name in reversed(prefix.rstrip(".").split(".")):
        outer = nn.Module()
        setattr(outer, name, model)
        model = outer
    loaded = torch.load(wrapped, weights_only=True)
    inside = prefix.removesuffix(".")
    for path, about in model.state_dict()._metadata.items():  # type: ignore[attr-defined]
        if path.startswith(inside):
            assert loaded._metadata[path] == about
    model.load_state_dict(loaded, strict=True, assign=True)

    ckpt("rename", wrapped, "--strip-prefix", prefix, "-o", back)
    again = torch.load(back, weights_only=True)
    assert_same(again, resnet18_weights)
    assert dict(again._metadata).items() >= dict(resnet18_weights._metadata).items()  # type: ignore[attr-defined]


def test_r19_metadata_keeps_batch_norms_version(tmp_path: Path) -> None:
    """Without it torch would take ``num_batches_tracked`` for missing in an old file, silently."""
    model = nn.DataParallel(nn.Sequential(nn.BatchNorm1d(3)))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    ckpt("rename", tmp_path / "a.pth", "--strip-prefix", "module.", "-o", tmp_path / "b.pth")
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert loaded._metadata["0"] == {"version": 2}


def test_r20_a_segment_inside_of_names_is_removed_and_inserted(
    tmp_path: Path, resnet18_weights: Weights
) -> None:
    inside = OrderedDict(
        (name.replace("layer1.", "layer1.net."), tensor)
        for name, tensor in resnet18_weights.items()
    )
    torch.save(inside, tmp_path / "net.pth")
    ckpt("rename", tmp_path / "net.pth", "--replace", ".net", "", "-o", tmp_path / "flat.pth")
    assert_same(torch.load(tmp_path / "flat.pth", weights_only=True), OrderedDict(resnet18_weights))
    compared = ("match", tmp_path / "flat.pth", "--like", tmp_path / "net.pth", "--json")
    said = json.loads(ckpt(*compared, code=1))
    # Counters are not missing for torch where the file has no versions, as `inside` has none.
    counters = {name for name in inside if name.endswith("num_batches_tracked")}
    difference = set(inside) ^ set(resnet18_weights)
    assert set(said["missing_keys"] + said["unexpected_keys"]) == difference - counters
    ckpt(
        *("rename", tmp_path / "flat.pth", "--sub", r"^layer1\.", "layer1.net."),
        *("-o", tmp_path / "back.pth"),
    )
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), inside)


@pytest.fixture
def training_file(tmp_path: Path, resnet18_weights: Weights) -> tuple[Path, dict[str, Any]]:
    model = architecture("resnet18")
    model.load_state_dict(resnet18_weights, assign=True)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, momentum=0.9)  # type: ignore[union-attr]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoint = {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": resnet18_weights,
        "best_acc1": torch.tensor(69.76),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "train.pth.tar")
    return tmp_path / "train.pth.tar", checkpoint


def test_r21_the_state_dict_is_found_and_the_rest_kept(
    training_file: tuple[Path, dict[str, Any]], tmp_path: Path, resnet18_weights: Weights
) -> None:
    file, checkpoint = training_file
    [found] = inspected(file)["state_dicts"]
    assert found["path"] == "state_dict"
    out = tmp_path / "out.pth"
    ckpt("strip", file, "--prefix", "fc", "--at", "state_dict", "--optimizer", "keep", "-o", out)
    expected = checkpoint | {
        "state_dict": OrderedDict(
            (name, t) for name, t in resnet18_weights.items() if not name.startswith("fc.")
        )
    }
    loaded = torch.load(out, weights_only=True)
    assert list(loaded) == list(checkpoint)
    assert_same(dict(loaded["state_dict"]), dict(expected["state_dict"]))
    assert_same({**loaded, "state_dict": 0}, {**checkpoint, "state_dict": 0})


def test_r21_the_state_dict_is_written_alone(
    training_file: tuple[Path, dict[str, Any]], tmp_path: Path, resnet18_weights: Weights
) -> None:
    file, _ = training_file
    ckpt("convert", "--state-dict-only", file, "-o", tmp_path / "alone.pth")
    assert_torch_reads(tmp_path / "alone.pth", resnet18_weights)
    target = models.resnet18()
    target.load_state_dict(torch.load(tmp_path / "alone.pth"), strict=True)


def test_r25_stripped_head_is_what_torch_says_is_missing(
    resnet34_file: Path, tmp_path: Path
) -> None:
    ckpt("strip", resnet34_file, "--pattern", "fc", "-o", tmp_path / "b.pth")
    target = architecture("resnet34", num_classes=5)
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    told = target.load_state_dict(loaded, strict=False, assign=True)
    assert told.missing_keys == ["fc.weight", "fc.bias"]
    assert told.unexpected_keys == []
    original = torch.load(resnet34_file, weights_only=True)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, original[name])

    model = ("--model", "torchvision:resnet34", "--set", "fc.out_features=5")
    said = json.loads(ckpt("match", tmp_path / "b.pth", *model, "--json", code=1))
    assert said["missing_keys"] == told.missing_keys
    assert said["unexpected_keys"] == told.unexpected_keys
    assert said["mismatched_keys"] == []


def test_r26_only_parameters_are_listed(resnet34: nn.Module, resnet34_file: Path) -> None:
    names = ckpt("inspect", "--params-only", "--keys", resnet34_file).splitlines()
    assert names == [name for name, _ in resnet34.named_parameters()]
    assert len(names) == 110


def _legacy(weights: Weights, path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def _safetensors(weights: Weights, path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(dict(weights)))


WRITERS: dict[str, Callable[[Weights, Path], None]] = {
    "torch-zip": torch.save,
    "torch-legacy": _legacy,
    "safetensors": _safetensors,
}


@pytest.mark.parametrize("suffix", ["pth", "pt", "pkl", "pth.tar", "bin", "ckpt", "th", ""])
@pytest.mark.parametrize("kind", WRITERS)
def test_r29_the_name_says_nothing_about_the_format(kind: str, suffix: str, tmp_path: Path) -> None:
    weights: Weights = OrderedDict(random_weights(architecture("squeezenet1_1")))
    file = tmp_path / f"model.{suffix}".rstrip(".")
    WRITERS[kind](weights, file)
    document = inspected(file)
    assert document["format"] == kind
    assert {t["name"] for t in document["state_dicts"][0]["tensors"]} == set(weights)
    ckpt("convert", file, "-o", tmp_path / "out.pth")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert_same(dict(sorted(loaded.items())), dict(sorted(weights.items())))  # safetensors sorts
    edit = ("rename", file, "--replace", "features.", "", "-o", tmp_path / "renamed.pth")
    ckpt(*edit)
    renamed = torch.load(tmp_path / "renamed.pth", weights_only=True)
    wanted = [name.replace("features.", "") for name in weights]
    assert sorted(renamed) == sorted(wanted)
    assert kind == "safetensors" or list(renamed) == wanted  # safetensors sorts
