"""Whatever is no checkpoint is refused by what it is, with a word on what to do."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from ckpt_surgery import read
from ckpt_surgery.errors import CkptError, ReadError, UnknownFormatError

READABLE = "what torch.save, torch.jit.save and safetensors wrote can be read"


def documents(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "text")
    return buffer.getvalue()


# Content, what is said of it, and a part of the hint.
OTHERS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "is empty", "did not finish"),
    "web page": (b"<!DOCTYPE html><html>404", "web page", "download"),
    "web page after blanks": (b"\xef\xbb\xbf\r\n <html>", "web page", "download"),
    "JSON": (b'{"message": "Not Found"}', "JSON", "download"),
    "text": (b"Access denied\n", "this is text", "download"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "LFS", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\0", "the start of gzip", "the file is truncated"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "the start of zstd", "the file is truncated"),
    "image": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG", READABLE),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\x80", "ONNX", "onnx.numpy_helper"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF", "gguf.GGUFReader"),
    "pickle": (pickle.dumps({"a": 1}), "plain pickle", READABLE),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5", "h5py"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\x14\0 \0", "TensorFlow Lite", "tf.lite.Interpreter"),
    "flax": (b"\x81\xa6params\x81\xa6kernel\xc7", "msgpack", "msgpack_restore"),
    "mxnet": (b"\x12\1\0\0\0\0\0\0\0\0\0\0", "mxnet", "mxnet.nd.load"),
    "cut pickle": (pickle.dumps({"a": 1})[:-1], "does not end as one", "truncated: the download"),
    "pickle and more": (pickle.dumps({"a": 1}) + b"!", "does not end as one", "the download may"),
    "documents": (documents("a.txt"), "no checkpoint was found", "there are: 'a.txt'"),
    "documents in a folder": (documents("a/b.txt"), "zip archive of 1 file", "'a/b.txt'"),
    "anything": (bytes(range(128, 256)), "no|any known format", READABLE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    content, said, hint = OTHERS[name]
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    with pytest.raises(ReadError, match=said) as refused:
        read(file)
    assert hint in (refused.value.hint or "")
    assert str(refused.value).startswith(f"'{file}'")
    assert isinstance(refused.value, UnknownFormatError)


@pytest.mark.parametrize("path", [os.curdir, os.devnull])
def test_what_is_no_file_is_refused_with_a_hint(path: str) -> None:
    with pytest.raises(CkptError) as refused:
        read(path)
    assert refused.value.hint


# Files that belong to a checkpoint and are none by themselves: content, what is said, the hint.
PARTS = {
    "__0_0.distcp": (b"PK\3\4 several archives, one after another", "distributed checkpoint"),
    "__1_0.distcp": (b"", "distributed checkpoint"),
    "config.json": (b'{"architectures": ["BertModel"]}', "this is JSON, not weights"),
    "model.safetensors.index.json": (b'{"metadata": {}}', "this is JSON, not weights"),
}


@pytest.mark.parametrize("name", PARTS)
def test_part_of_a_checkpoint_is_not_called_damaged_or_a_failed_download(name, tmp_path):
    content, said = PARTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnknownFormatError, match=said) as refused:
        read(tmp_path / name)
    told = f"{refused.value} {refused.value.hint}"
    assert "damaged" not in told
    assert "download" not in told
    assert "directory" in told


def test_json_that_is_cut_may_be_a_failed_download(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"architectures": ["Ber')
    with pytest.raises(UnknownFormatError) as refused:
        read(tmp_path / "config.json")
    assert "download" in (refused.value.hint or "")


def test_index_without_its_shards_says_which_file_is_missing(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(ReadError, match="model-00001-of-00002") as refused:
        read(path)
    told = f"{refused.value} {refused.value.hint}"
    assert "damaged" not in told
    assert "beside" in told
