"""The legacy container, read as `torch.load` reads it, and every way in which it can be wrong."""

from __future__ import annotations

import io
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_oracle import assert_same_tensor, assert_same_tensors, bits, materialise, storage_bytes

from ckpt_surgery.checkpoint import Checkpoint, Storage
from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, SourceFile
from ckpt_surgery.formats.legacy import looks_like_legacy, read_legacy
from ckpt_surgery.formats.pickle_sequence import PickleSequence
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits, PersistentId, walk

MAGIC = 0x1950A86A20F9469CFC6C


class Reference:
    """Pickled as a persistent id."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Reference) else None


def dumps(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    LegacyPickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def reference(
    key: str = "7", numel: Any = 4, *, view: Any = None, kind: Any = torch.FloatStorage
) -> Reference:
    return Reference("storage", kind, key, "cpu", numel, view)


def tensor(storage: Reference, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    hooks: OrderedDict[str, Any] = OrderedDict()
    args = (storage, offset, size, stride, False, hooks)
    return Call(torch._utils._rebuild_tensor_v2, *args)


def legacy(
    root: Any, keys: Any, *storages: tuple[int, bytes], magic: Any = MAGIC, version: Any = 1001
) -> bytes:
    """A legacy file, each storage given as its element count and its bytes."""
    heads = [dumps(part) for part in (magic, version, {"little_endian": True}, root, keys)]
    return b"".join(heads) + b"".join(struct.pack("<q", n) + data for n, data in storages)


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def plain(**changes: Any) -> bytes:
    """A correct file of one tensor of four numbers, but for the `changes`."""
    parts = {"root": {"w": tensor(reference(), 0, (4,), (1,))}, "keys": ["7"], **changes}
    count = parts.pop("count", 4)
    data = parts.pop("data", FLOATS)
    return legacy(parts.pop("root"), parts.pop("keys"), (count, data), **parts)


def write(path: Path, data: bytes) -> SourceFile:
    path.write_bytes(data)
    return SourceFile.open(path)


def saved(path: Path, value: Any, protocol: int = 2) -> Checkpoint:
    torch.save(value, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    file = SourceFile.open(path)
    assert looks_like_legacy(file)
    return read_legacy(file)


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
    with SourceFile.open(path) as file:
        assert looks_like_legacy(file)
        checkpoint = read_legacy(file)
        assert_same_tensors(checkpoint, torch.load(path, map_location="cpu"))
        assert checkpoint.notes == ()


def test_locations_are_those_of_the_file(shared_dir: Path) -> None:
    path = shared_dir / "real" / "lpips" / "lpips_weights_v0.1_alex.pth"
    with read_legacy(SourceFile.open(path)) as checkpoint:
        assert {ours.device for _, ours in checkpoint.tensors} == {"cuda:0"}


# Views of storages, as torch 0.3.1 wrote them -------------------------------------------------


def view_file(*views: tuple[str, int, int], bare: bool = False) -> bytes:
    """A file of one storage of four numbers, and one value for each (key, offset, size)."""
    storages = [reference(view=view) for view in views]
    if bare:
        return legacy(storages, ["7"], (4, FLOATS))
    items = {
        f"w{index}": tensor(storage, 0, (view[2],), (1,))
        for index, (storage, view) in enumerate(zip(storages, views, strict=True))
    }
    return legacy(items, ["7"], (4, FLOATS))


@pytest.mark.parametrize(
    "views",
    [
        [("8", 0, 4)],
        [("8", 1, 2)],
        [("8", 1, 2), ("8", 1, 2)],
        [("8", 0, 2), ("9", 2, 2)],
        [("8", 0, 3), ("9", 1, 3)],
        [("8", 4, 0)],
    ],
)
def test_tensors_of_views_equal_what_torch_loads_and_share(
    tmp_path: Path, views: list[tuple[str, int, int]]
) -> None:
    checkpoint = read_legacy(write(tmp_path / "a.pt", view_file(*views)))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    assert len({id(ours.storage) for _, ours in checkpoint.tensors}) == 1
    assert all(
        ours.storage is not None and ours.storage.key == "7" for _, ours in checkpoint.tensors
    )


def test_a_view_and_its_root_share(tmp_path: Path) -> None:
    items = {
        "root": tensor(reference(), 0, (4,), (1,)),
        "view": tensor(reference(view=("8", 1, 3)), 1, (2,), (1,)),
    }
    checkpoint = read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    root, view = (ours for _, ours in checkpoint.tensors)
    assert root.storage is view.storage
    assert view.offset == 2


def test_tensors_of_the_first_versions_are_shifted_too(tmp_path: Path) -> None:
    storage = reference(view=("8", 1, 3))
    items = {"w": Call(torch._utils._rebuild_tensor, storage, 1, (2,), (1,))}
    checkpoint = read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))


def test_bare_views_are_the_bytes_that_torch_loads(tmp_path: Path) -> None:
    data = view_file(("8", 0, 1), ("9", 1, 3), ("9", 1, 3), ("10", 0, 4), bare=True)
    checkpoint = read_legacy(write(tmp_path / "a.pt", data))
    loaded = torch.load(tmp_path / "a.pt")
    assert isinstance(checkpoint.root, list)
    ours = [node.target for node in checkpoint.root]
    assert [target.data.read() for target in ours] == [
        bytes(storage._untyped_storage.tolist()) for storage in loaded
    ]
    assert [target.numel for target in ours] == [1, 3, 3, 4]
    assert ours[1] is ours[2]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (5, "a view of the storage is malformed"),
        (("8", 1), "a view of the storage is malformed"),
        ((8, 1, 2), "a view of the storage is malformed"),
        (("8", 1.0, 2), "a view of the storage is malformed"),
        (("8", 1, True), "a view of the storage is malformed"),
        (("8", -1, 2), "a view reaches outside the storage"),
        (("8", 1, -1), "a view reaches outside the storage"),
        (("8", 3, 2), "a view reaches outside the storage"),
        (("8", 2**63, 2**63), "a view reaches outside the storage"),
        (("7", 1, 2), "the storage is also a view of one"),
    ],
)
def test_a_wrong_view_is_refused(tmp_path: Path, view: Any, message: str) -> None:
    data = plain(root={"w": tensor(reference(view=view), 0, (1,), (1,))})
    with pytest.raises(DamagedFileError, match=message) as caught:
        read_legacy(write(tmp_path / "a.pt", data))
    assert caught.value.entry == "storage 7"


def test_one_key_for_two_views_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="references to a view of the storage differ"):
        read_legacy(write(tmp_path / "a.pt", view_file(("8", 0, 2), ("8", 1, 2))))


@pytest.mark.parametrize("arguments", [(), (0.5, (1,), (1,))])
def test_a_tensor_of_a_view_with_wrong_arguments_is_refused(
    tmp_path: Path, arguments: tuple[Any, ...]
) -> None:
    storage = reference(view=("8", 1, 2))
    items = {"w": Call(torch._utils._rebuild_tensor, storage, *arguments)}
    with pytest.raises(DamagedFileError):
        read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))


# Every way to be wrong ------------------------------------------------------------------------


def test_the_file_that_the_following_are_made_from_is_right(tmp_path: Path) -> None:
    checkpoint = read_legacy(write(tmp_path / "a.pt", plain()))
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
        read_legacy(write(tmp_path / "a.pt", plain(**changes)))


def test_a_missing_storage_is_refused_where_torch_invents_its_elements(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", plain(keys=[])[: -8 - len(FLOATS)])
    torch.load(tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match="the storage is missing") as caught:
        read_legacy(file)
    assert caught.value.entry == "storage 7"


def test_a_storage_of_an_enormous_size_is_refused(tmp_path: Path) -> None:
    data = plain(root=[reference(numel=2**60)], count=2**60)
    with pytest.raises(DamagedFileError, match="needs 4611686018427387904 bytes") as caught:
        read_legacy(write(tmp_path / "a.pt", data))
    assert caught.value.hint == "the file is truncated"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = plain()
    for end in range(len(data)):
        with pytest.raises(DamagedFileError):
            read_legacy(write(tmp_path / "a.pt", data[:end]))


def test_a_changed_byte_never_raises_anything_but_our_errors(tmp_path: Path) -> None:
    data = view_file(("8", 0, 3), ("9", 1, 3))
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_legacy(write(tmp_path / "a.pt", bytes(changed)))
        except CkptError:
            refused += 1
    assert 100 < refused < 600


def test_bytes_after_the_last_storage_are_noted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", plain() + b"more")
    checkpoint = read_legacy(file)
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    assert checkpoint.notes == ("4 bytes follow the last storage and are not read",)


@pytest.mark.parametrize("protocol", range(6))
def test_the_magic_number_is_known_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert looks_like_legacy(write(tmp_path / "a", pickle.dumps(MAGIC, protocol)))
    assert not looks_like_legacy(write(tmp_path / "b", pickle.dumps(MAGIC + 1, protocol)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\xff" * 99])
def test_other_content_is_not_taken_for_legacy(tmp_path: Path, data: bytes) -> None:
    assert not looks_like_legacy(write(tmp_path / "a", data))


def test_attacks_end_in_our_errors(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "hostile").iterdir())
    assert paths
    for path in paths:
        with SourceFile.open(path) as file:
            assert not looks_like_legacy(file)
            with pytest.raises(CkptError):
                read_legacy(file)


# Windows --------------------------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads."""
    sizes: list[int] = []
    read_at = SourceFile.read_at

    def counting(self: SourceFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(SourceFile, "read_at", counting)
    return sizes


def test_reading_never_reads_tensor_bytes(tmp_path: Path, bytes_read: list[int]) -> None:
    saved(tmp_path / "a.pt", {str(n): torch.zeros(1 << 20) for n in range(8)})
    assert sum(bytes_read) < 3 << 20
    assert len(bytes_read) < 20


def test_a_pickle_longer_than_the_first_window_is_read_whole(
    tmp_path: Path, bytes_read: list[int]
) -> None:
    value = {f"layer.{n}.weight": torch.full((2,), n) for n in range(6000)}
    value["text"] = "x" * (3 << 20)  # type: ignore[assignment]
    checkpoint = saved(tmp_path / "a.pt", {"state_dict": value})
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    assert max(bytes_read) > 3 << 20


def test_a_pickle_at_the_limit_is_read_and_one_above_is_not(tmp_path: Path) -> None:
    data = plain()
    longest = len(dumps({"w": tensor(reference(), 0, (4,), (1,))}))
    read_legacy(write(tmp_path / "a.pt", data), Limits(pickle_bytes=longest))
    with pytest.raises(LimitExceededError, match=f"longer than {longest - 1} bytes"):
        read_legacy(write(tmp_path / "a.pt", data), Limits(pickle_bytes=longest - 1))


def test_an_error_says_where_in_the_file_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"head" + pickle.dumps([], 2) + b"\x80\x02\xff.")
    sequence = PickleSequence(ByteRange(file, 4, file.size - 4), DEFAULT_LIMITS)
    sequence.pickle()
    with pytest.raises(DamagedFileError) as caught:
        sequence.pickle()
    assert caught.value.entry == f"byte {file.size - 2}"


@pytest.mark.parametrize("window", [*range(1, 40), 500])
def test_the_window_changes_nothing(tmp_path: Path, window: int) -> None:
    values = [{"a": [1, 2, 3]}, "text", 7, ["x" * 100]]
    parts = [pickle.dumps(value, 2) + struct.pack("<q", n) for n, value in enumerate(values)]
    file = write(tmp_path / "a", b"head" + b"".join(parts) + b"tail")
    part = ByteRange(file, 4, file.size - 8)
    sequence = PickleSequence(part, DEFAULT_LIMITS, window=window)
    for number in range(len(values)):
        sequence.pickle()
        assert sequence.unpack("<q") == (number,)
    assert sequence.remaining == 0
    with pytest.raises(DamagedFileError, match="ends inside a pickle"):
        sequence.pickle()
    with pytest.raises(DamagedFileError, match="ends inside a header"):
        sequence.unpack("<q")


def test_a_described_file_can_be_described_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", view_file(("8", 1, 2)))
    first, second = read_legacy(file), read_legacy(file)
    for (name, one), (same_name, other) in zip(first.tensors, second.tensors, strict=True):
        assert (name, one.shape, one.offset) == (same_name, other.shape, other.offset)
        assert_same_tensor(one, materialise(other))
        assert bits(materialise(one)) == FLOATS[4:12]
