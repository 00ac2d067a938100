"""Safetensors, read as its reference implementation reads it, and every way it can be wrong."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch_oracle import assert_same_tensor, assert_same_tensors

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats.safetensors import _looks_like_safetensors, _read_safetensors
from ckpt_surgery.pickles import Limits

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
]


def of_dtype(name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    return (raw % 2 if name == "bool" else raw).view(dtype).reshape(2, 3)


def write(path: Path, header: Any, data: bytes = b"", *, nbytes: int | None = None) -> FileSource:
    """A file of this header, given as bytes or as what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if nbytes is None else nbytes
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return FileSource.open(path)


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def test_every_dtype_equals_what_safetensors_loads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: of_dtype(name) for name in DTYPES}, path)
    file = FileSource.open(path)
    assert _looks_like_safetensors(file)
    checkpoint = _read_safetensors(file)
    assert checkpoint.format == "safetensors"
    assert checkpoint.root is None
    assert checkpoint.others == ()
    assert_same_tensors(checkpoint, safetensors.torch.load_file(path))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 4, 1), (2, 3, 4)])
def test_every_shape_equals_what_safetensors_loads(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"": torch.rand(shape)}, path)
    checkpoint = _read_safetensors(FileSource.open(path))
    ((name, ours),) = checkpoint.tensors
    assert name == ""
    assert ours.is_contiguous
    assert_same_tensor(ours, safetensors.torch.load_file(path)[""])


def test_four_bit_elements_are_counted_in_pairs_as_torch_does(tmp_path: Path) -> None:
    file = write(tmp_path / "a", one("F4", [3, 4], [0, 6]), bytes(range(6)))
    ((_, ours),) = _read_safetensors(file).tensors
    assert ours.shape == (3, 2)
    assert_same_tensor(ours, safetensors.torch.load_file(tmp_path / "a")["w"])


def test_the_order_is_that_of_the_data(tmp_path: Path) -> None:
    names = [f"layer{n}" for n in range(40)]
    shuffled = random.Random(1).sample(names, len(names))
    header = {
        name: {
            "dtype": "I8",
            "shape": [1],
            "data_offsets": [shuffled.index(name), shuffled.index(name) + 1],
        }
        for name in names
    }
    checkpoint = _read_safetensors(write(tmp_path / "a", header, bytes(range(40))))
    assert checkpoint.state_dicts[0].names == shuffled
    assert_same_tensors(checkpoint, safetensors.torch.load_file(tmp_path / "a"))


def test_no_two_tensors_share_a_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.zeros(2)}, path)
    storages = [ours.storage for _, ours in _read_safetensors(FileSource.open(path)).tensors]
    assert [s.nbytes for s in storages if s is not None] == [12, 8]
    assert [s.key for s in storages if s is not None] == ["a", "b"]


def test_metadata_is_an_entry_beside_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"format": "pt", "note": "é"})
    (other,) = _read_safetensors(FileSource.open(path)).others
    assert (other.path, other.type) == ("__metadata__", "dict")
    assert other.value == {"format": "pt", "note": "é"}


def test_a_published_file_equals_what_safetensors_loads(shared_dir: Path) -> None:
    path = shared_dir / "real" / "silero-vad" / "src_silero_vad_data_silero_vad_16k.safetensors"
    with FileSource.open(path) as file:
        assert _looks_like_safetensors(file)
        assert_same_tensors(_read_safetensors(file), safetensors.torch.load_file(path))


@pytest.mark.parametrize(
    "header", [b"{}", b"{}   ", b"{}\n\t", b'{"__metadata__":null}', b'{"__metadata__":{}}']
)
def test_a_file_without_tensors_is_read(tmp_path: Path, header: bytes) -> None:
    checkpoint = _read_safetensors(write(tmp_path / "a", header))
    assert safetensors.torch.load_file(tmp_path / "a") == {}
    assert checkpoint.state_dicts[0].entries == ()


def test_reading_never_reads_tensor_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a", one(shape=[1 << 18], offsets=[0, 1 << 20]), bytes(1 << 20))
    read_at, sizes = FileSource.read_at, []

    def counting(self: FileSource, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", counting)
    _read_safetensors(file)
    assert sum(sizes) == file.size - (1 << 20)


# Every way to be wrong: what the reference reader refuses is refused here ---------------------

WRONG_TENSORS = [
    (one(dtype="F31"), "unknown element type 'F31'"),
    (one(dtype="f32"), "unknown element type 'f32'"),
    (one(dtype=32), "unknown element type '32'"),
    (one(dtype=None), "unknown element type 'None'"),
    (one(dtype=["F32"]), "unknown element type"),
    (one(shape=[3]), "has 8 bytes where 12 are expected"),
    (one(shape=[]), "has 8 bytes where 4 are expected"),
    (one(shape=[2, 0]), "has 8 bytes where 0 are expected"),
    (one(shape=[2**40, 2**40]), "has 8 bytes where"),
    (one(shape=[-2]), "the shape is not a list of sizes"),
    (one(shape=[2.0]), "the shape is not a list of sizes"),
    (one(shape=["2"]), "the shape is not a list of sizes"),
    (one(shape=[True, 2]), "the shape is not a list of sizes"),
    (one(shape=2), "the shape is not a list of sizes"),
    (one(shape="2"), "the shape is not a list of sizes"),
    (one(shape=[2**64]), "the shape is not a list of sizes"),
    (one(offsets=[0]), "the data offsets are not a begin and an end"),
    (one(offsets=[0, 8, 8]), "the data offsets are not a begin and an end"),
    (one(offsets=[8, 0]), "the data offsets are not a begin and an end"),
    (one(offsets=[-8, 0]), "the data offsets are not a begin and an end"),
    (one(offsets=[0, 8.0]), "the data offsets are not a begin and an end"),
    (one(offsets=[0, 2**64]), "the data offsets are not a begin and an end"),
    (one(offsets={"begin": 0}), "the data offsets are not a begin and an end"),
    (one(offsets=[0, 4]), "has 4 bytes where 8 are expected"),
    (one(shape=[-0.0]), "the shape is not a list of sizes"),
    (one("F4", [3], [0, 2]), "3 elements of 'F4' end inside a byte"),
    (one("F4", [], [0, 0]), "1 elements of 'F4' end inside a byte"),
    (one("F6_E3M2", [3], [0, 2]), "3 elements of 'F6_E3M2' end inside a byte"),
    (one("F6_E2M3", [4], [0, 4]), "has 4 bytes where 3 are expected"),
    ({"w": 5}, "has other fields than dtype, shape and data_offsets"),
    ({"w": []}, "has other fields than dtype, shape and data_offsets"),
    ({"w": {"dtype": "F32", "shape": [2]}}, "has other fields than"),
]


@pytest.mark.parametrize(("header", "message"), WRONG_TENSORS)
def test_a_wrong_tensor_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    file = write(tmp_path / "a", header, bytes(8))
    with pytest.raises(DamagedFileError, match=message) as caught:
        _read_safetensors(file)
    assert caught.value.entry == "tensor 'w'"
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the reference says
        safetensors.torch.load_file(tmp_path / "a")


@pytest.mark.parametrize("place", ["shape", "data_offsets"])
def test_minus_zero_is_no_size(tmp_path: Path, place: str) -> None:
    text = json.dumps(one(shape=[0], offsets=[0, 0])).replace(f'"{place}": [0', f'"{place}": [-0')
    file = write(tmp_path / "a", text.encode())
    with pytest.raises(DamagedFileError, match=r"not a list of sizes|not a begin and an end"):
        _read_safetensors(file)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("code", "shape", "nbytes", "name"),
    [
        ("F6_E2M3", [4], 3, "float6_e2m3fn"),
        ("F6_E3M2", [2, 4], 6, "float6_e3m2fn"),
        ("F4", [2, 3], 3, "float4_e2m1fn"),
        ("F4", [4, 1], 2, "float4_e2m1fn"),
    ],
)
def test_a_type_that_torch_lacks_is_described(
    tmp_path: Path, code: str, shape: list[int], nbytes: int, name: str
) -> None:
    file = write(tmp_path / "a", one(code, shape, [0, nbytes]), bytes(nbytes))
    ((_, tensor),) = _read_safetensors(file).tensors
    assert (tensor.dtype.name, list(tensor.shape), tensor.nbytes) == (name, shape, nbytes)
    assert not tensor.dtype.in_torch


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{}", "no multiple of 8"),
        (b"{}    \n\t", "other characters than spaces"),
        (b"{}      ", ""),
    ],
)
def test_leniencies_of_the_reference_reader_are_said(
    tmp_path: Path, header: bytes, said: str
) -> None:
    notes = _read_safetensors(write(tmp_path / "a", header)).notes
    assert [said in note for note in notes] == ([True] if said else [])


DEEP = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
WRONG_HEADERS = [
    (b"", "the header does not begin with '{'"),
    (b"[]", "the header does not begin with '{'"),
    (b"\xff\xfe", "the header does not begin with '{'"),
    (b'{"\xff":1}', "the header is not UTF-8"),
    (b'{"w"', "the header is not valid"),
    (b"{}{}", "the header is not valid: extra data"),
    (b"{}\0", "the header is not valid"),
    (b'{"w":NaN}', "'nan' is not json"),
    (b'{"w":-Infinity}', "'-infinity' is not json"),
    (b'{"w":' + b"9" * 5000 + b"}", "the header is not valid"),
    (b'{"w":{},"w":{}}', "a name stands twice in one object"),
    (b'{"w":{"dtype":"F32","dtype":"I32"}}', "a name stands twice in one object"),
    (b'{"\\ud800":{}}', "a string holds a lone surrogate"),
    (b'{"__metadata__":{"a":"\\udc00"}}', "a string holds a lone surrogate"),
    (b'{"__metadata__":{"a":1}}', "is not a mapping of text to text"),
    (b'{"__metadata__":"a"}', "is not a mapping of text to text"),
    (b'{"__metadata__":["a"]}', "is not a mapping of text to text"),
    (DEEP, "the header is nested too deeply"),
]


@pytest.mark.parametrize(("header", "message"), WRONG_HEADERS)
def test_a_wrong_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    file = write(tmp_path / "a", header)
    with pytest.raises(DamagedFileError, match=message):
        _read_safetensors(file)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the reference says
        safetensors.torch.load_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (one(offsets=[4, 12]), bytes(12), "the data leaves a hole before it"),
        (
            {**one(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}},
            bytes(20),
            "the data leaves a hole before it",
        ),
        (
            {**one(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
            bytes(12),
            "the data overlaps another tensor",
        ),
        (
            {**one(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            bytes(8),
            "the data overlaps another tensor",
        ),
        (one(), bytes(7), "the tensors take 8 bytes, but the file holds 7"),
        (one(), bytes(9), "1 bytes follow the last tensor"),
        ({}, bytes(1), "1 bytes follow the last tensor"),
    ],
)
def test_data_with_a_hole_or_an_overlap_is_refused(
    tmp_path: Path, header: Any, data: bytes, message: str
) -> None:
    file = write(tmp_path / "a", header, data)
    with pytest.raises(DamagedFileError, match=message):
        _read_safetensors(file)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"__metadata__":{"a":"1","a":"2"}}', "a name stands twice in one object"),
        (json.dumps(one(extra=1)).encode(), "has other fields than"),
        (json.dumps(one(shape=[2] + [1] * 1000)).encode(), "the shape is not a list of sizes"),
    ],
)
def test_leniencies_of_the_reference_reader_are_refused(
    tmp_path: Path, header: bytes, message: str
) -> None:
    file = write(tmp_path / "a", header, bytes(8) if b"dtype" in header else b"")
    safetensors.torch.load_file(tmp_path / "a")
    with pytest.raises(DamagedFileError, match=message):
        _read_safetensors(file)


def test_a_header_at_the_limit_is_read_and_one_above_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "a", one(), bytes(8))
    longest = file.size - 16
    assert _read_safetensors(file, Limits(pickle_bytes=longest)).state_dicts[0].names == ["w"]
    with pytest.raises(LimitExceededError, match=f"more than {longest - 1}"):
        _read_safetensors(file, Limits(pickle_bytes=longest - 1))


def test_a_header_larger_than_the_format_allows_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError, match="more than 100000000"):
        _read_safetensors(write(tmp_path / "a", b"{}", nbytes=100_000_001))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="the header has 3 bytes, but only 2 are left"):
        _read_safetensors(write(tmp_path / "a", b"{}", nbytes=3))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", one(), bytes(8))
    data = (tmp_path / "a").read_bytes()
    for end in range(len(data)):
        (tmp_path / "b").write_bytes(data[:end])
        with pytest.raises(DamagedFileError):
            _read_safetensors(FileSource.open(tmp_path / "b"))


def test_a_changed_byte_never_raises_anything_but_our_errors(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, **one()}
    write(tmp_path / "a", header, bytes(8))
    data = (tmp_path / "a").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "b").write_bytes(changed)
        try:
            _read_safetensors(FileSource.open(tmp_path / "b"))
        except CkptError:
            refused += 1
    assert 300 < refused < 600


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + bytes(7),
        b"\x02" + bytes(7) + b"[]",
        b"\xff" * 8 + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        b"PK\x03\x04" + bytes(20),
    ],
)
def test_other_content_is_not_taken_for_safetensors(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert not _looks_like_safetensors(FileSource.open(tmp_path / "a"))


def test_attacks_end_in_our_errors(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "hostile").iterdir()):
        with FileSource.open(path) as file:
            assert not _looks_like_safetensors(file)
            with pytest.raises(CkptError):
                _read_safetensors(file)
