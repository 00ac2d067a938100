"""The legacy container, read as `torch.load` reads it, and every way in which it can be wrong."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from legacy_files import (
    FLOATS,
    MAGIC,
    THROWN_AWAY,
    Raw,
    Reference,
    dumps,
    plain,
    reference,
    tensor,
    view_file,
    write,
)
from torch_oracle import assert_same_tensors, storage_bytes

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import CkptError, DamagedFileError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats.torch_legacy import _looks_like_legacy, _read_legacy
from ckpt_surgery.pickles import PersistentId, walk


def saved(path: Path, value: Any, protocol: int = 2) -> Checkpoint:
    torch.save(value, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    file = FileSource.open(path)
    assert _looks_like_legacy(file)
    return _read_legacy(file)


def training_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LSTM(4, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "ema": {name: value * 2 for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }


def strided() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "column": base[:, 3],
        "stepped": base[::2, 1::3],
        "expanded": base[0, :1].expand(5),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]),
    }


DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
NEWER_DTYPES = [
    "uint16",
    "uint32",
    "uint64",
    "complex32",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "bits8",
]


def of_dtype(name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    raw = torch.arange(12 * dtype.itemsize, dtype=torch.uint8)
    return (raw % 2 if name == "bool" else raw).view(dtype).reshape(3, 4)


@pytest.mark.parametrize("make", [training_state, strided])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_equals_what_torch_loads(tmp_path: Path, make: Any, protocol: int) -> None:
    checkpoint = saved(tmp_path / "a.pt", make(), protocol)
    assert checkpoint.format == "torch-legacy"
    assert checkpoint.notes == ()
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt", weights_only=False))


def test_every_dtype_equals_what_torch_loads(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", {name: of_dtype(name) for name in DTYPES})
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))


def test_dtypes_that_torch_cannot_load_from_this_format_are_read(tmp_path: Path) -> None:
    original = {name: of_dtype(name) for name in NEWER_DTYPES}
    checkpoint = saved(tmp_path / "a.pt", original)
    with pytest.raises(AttributeError, match="no attribute 'dtype'"):
        torch.load(tmp_path / "a.pt")
    assert_same_tensors(checkpoint, original)
    assert all(t.storage is not None and t.storage.untyped for _, t in checkpoint.tensors)


def test_an_untyped_storage_counts_bytes(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pt", [torch.arange(3.0).untyped_storage()])
    (node,) = [n for n in walk(checkpoint.root) if isinstance(n, PersistentId)]
    assert isinstance(node.target, Storage)
    assert node.target.untyped
    assert node.target.numel == 12


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage is")
def test_a_quantised_tensor_equals_what_torch_loads(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
    checkpoint = saved(tmp_path / "a.pt", {"q": quantised})
    ((_, ours),) = checkpoint.tensors
    loaded = torch.load(tmp_path / "a.pt")["q"].int_repr()
    assert storage_bytes(ours) == loaded.numpy().tobytes()


def test_tensors_of_one_storage_share_it(tmp_path: Path) -> None:
    weight = torch.rand(6)
    checkpoint = saved(tmp_path / "a.pt", {"a": weight, "b": weight[2:], "c": weight.clone()})
    a, b, c = (ours.storage for _, ours in checkpoint.tensors)
    assert a is b
    assert a is not c


def test_an_empty_storage_may_have_two_types(tmp_path: Path) -> None:
    # torch.save allows it too: test_save_different_dtype_unallocated of torch's own tests
    empty = torch.tensor([], dtype=torch.float32)
    checkpoint = saved(tmp_path / "a.pt", {"a": empty, "b": empty.view(torch.int64)})
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))


def test_a_module_keeps_the_reference_to_its_class_and_source(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    checkpoint = saved(tmp_path / "a.pt", model)
    classes = [
        node
        for node in walk(checkpoint.root)
        if isinstance(node, PersistentId) and isinstance(node.pid, tuple) and node.target is None
    ]
    assert [node.pid[1].qualified for node in classes] == [  # type: ignore[index]
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.batchnorm.BatchNorm1d",
    ]
    assert all("class" in node.pid[3] for node in classes)  # type: ignore[index]
    assert checkpoint.format == "torch-module"
    assert_same_tensors(checkpoint, model.state_dict())


REAL = (
    "pytorch_resnet_cifar10/resnet20-12fca82f.th",
    "pytorch_resnet_cifar10/resnet32-d509ac18.th",
    "lpips/lpips_weights_v0.1_alex.pth",
    "lpips/lpips_weights_v0.1_squeeze.pth",
    "lpips/lpips_weights_v0.1_vgg.pth",
    "facenet-pytorch/data_onet.pt",
    "facenet-pytorch/data_rnet.pt",
    "picklescan/tests_data_pytorch_model.bin",
)


@pytest.mark.parametrize("name", REAL)
def test_published_files_equal_what_torch_loads(shared_dir: Path, name: str) -> None:
    path = shared_dir / "real" / name
    with FileSource.open(path) as file:
        assert _looks_like_legacy(file)
        checkpoint = _read_legacy(file)
        assert_same_tensors(checkpoint, torch.load(path, map_location="cpu"))
        assert checkpoint.notes == ()


def test_locations_are_those_of_the_file(shared_dir: Path) -> None:
    path = shared_dir / "real" / "lpips" / "lpips_weights_v0.1_alex.pth"
    with _read_legacy(FileSource.open(path)) as checkpoint:
        assert {ours.device for _, ours in checkpoint.tensors} == {"cuda:0"}


# Every way to be wrong ------------------------------------------------------------------------


def test_the_file_that_the_following_are_made_from_is_right(tmp_path: Path) -> None:
    checkpoint = _read_legacy(write(tmp_path / "a.pt", plain()))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": MAGIC + 1}, "the magic number is not 119547037146038801333356"),
        ({"magic": [MAGIC]}, "the magic number is not"),
        ({"version": 1000}, "the protocol is not 1001"),
        ({"version": 1001.0}, "the protocol is not 1001"),
        ({"keys": ("7",)}, "the storage keys are not a list of text"),
        ({"keys": [7]}, "the storage keys are not a list of text"),
        ({"keys": []}, "the storage is missing"),
        ({"keys": ["8"]}, "nothing refers to the storage"),
        ({"keys": ["7", "8"]}, "nothing refers to the storage"),
        ({"keys": ["7", "7"]}, "the storage is listed twice"),
        ({"count": 3}, "the storage has 3 elements where 4 are expected"),
        ({"count": -1}, "the storage has -1 elements where 4 are expected"),
        ({"count": 2**62}, "elements where 4 are expected"),
        ({"data": FLOATS[:-1]}, "needs 16 bytes, but only 15 are left"),
        ({"root": [reference(), reference(numel=3)]}, "references differ in the storage's size"),
        (
            {"root": [reference(), reference(kind=torch.IntStorage)]},
            "references differ in the storage's size or type",
        ),
        (
            {"root": [reference(kind=torch.ByteStorage), reference(kind=torch.UntypedStorage)]},
            "references differ in the storage's size or type",
        ),
        ({"root": [reference(numel=0), reference()]}, "references differ in the storage's size"),
        ({"root": [reference(numel=-4)]}, "count is not a number"),
        ({"root": [reference(numel=4.0)]}, "count is not a number"),
        ({"root": [reference(kind=OrderedDict)]}, "unknown storage class"),
        (
            {"root": [Reference("storage", torch.FloatStorage, "7", "cpu", 4)]},
            "persistent id has not 6 parts",
        ),
        (
            {"root": [Reference("storage", torch.FloatStorage, "7", "cpu", 4, None, None)]},
            "persistent id has not 6 parts",
        ),
        ({"root": [Reference("elsewhere", 1)]}, "names neither a storage nor a module"),
        ({"root": [Reference()]}, "names neither a storage nor a module"),
        ({"root": {"w": tensor(reference(), 1, (4,), (1,))}}, "reaches to byte 20"),
    ],
)
def test_a_contradiction_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        _read_legacy(write(tmp_path / "a.pt", plain(**changes)))


def test_a_missing_storage_is_refused_where_torch_invents_its_elements(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", plain(keys=[])[: -8 - len(FLOATS)])
    torch.load(tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match="the storage is missing") as caught:
        _read_legacy(file)
    assert caught.value.entry == "storage 7"


def test_a_storage_of_an_enormous_size_is_refused(tmp_path: Path) -> None:
    data = plain(root=[reference(numel=2**60)], count=2**60)
    with pytest.raises(DamagedFileError, match="needs 4611686018427387904 bytes") as caught:
        _read_legacy(write(tmp_path / "a.pt", data))
    assert caught.value.hint == "the file is truncated"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = plain()
    for end in range(len(data)):
        with pytest.raises(DamagedFileError):
            _read_legacy(write(tmp_path / "a.pt", data[:end]))


def test_a_changed_byte_never_raises_anything_but_our_errors(tmp_path: Path) -> None:
    data = view_file(("8", 0, 3), ("9", 1, 3))
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] = chance.randrange(256)
        try:
            _read_legacy(write(tmp_path / "a.pt", bytes(changed)))
        except CkptError:
            refused += 1
    assert 100 < refused < 600


def test_bytes_after_the_last_storage_are_noted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", plain() + b"more")
    checkpoint = _read_legacy(file)
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    assert checkpoint.unwritable == "4 bytes follow its last storage"
    assert checkpoint.notes == (f"an edit would lose something: {checkpoint.unwritable}",)


@pytest.mark.parametrize("part", ["root", "keys", "system"])
def test_a_call_that_leaves_no_trace_in_the_graph_is_reported(tmp_path: Path, part: str) -> None:
    values = {"root": {"w": tensor(reference(), 0, (4,), (1,))}, "keys": ["7"], "system": {}}
    raw = Raw(THROWN_AWAY + dumps(values[part])[2:])
    honest = _read_legacy(write(tmp_path / "a.pt", plain()))
    hostile = _read_legacy(write(tmp_path / "b.pt", plain(**{part: raw})))
    assert honest.unwritable == ""
    assert hostile.unwritable == {
        "root": "a pickle calls 'posix.system' and throws the result away"
    }.get(part, "a pickle beside its object's names classes or functions")
    assert set(hostile.globals) - set(honest.globals) == {"posix.system"}


@pytest.mark.parametrize("protocol", range(6))
def test_the_magic_number_is_known_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert _looks_like_legacy(write(tmp_path / "a", pickle.dumps(MAGIC, protocol)))
    assert not _looks_like_legacy(write(tmp_path / "b", pickle.dumps(MAGIC + 1, protocol)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\xff" * 99])
def test_other_content_is_not_taken_for_legacy(tmp_path: Path, data: bytes) -> None:
    assert not _looks_like_legacy(write(tmp_path / "a", data))


def test_attacks_end_in_our_errors(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "hostile").iterdir())
    assert paths
    for path in paths:
        with FileSource.open(path) as file:
            assert not _looks_like_legacy(file)
            with pytest.raises(CkptError):
                _read_legacy(file)
