"""Pickles are found in whatever holds them, whole or broken."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_checks import save

from ckpt_surgery.fileio import FileSource, MemorySource
from ckpt_surgery.formats import pickle_scan
from ckpt_surgery.formats.pickle_scan import FoundPickle, find_pickles

EVIL = b"cos\nsystem\n(S'echo'\ntR."


def found(data: bytes) -> list[FoundPickle]:
    return list(find_pickles(MemorySource(data, name="memory")))


def names(data: bytes) -> list[list[str]]:
    return [[name.qualified for name in each.looked.names] for each in found(data)]


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_pickles_after_each_other() -> None:
    data = pickle.dumps(1, 2) + EVIL + pickle.dumps([3], 4)
    assert names(data) == [[], ["os.system"], []]
    assert [each.looked.root for each in found(data)][::2] == [1, [3]]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMP", b"\x00" * 100, b"ustar"])
def test_what_holds_none(data: bytes) -> None:
    assert found(data) == []


def test_a_broken_one_counts_if_it_names_something() -> None:
    assert names(EVIL[:-1] + b"\xff") == [["os.system"]]
    assert names(pickle.dumps(1, 2)[:-1] + b"\xff") == []


def test_only_what_the_pickles_take_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_scan, "_FIRST_WINDOW", 16)
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(100_000)}, path, _use_new_zipfile_serialization=False)
    reads: list[int] = []
    inner = FileSource.read_at

    def counted(self: FileSource, offset: int, nbytes: int) -> bytes:
        reads.append(nbytes)
        return inner(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", counted)
    with FileSource.open(path) as source:
        pickles = list(find_pickles(source))
    assert len(pickles) == 5
    assert max(reads) < 5000


def test_of_an_archive_the_records_that_are_called_so() -> None:
    assert names(zipped({"a/data.pkl": EVIL, "a/data/0": b"cos\nsystem\n."})) == [["os.system"]]


def test_of_an_odd_archive_every_record() -> None:
    members = {"a": EVIL, "b": b"text", "c": pickle.dumps(1, 2)}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        expected = [["os.system"], []] if method == zipfile.ZIP_DEFLATED else []
        assert names(zipped(members, method)) == expected
    # the directory is gone
    assert names(zipped(members).replace(b"PK\x01\x02", b"XXXX")) == [["os.system"], []]


def test_what_does_not_inflate_is_left() -> None:
    data = zipped({"a": EVIL * 20}, zipfile.ZIP_DEFLATED)
    assert names(data.replace(b"PK\x05\x06", b"XXXX")) == [["os.system"]] * 20
    at = data.index(b"a") + 1
    assert names(data[:at] + b"\xff\xff\xff" + data[at + 3 :]) == []


def test_an_inflated_record_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "_MOST_INFLATED", 30)
    (only,) = found(zipped({"a": EVIL + bytes(10**6)}, zipfile.ZIP_DEFLATED))
    assert len(only.data) == 30


def test_arrays_of_objects() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object))
    objects = buffer.getvalue()
    assert "numpy.dtype" in names(objects)[0]
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1000))
    assert found(buffer.getvalue()) == []
    assert len(found(zipped({"x.npy": objects}, zipfile.ZIP_DEFLATED))) == 1
    stored = zipped({"x.npy": objects}).replace(b"PK\x01\x02", b"XXXX")
    assert len(found(stored)) == 1


def test_many_pickles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "_MOST_PICKLES", 10)
    assert len(found(pickle.dumps(1, 2) * 50)) == 10


def test_an_archive_of_torch(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "w.pth")
    with FileSource.open(path) as source:
        (only,) = find_pickles(source)
    assert only.entry == "data.pkl"
