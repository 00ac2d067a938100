"""Pickles and numpy's files that torch.save did not write are state dicts, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckpt_surgery import (
    DamagedFileError,
    LimitExceededError,
    UnknownFormatError,
    convert,
    read,
    verify,
)

_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16")


def arrays() -> dict[str, Any]:
    found: dict[str, Any] = {f"t.{code}": np.ones((2, 3)).astype(code) for code in _TYPES}
    found |= {f"big.{code}": np.arange(5).astype(f">{code}") for code in ("f4", "i8", "u2", "c16")}
    weight = np.arange(24.0, dtype="f4").reshape(2, 3, 4)
    found |= {"w": weight, "tied": weight, "columns": np.asfortranarray(weight)}
    return found | {"scalar": np.array(2.5), "empty": np.zeros((0, 4)), "ü": weight[:, 1]}


def assert_arrays(found: Any) -> None:
    wanted = arrays()
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert np.array_equal(found[name].numpy(), native), name
        assert found[name].numpy().dtype == native.dtype, name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_arrays_in_a_pickle_are_tensors(tmp_path, protocol, kind):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(kind(arrays()), protocol))
    report = convert(tmp_path / "a.pkl", tmp_path / "a.pth")
    assert "numpy arrays are read, and written, as tensors" in report.warnings[0]
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_arrays(found)
    assert found["w"].data_ptr() == found["tied"].data_ptr()


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_that_torch_saved_are_tensors(tmp_path, legacy):
    saved = {"model": arrays(), "epoch": 3}
    torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    convert(tmp_path / "a.pth", tmp_path / "b.pth")
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert_arrays(found["model"])
    assert found["epoch"] == 3


def test_arrays_beside_weights_stay_what_they_are(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "rng": np.arange(3)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth")
    assert isinstance(torch.load(tmp_path / "b.pth", weights_only=False)["rng"], np.ndarray)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_in_a_pickle_keep_ties_strides_and_classes(tmp_path, protocol):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight, "tied": weight, "row": weight[1], "t": weight.t(), "h": weight.half()}
    state["p"] = torch.nn.Parameter(torch.ones(2))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": state, "lr": 0.1}, protocol))
    convert(tmp_path / "a.pkl", tmp_path / "a.pth")
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, tensor in state.items():
        assert torch.equal(found["model"][name], tensor), name
    assert found["model"]["tied"].data_ptr() == found["model"]["w"].data_ptr()
    assert (type(found["model"]["p"]), found["lr"]) == (torch.nn.Parameter, 0.1)


def test_models_of_detectron2_and_paddle_are_read(tmp_path):
    model = {"model": {"stem.w": np.ones((2, 2), "f4")}, "__author__": "x", "matching": True}
    (tmp_path / "d2.pkl").write_bytes(pickle.dumps(model, 2))
    with read(tmp_path / "d2.pkl") as found:
        assert (found.format, [n for n, _ in found.tensors]) == ("pickle", ["model/stem.w"])
    paddle = {
        "fc.w": _Pair(("fc.w_0", np.ones(3, "f4"))),
        "fc.b": _Pair(("fc.b_0", np.ones(2, "f4"))),
        "StructuredToParameterName@@": {"fc.w": "fc.w_0"},
    }
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(paddle, 4))
    with read(tmp_path / "m.pdparams") as found:
        assert {name: t.shape for name, t in found.tensors} == {"fc.w": (3,), "fc.b": (2,)}


class _Pair(tuple):
    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_nothing_of_a_plain_pickle_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(
        pickle.dumps({"w": torch.ones(2), "v": torch.ones(1), "evil": _Evil()})
    )
    with read("a.pkl") as found:
        assert [name for name, _ in found.tensors] == ["w", "v"]
        assert any(name.endswith(".system") for name in found.globals)
    assert not Path("ran").exists()


def _with(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (pickle.dumps({"a": 1}), UnknownFormatError),
        (pickle.dumps({"w": torch.ones(2)})[:-5], UnknownFormatError),
        (pickle.dumps({"w": torch.ones(2)})[:-20] + b".", DamagedFileError),
        (
            _with(pickle.dumps({"w": np.ones(3, "i1")}), b"K\x03\x85", b"K\x04\x85"),
            DamagedFileError,
        ),
        (b"\x80\x02}q\0X\1\0\0\0wX\1\0\0\0kQs.", DamagedFileError),
        (
            _with(pickle.dumps({"w": torch.ones(2)}), b"\x8a\nl\xfc", b"\x8a\nl\xfd"),
            DamagedFileError,
        ),
    ],
)
def test_a_pickle_that_is_broken_or_of_no_tensors_is_refused(tmp_path, data, error):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(error):
        read(tmp_path / "a.pkl")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy_are_state_dicts(tmp_path, save):
    save(tmp_path / "a.npz", **arrays(), objects=np.array([{}], dtype=object))
    with read(tmp_path / "a.npz") as found:
        assert [(o.path, o.type) for o in found.others] == [("objects", "numpy.ndarray of objects")]
    convert(tmp_path / "a.npz", tmp_path / "a.pth")
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_arrays(found)
    np.savez(tmp_path / "b.npz", w=np.ones((2, 3), "f4"))
    convert(tmp_path / "b.npz", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["w"], torch.ones(2, 3))


def test_one_array_has_the_name_that_numpy_gives_it(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4))
    with read(tmp_path / "a.npy") as found:
        assert (found.format, [name for name, _ in found.tensors]) == ("npy", ["arr_0"])


def _npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        _npy(b"{"),
        _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234"),
        _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': 3}"),
        _npy(b"{'descr': '<f4'}"),
        b"\x93NUMPY\1\0\xff\xff{}",
    ],
)
def test_a_broken_array_is_refused(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DamagedFileError):
        read(tmp_path / "a.npy")


def test_broken_archives_and_bombs_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(50, "f4"))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    with pytest.raises(DamagedFileError):
        read(tmp_path / "cut.npz")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY")
        archive.writestr("readme.txt", b"")
    with pytest.raises(DamagedFileError):
        read(tmp_path / "x.npz")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("w.npy", b"x")
    size = (1).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(out.getvalue().replace(size * 2, b"\1\0\0\0\0\0\0\x7f"))
    with pytest.raises((LimitExceededError, DamagedFileError)):
        read(tmp_path / "bomb.npz")


def test_arrays_of_objects_are_no_safe_file(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "o.npz", o=np.array([None]), n=np.ones(2))
    np.savez(tmp_path / "n.npz", n=np.ones(2))
    found = verify([tmp_path / "o.npy", tmp_path / "o.npz", tmp_path / "n.npz"])
    said = [[f.entry for f in each.findings if f.severity == "error"] for each in found.verdicts]
    assert said == [["arr_0"], ["o"], []]
    assert found.exit_code == 1
