"""The cases of the safetensors project's own tests (safetensors/src/tensor.rs), one by one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch_checks import load, quiet, save

from ckpt_surgery import AddPrefix, Output, StripPrefix, convert, read, rename
from ckpt_surgery.errors import (
    DamagedFileError,
    LimitExceededError,
    LossyEditError,
    ReadError,
    UnknownFormatError,
)
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.formats.safetensors_header import MAX_HEADER_BYTES

# A small but valid file: {"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}
TEST = b'{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}'


def raw_file(path: Path, header: bytes, data: bytes = b"", *, nbytes: int | None = None) -> Path:
    size = len(header) if nbytes is None else nbytes
    path.write_bytes(struct.pack("<Q", size) + header + data)
    return path


def described(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    with read(path) as checkpoint:
        return [(name, t.dtype.name, t.shape) for name, t in checkpoint.tensors]


def refused(path: Path, error: type[ReadError], said: str) -> None:
    """We refuse the file, and so does the library."""
    with pytest.raises(error, match=said):
        read(path)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def written(value: dict[str, torch.Tensor], file: Path) -> bytes:
    with quiet():
        convert(save(value, file.with_name("in.pth")), Output(file, force=True))
    return file.read_bytes()


def test_serialization(file: Path) -> None:
    value = torch.arange(6.0).reshape(1, 2, 3)
    header = b'{"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}}'
    data = struct.pack("<6f", *range(6))
    assert written({"attn.0": value}, file) == struct.pack("<Q", 64) + header + data


def test_serialization_fp4(file: Path) -> None:
    packed = torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(1, 1)
    header = b'{"attn.0":{"dtype":"F4","shape":[1,2],"data_offsets":[0,1]}}    '
    assert written({"attn.0": packed}, file) == struct.pack("<Q", 64) + header + b"\0"


def test_serialization_fp4_misaligned(file: Path) -> None:
    raw_file(file, b'{"a":{"dtype":"F4","shape":[1,3],"data_offsets":[0,1]}}', b"\0")
    refused(file, DamagedFileError, "end inside a byte")


def test_serialization_fp4_invalid(file: Path) -> None:
    raw_file(file, b'{"a":{"dtype":"F4","shape":[1,2],"data_offsets":[0,2]}}', b"\0\0")
    refused(file, DamagedFileError, "has 2 bytes where 1 are expected")


def test_empty(file: Path) -> None:
    assert written(torch.nn.Module().state_dict(), file) == b"\x08" + bytes(7) + b"{}      "
    options = {"framework": "pt"}
    safetensors.torch.save_file({}, file, options)
    out = file.with_name("o.safetensors")
    convert(file, out)
    header = b'{"__metadata__":{"framework":"pt"}}     '
    assert out.read_bytes() == struct.pack("<Q", 40) + header


def test_serialization_forced_alignment(file: Path) -> None:
    """The name has a length that makes padding necessary."""
    header = b'{"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}}       '
    data = struct.pack("<6f", *range(6))
    value = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert written({"attn0": value}, file) == struct.pack("<Q", 72) + header + data


def test_slicing(file: Path) -> None:
    value = torch.arange(6.0).reshape(1, 2, 3)
    written({"attn.0": value}, file)
    with safe_open(file, "pt") as opened:
        part = opened.get_slice("attn.0")
        assert torch.equal(part[:, :1], value[:, :1])
        assert torch.equal(part[..., :1], value[..., :1])


def test_deserialization(file: Path) -> None:
    assert described(raw_file(file, TEST, bytes(16))) == [("test", "int32", (2, 2))]


@pytest.mark.parametrize("count", [10, 1000])
def test_lifetimes_and_offset_order(file: Path, count: int) -> None:
    """Tensors come in the order of their data, which need not be that of the header."""
    names = [f"{n}" for n in range(count)]
    header = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [count - 1 - n, count - n]}
        for n, name in enumerate(names)
    }
    raw_file(file, json.dumps(header).encode(), bytes(count))
    assert [name for name, _, _ in described(file)] == names[::-1]


def test_json_attack(file: Path) -> None:
    """Ten tensors that share the same bytes: a small file that would fill the memory."""
    info = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    raw_file(file, json.dumps({f"weight_{n}": info for n in range(10)}).encode(), bytes(16))
    refused(file, DamagedFileError, "overlaps another tensor")


def test_metadata_incomplete_buffer(file: Path) -> None:
    raw_file(file, TEST, bytes(16) + b"extra_bogus_data_for_polyglot_file")
    refused(file, DamagedFileError, "34 bytes follow the last tensor")
    header = b'{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[4,20]}}'
    refused(raw_file(file, header, bytes(20)), DamagedFileError, "leaves a hole")


def test_header_too_large(file: Path) -> None:
    raw_file(file, TEST, bytes(16), nbytes=100_000_001)
    with pytest.raises(UnknownFormatError):
        read(file)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(file)


def test_header_too_small(file: Path) -> None:
    file.write_bytes(b"")
    refused(file, UnknownFormatError, "is empty")
    file.write_bytes(bytes(7))
    refused(file, DamagedFileError, "7 bytes are too few")


def test_invalid_header_length(file: Path) -> None:
    raw_file(file, b"{", nbytes=60)
    refused(file, DamagedFileError, "only 1 are left")


def test_invalid_header_non_utf8(file: Path) -> None:
    refused(raw_file(file, b"{\xff"), DamagedFileError, "not UTF-8")
    refused(raw_file(file, b"\xff"), UnknownFormatError, "not a checkpoint")


def test_invalid_header_not_json(file: Path) -> None:
    refused(raw_file(file, b"{"), DamagedFileError, "not valid")


def test_zero_sized_tensor(file: Path) -> None:
    header = b'{"test":{"dtype":"I32","shape":[2,0],"data_offsets":[0,0]}}'
    assert described(raw_file(file, header)) == [("test", "int32", (2, 0))]
    convert(file, file.with_name("o.pth"))
    assert load(file.with_name("o.pth"))["test"].shape == (2, 0)


def test_invalid_info(file: Path) -> None:
    header = b'{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,4]}}'
    refused(raw_file(file, header, bytes(4)), DamagedFileError, "has 4 bytes where 16")


@pytest.mark.parametrize(
    "info",
    [
        {"dtype": "I32", "shape": [2, 2**64 - 1], "data_offsets": [0, 16]},
        {"dtype": "I32", "shape": [2, 2**62], "data_offsets": [0, 16]},
        {"dtype": "I32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
        {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 2**64 - 1]},
    ],
)
def test_validation_overflow(file: Path, info: dict[str, Any]) -> None:
    refused(
        raw_file(file, json.dumps({"test": info}).encode(), bytes(16)),
        DamagedFileError,
        "not a list|not a begin|are expected",
    )


def test_whitespace_padded_header(file: Path) -> None:
    assert described(raw_file(file, TEST + b"    ", bytes(16))) == [("test", "int32", (2, 2))]


def test_whitespace_leading_padded_header(file: Path) -> None:
    """A writer may align the data with it; what the description does not foresee is a note."""
    raw_file(file, b"\t\n" + TEST + b"\r ", bytes(16))
    assert described(raw_file(file, b"\t\n{}\r ")) == []
    raw_file(file, b" " * (4096 - 8 - len(TEST)) + TEST, bytes(16))
    assert described(file) == [("test", "int32", (2, 2))]
    with read(file) as checkpoint:
        assert checkpoint.notes == ("there is space in front of the header",)
    out = file.with_name("out.safetensors")
    rename(file, out, [AddPrefix("m")])
    assert list(safetensors.torch.load_file(out)) == ["m.test"]
    refused(raw_file(file, b" " * 9), UnknownFormatError, "not a checkpoint")


def test_serialize_to_file_same_path_with_active_mmap(file: Path) -> None:
    """A file that is written over while it is mapped stays what it was for who mapped it."""
    written({"w": torch.tensor([1.0, 2.0, 3.0])}, file)
    with safe_open(file, "pt") as opened:
        mapped = opened.get_tensor("w")
        rename(file, Output(in_place=True), [AddPrefix("m")])
        assert mapped.tolist() == [1.0, 2.0, 3.0]
    assert safetensors.torch.load_file(file)["m.w"].tolist() == [1.0, 2.0, 3.0]


def test_invalid_header_size_serialization(file: Path) -> None:
    huge = LayoutOptions(metadata={"very_large_metadata": "a" * MAX_HEADER_BYTES})
    source = save({"w": torch.ones(1)}, file.with_name("in.pth"))
    with pytest.raises(LossyEditError, match="more than the 100000000 allowed"):
        convert(source, Output(file, options=huge))
    assert not file.exists()


@settings(max_examples=20, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.tuples(
            st.sampled_from([torch.float32, torch.int8, torch.bool, torch.bfloat16, torch.int64]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=6,
    ).filter(lambda found: "__metadata__" not in found),
    text=st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=5)),
)
def test_roundtrip_and_indexing(tensors: dict[str, Any], text: str | None) -> None:
    """The project's properties: any header is what both read, and every byte is at its place."""
    made = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / "a.safetensors", Path(folder) / "o.safetensors"
        safetensors.torch.save_file(made, path, None if text is None else {"note": text})
        if text not in made and made and "" not in made:  # what an alias is, or cannot be renamed
            rename(path, out, [AddPrefix("m")])
            rename(out, Output(in_place=True), [StripPrefix("m")])
            assert out.read_bytes() == path.read_bytes()
        assert sorted(name for name, _, _ in described(path) if name in made) == sorted(made)


def test_empty_shapes_allowed(file: Path) -> None:
    header = b'{"test":{"dtype":"I32","shape":[],"data_offsets":[0,4]}}'
    assert described(raw_file(file, header, bytes(4))) == [("test", "int32", ())]


def test_limits_hold_for_headers(file: Path) -> None:
    from ckpt_surgery.pickles import Limits

    raw_file(file, TEST + b" " * 100, bytes(16))
    with pytest.raises(LimitExceededError):
        read(file, limits=Limits(pickle_bytes=100))
