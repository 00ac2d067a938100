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
    "gzip": (b"\x1f\x8b\x08\0", "gzip", "gzip -dc FILE"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "zstd", "zstd -dc FILE"),
    "image": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG", READABLE),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\x80", "ONNX", "onnx.numpy_helper"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF", "gguf.GGUFReader"),
    "pickle": (pickle.dumps({"a": 1}), "plain pickle", READABLE),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5", "h5py"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\x14\0 \0", "TensorFlow Lite", "tf.lite.Interpreter"),
    "flax": (b"\x81\xa6params\x81\xa6kernel\xc7", "msgpack", "msgpack_restore"),
    "mxnet": (b"\x12\1\0\0\0\0\0\0\0\0\0\0", "mxnet", "mxnet.nd.load"),
    "cut pickle": (pickle.dumps({"a": 1})[:-1], "does not end as one", "download"),
    "documents": (documents("a.txt"), "in no folder", "another program's"),
    "documents in a folder": (documents("a/b.txt"), "data.pkl", "another program's"),
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
    is_zip = content.startswith(b"PK")
    assert is_zip or isinstance(refused.value, UnknownFormatError)


@pytest.mark.parametrize("path", [os.curdir, os.devnull])
def test_what_is_no_file_is_refused_with_a_hint(path: str) -> None:
    with pytest.raises(CkptError) as refused:
        read(path)
    assert refused.value.hint
