"""Files that Python 2 wrote come out as files that today's torch loads without ``encoding=``."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_checks import assert_same

import ckpt_surgery

ACCENT = "caf\xe9"
LONG = "x" * 300  # more than a SHORT_BINSTRING takes


def as_python_2(data: bytes) -> bytes:
    """A pickle with every text as a byte string, in Latin-1, and every bytes as one."""
    made, operations = b"", list(pickletools.genops(data))
    for i, (operation, argument, at) in enumerate(operations):
        end = operations[i + 1][2] if i + 1 < len(operations) else at + 1
        if operation.name != "BINUNICODE":
            made += data[at:end]
            continue
        raw = argument.encode("latin-1")
        short = len(raw) < 256
        made += (b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))) + raw
    return made


def python_2_file(value: Any, path: Path) -> Path:
    """The legacy container: five pickles, of which the value and the keys are Python 2's."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    raw, buffer, parts = buffer.getvalue(), io.BytesIO(buffer.getvalue()), []
    for _ in range(5):
        start = buffer.tell()
        for _ in pickletools.genops(buffer):
            pass
        parts.append(raw[start : buffer.tell()])
    parts[3:5] = map(as_python_2, parts[3:5])
    path.write_bytes(b"".join(parts) + raw[buffer.tell() :])
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    value = {"state_dict": nn.Linear(3, 2).state_dict(), "note": ACCENT, LONG: LONG, "epoch": 4}
    return python_2_file(value, tmp_path / "py2.pth")


def test_today_s_torch_needs_to_be_told_the_encoding(file: Path) -> None:
    with pytest.raises((UnicodeDecodeError, pickle.UnpicklingError)):
        torch.load(file, weights_only=False)


@pytest.mark.parametrize("verb", ["convert", "rename"])
def test_text_of_python_2_loads_without_encoding(verb: str, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    if verb == "convert":
        ckpt_surgery.convert(file, out)
    else:
        ckpt_surgery.rename(file, out, [ckpt_surgery.AddPrefix("m")])
    told = torch.load(file, weights_only=False, encoding="latin-1")
    for weights_only in (True, False):
        found = torch.load(out, weights_only=weights_only)
        assert found["note"] == ACCENT
        assert found[LONG] == LONG
        assert list(found) == list(told)
        assert_same(list(found["state_dict"].values()), list(told["state_dict"].values()))


def test_utf8_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    value = {"w": torch.ones(1), "note": "\xc3\xa9"}  # the bytes of an é
    file = python_2_file({"m": {"w": torch.ones(1)}, "note": value["note"]}, tmp_path / "p.pth")
    ckpt_surgery.convert(file, tmp_path / "out.pth")
    assert torch.load(file, weights_only=False)["note"] == "\xe9"
    assert torch.load(tmp_path / "out.pth", weights_only=True)["note"] == "\xe9"


def test_numbers_of_numpy_stay_bytes(tmp_path: Path) -> None:
    """Python 2 had one type for text and bytes; these bytes would be UTF-8."""
    numbers = np.frombuffer("é".encode() * 8, dtype=np.float32)
    scalar = np.frombuffer("é".encode() * 4, dtype=np.float64)[0]
    value = {"m": {"w": torch.ones(1)}, "array": numbers, "scalar": scalar}
    file = tmp_path / "p.pth"
    python_2_file(with_bytes_as_text(value), file)
    ckpt_surgery.convert(file, tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=False)
    assert found["array"].tobytes() == numbers.tobytes()
    assert found["scalar"].tobytes() == scalar.tobytes()


class _Reduced:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def with_bytes_as_text(value: dict[str, Any]) -> dict[str, Any]:
    """The value with numpy's bytes as the text that Python 2 would have had for them."""
    array, scalar = value["array"], value["scalar"]
    make, args, state = array.__reduce__()
    of_array = _Reduced(make, args, (*state[:-1], state[-1].decode("latin-1")))
    make, (kind, raw) = scalar.__reduce__()
    return {**value, "array": of_array, "scalar": _Reduced(make, (kind, raw.decode("latin-1")))}


def test_packed_dates_are_latin_1(tmp_path: Path) -> None:
    import datetime

    when = datetime.datetime(2018, 1, 2, 3, 4, 5, 0xC3A9)  # noqa: DTZ001  # bytes that are UTF-8
    raw = when.__reduce_ex__(2)[1][0].decode("latin-1")
    value = {"m": {"w": torch.ones(1)}, "when": _Reduced(datetime.datetime, (raw,))}
    file = python_2_file(value, tmp_path / "p.pth")
    ckpt_surgery.convert(file, tmp_path / "out.pth")
    assert torch.load(tmp_path / "out.pth", weights_only=False)["when"] == when
