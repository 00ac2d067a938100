"""What numpy pickles is understood in the form that numpy writes, and in no other."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bombs import archive, call, fetch, keep, mapping, name, text

from ckpt_surgery import inspect, read
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import parse
from ckpt_surgery.torch_objects.numpy_values import numpy_bytes, numpy_code

RAW = struct.pack("<2f", 1, 2)
SIZES = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0"


def dtype(code: str = "f4", parts: bytes = b"NNN", order: str = "<", later: bytes = b"") -> bytes:
    made = name("numpy", "dtype") + text(code) + b"\x89\x88\x87R"
    return made + (later or b"(K\3" + text(order) + parts + SIZES + b"tb")


def encoded(content: str = RAW.decode("latin-1"), encoding: str = "latin1") -> bytes:
    return call("_codecs.encode", text(content), text(encoding))


def array(
    of: bytes | None = None, data: bytes | None = None, columns: bytes = b"\x89", size: bytes = b""
) -> bytes:
    made = call("numpy.core.multiarray._reconstruct", name("numpy", "ndarray"), b"K\0\x85C\1b")
    state = (size or b"K\2\x85", dtype() if of is None else of, columns)
    return made + b"(K\1" + b"".join(state) + (encoded() if data is None else data) + b"tb"


def written(value: bytes, folder: Path, after: bytes = b"") -> Path:
    path = folder / "x.pth"
    path.write_bytes(archive(b"\x80\x03" + mapping((text("x"), value)) + after + b"."))
    return path


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).astype(kind).reshape(2, 3)
        for kind in ("<f4", ">f4", "<f8", ">i2", "u1", "?", "<c8", ">u8", "<f2")
    ]
    + [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(3.0), np.zeros((0, 2))],
    ids=str,
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_are_what_numpy_reads(value: Any, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"x": value}, protocol))
    with read(path) as checkpoint:
        (entry,) = checkpoint.state_dicts[0].entries
    assert entry.tensor is not None
    assert entry.tensor.shape == value.shape
    assert entry.tensor.dtype.name == str(value.dtype.newbyteorder("="))
    if value.dtype.kind != "c" and value.size:
        (shown,) = inspect(path, stats=True).to_dict()["state_dicts"][0]["tensors"]
        assert (shown["stats"]["min"], shown["stats"]["max"]) == (value.min(), value.max())


OTHER_FORMS = {
    "bytes in another encoding": array(data=encoded("\0\0@@\0\0@@", "utf-8")),
    "text that is no Latin-1": array(data=encoded("\0\0@@\0\0@\u0100")),
    "elements of several numbers": array(dtype(parts=dtype() + b"K\2\x85\x86NN")),
    "elements with names": array(
        dtype(parts=b"N" + text("a") + b"\x85" + mapping((text("a"), dtype("i4") + b"K\0\x86")))
    ),
    "columns that are a number": array(columns=b"K\1", size=b"K\1K\2\x86"),
    "a list of numbers": array(data=b"](K\1K\2e"),
    "bytes that can change": array(data=call("builtins.bytearray", b"C\x08" + RAW)),
    "an order in the code": array(dtype(">f4")),
    "an order of nobody": array(dtype(order="x")),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_stay_closed(form: str, tmp_path: Path) -> None:
    report = inspect(written(OTHER_FORMS[form], tmp_path)).to_dict()
    assert report["state_dicts"] == []


def test_type_that_changes_after_its_use_is_refused(tmp_path: Path) -> None:
    made = dtype(later=keep(70))
    path = written(array(made), tmp_path, fetch(70) + b"(K\3" + text(">") + b"NNN" + SIZES + b"tb0")
    assert torch.load(path, weights_only=False)["x"].dtype == ">f4"
    with pytest.raises(DamagedFileError, match="changed after the call") as caught:
        read(path)
    assert caught.value.entry == "x"


def test_texts_and_bytes_of_numpy() -> None:
    for value in (np.str_("ab"), np.float32(2), np.int64(-1)):
        scalar = parse(pickle.dumps(value, 2)).root
        kind, data = scalar.args  # type: ignore[attr-defined]
        assert numpy_code(kind) == ("<", value.dtype.str[1:])
        assert numpy_bytes(data) == value.tobytes()
    assert numpy_code(parse(pickle.dumps(np.dtype([("a", "f4")]), 2)).root) is None
    assert numpy_code(parse(pickle.dumps(np.dtype("M8[D]"), 2)).root) is not None
    assert numpy_bytes(parse(pickle.dumps(b"", 2)).root) == b""
    assert numpy_bytes(parse(pickle.dumps(bytearray(b"ab"), 5)).root) == b"ab"
    assert numpy_bytes(parse(b"c__builtin__\nbytearray\nC\1a\x85R]a.").root) is None
    assert numpy_bytes(parse(b"c__builtin__\nbytearray\n(C\1aNtR.").root) is None
    assert numpy_bytes(None) is None
