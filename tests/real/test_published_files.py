"""Files that others published are read as torch reads them, and written without losing a bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from published import (
    FILES,
    LIGHTNING,
    MEMBERS,
    TORCH_FILES,
    WITHOUT_MODEL,
    ZIP_FILES,
    as_module,
    canonical,
    is_module_stub,
    load,
    tensors_of,
)
from torch_checks import assert_same, quiet

import ckpt_surgery
from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.cli.main import cli
from ckpt_surgery.pickles import Dict


@pytest.fixture(scope="module")
def real(shared_dir: Path) -> Path:
    return shared_dir / "real"


def ckpt(*line: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    return done.stdout


def elements(tensor: Tensor) -> torch.Tensor:
    """The tensor that is described, of the bytes that it is said to have."""
    assert tensor.storage is not None
    data = bytearray(b"".join(map(bytes, tensor.storage.data.chunks())))
    dtype = getattr(torch, tensor.dtype.name)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)


def assert_is(described: Tensor, expected: torch.Tensor) -> None:
    assert described.shape == tuple(expected.shape)
    assert described.stride == expected.stride()
    assert described.offset == expected.storage_offset()
    assert f"torch.{described.dtype.name}" == str(expected.dtype)
    assert_same(elements(described), expected.detach())


def at(loaded: Any, path: str) -> Any:
    """What lies at a state dict's path in what torch loaded."""
    for key in path.split("/") if path else ():
        loaded = loaded[key]
    return as_module(loaded).state_dict() if is_module_stub(loaded) else loaded


def holder(weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A module whose state dict has these names and shapes, all zero."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, torch.zeros_like(tensor))
    return root


def test_every_published_file_is_tested(real: Path) -> None:
    there = {
        str(path.relative_to(real))
        for path in real.rglob("*")
        if path.is_file() and not path.stem.startswith(("LICENSE", "README"))
    }
    assert there == set(FILES) | set(MEMBERS)


@pytest.mark.parametrize("name", FILES)
def test_format_is_found_from_content(name: str, real: Path) -> None:
    assert json.loads(ckpt("inspect", "--json", real / name))["format"] == FILES[name]


@pytest.mark.parametrize("name", TORCH_FILES)
def test_description_is_what_torch_loads(name: str, real: Path) -> None:
    loaded = load(real / name)
    with ckpt_surgery.read(real / name) as checkpoint:
        for state_dict in checkpoint.state_dicts:
            theirs = at(loaded, state_dict.path)
            assert state_dict.names == list(theirs)
            for entry in state_dict.entries:
                assert entry.tensor is not None
                assert_is(entry.tensor, theirs[entry.name])
            metadata = getattr(theirs, "_metadata", None)
            assert list(state_dict.metadata or ()) == list(metadata or ())
        assert len(nodes_of(checkpoint)) == len(list(tensors_of(loaded)))


def nodes_of(checkpoint: Checkpoint) -> set[int]:
    """The identities of the nodes that rebuild the file's tensors; a parameter's and its data's."""
    return {id(tensor.node) for tensor in checkpoint.all_tensors}


@pytest.mark.parametrize("name", TORCH_FILES)
def test_converted_file_loads_as_the_same(name: str, real: Path, tmp_path: Path) -> None:
    ckpt("convert", real / name, "-o", tmp_path / "out.pth")
    before, after = at(load(real / name), ""), load(tmp_path / "out.pth")
    if not isinstance(before, Mapping):
        assert_same(after, before)
        return
    assert list(after) == list(before)
    for ours, theirs in zip(tensors_of(after), tensors_of(before), strict=True):
        assert_same(ours.detach(), theirs.detach())
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize(
    "name", [name for name in FILES if "new_pytorch" not in name and name not in WITHOUT_MODEL]
)
def test_state_dict_alone_loads_with_weights_only(name: str, real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    ckpt("convert", "--state-dict-only", real / name, "-o", out)
    found = torch.load(out, weights_only=True, map_location="cpu")
    assert_same(
        {key: tensor.clone() for key, tensor in sorted(found.items())},
        {key: tensor.detach().clone() for key, tensor in sorted(expected_weights(real / name))},
    )


# Where the weights are that another name than "state_dict" leads to.
PLACES = {"agilerl_dill_dqn.pt": "network_info/modules/actor_state_dict"}


def expected_weights(path: Path) -> list[tuple[str, torch.Tensor]]:
    """The model's weights, as the format's own library gives them."""
    match next((kind for name, kind in FILES.items() if path.match(name)), ""):
        case "safetensors":
            from safetensors.torch import load_file

            return list(load_file(path).items())
        case "torchscript":
            with quiet():
                return list(torch.jit.load(path, map_location="cpu").state_dict().items())
    loaded = at(load(path), PLACES.get(path.name, ""))
    return list(loaded.get("state_dict", loaded).items())


@pytest.mark.parametrize("name", [name for name, kind in FILES.items() if kind == "torchscript"])
def test_torchscript_is_in_the_order_of_its_state_dict(name: str, real: Path) -> None:
    with ckpt_surgery.read(real / name) as checkpoint:
        names = checkpoint.state_dicts[0].names
    assert names == [key for key, _ in expected_weights(real / name)]


@pytest.mark.parametrize("name", MEMBERS)
def test_checkpoint_in_an_archive_is_read_as_torch_reads_it(
    name: str, real: Path, tmp_path: Path
) -> None:
    member, kind = MEMBERS[name]
    shutil.unpack_archive(real / name, tmp_path / "in")
    (extracted,) = (tmp_path / "in").rglob(member)
    expected = load(extracted)
    file = f"{real / name}:{member}"
    assert json.loads(ckpt("inspect", "--json", file))["format"] == kind
    ckpt("convert", file, "-o", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert_same(found[key], tensor.detach())


@pytest.mark.parametrize("name", ZIP_FILES)
def test_unchanged_archive_is_the_same_file(name: str, real: Path, tmp_path: Path) -> None:
    out = tmp_path / Path(name).name
    ckpt("convert", real / name, "-o", out)
    assert hashlib.sha256(out.read_bytes()).digest() == (
        hashlib.sha256((real / name).read_bytes()).digest()
    )


@pytest.mark.parametrize(
    "name",
    [name for name in TORCH_FILES if "new_pytorch" not in name and name not in WITHOUT_MODEL],
)
def test_stripped_keys_are_what_torch_says_is_missing(
    name: str, real: Path, tmp_path: Path
) -> None:
    before = dict(expected_weights(real / name))
    segment = list(before)[-1].rpartition(".")[0]
    removed = [key for key in before if key.startswith(f"{segment}.")]
    assert 0 < len(removed) < len(before)
    ckpt("strip", real / name, "--prefix", segment, "-o", tmp_path / Path(name).name)
    after = dict(expected_weights(tmp_path / Path(name).name))
    target = holder(before)
    told = target.load_state_dict(after, strict=False)
    assert told.missing_keys == removed
    assert told.unexpected_keys == []
    for key, tensor in target.state_dict().items():
        if key not in removed:
            assert_same(tensor.contiguous(), before[key].detach().contiguous())


@pytest.mark.parametrize(
    "line",
    [
        ("rename", "--add-prefix", "outer."),
        ("strip", "--prefix", "predictor", "--optimizer", "keep"),
    ],
    ids=["rename", "strip"],
)
@pytest.mark.parametrize("name", LIGHTNING)
def test_what_lies_beside_the_weights_survives(
    name: str, line: tuple[str, ...], real: Path, tmp_path: Path
) -> None:
    """Hyper-parameters, callbacks, objects of classes that nobody has: node for node."""
    command, *options = line
    ckpt(command, real / name, *options, "-o", tmp_path / "out")
    with ckpt_surgery.read(real / name) as before, ckpt_surgery.read(tmp_path / "out") as after:
        assert isinstance(before.root, Dict)
        assert isinstance(after.root, Dict)
        assert len(before.root.items) == len(after.root.items) >= 4
        beside = 0
        for (key, old), (same_key, new) in zip(
            before.root.pairs(), after.root.pairs(), strict=True
        ):
            assert key == same_key
            if key != "state_dict":
                assert canonical(old) == canonical(new)
                beside += 1
        assert beside == len(before.root.items) // 2 - 1
        assert after.globals == before.globals


def test_an_optimizer_of_its_own_holds_no_model(real: Path) -> None:
    report = ckpt_surgery.inspect(real / "rl-trained-agents/sb3_ppo_policy.optimizer.pth")
    assert report.state_dicts == ()
    (optimizer,) = report.training[""].optimizers
    assert (optimizer.layout, optimizer.states) == ("Adam", 12)


def test_integer_parameters_are_those_of_their_optimizer(real: Path) -> None:
    """torch's optimizer of this file has a parameter for each entry, integers included."""
    report = ckpt_surgery.inspect(real / "pytorx/pytorx_integer_parameters.pth.tar")
    (optimizer,) = report.training["optimizer"].optimizers
    (state_dict,) = report.state_dicts
    assert len(optimizer.parameters) == len(state_dict.entries) == 48
    assert optimizer.certainty in {"order", "partial"}
