"""Pickles in a row are read through windows of any size, and never more than is needed."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
import torch
from legacy_files import dumps, plain, reference, tensor, write
from torch_oracle import assert_same_tensors

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, FileSource
from ckpt_surgery.formats.pickle_sequence import PickleSequence
from ckpt_surgery.formats.torch_legacy import _read_legacy
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits


def saved(path: Path, value: object) -> Checkpoint:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return _read_legacy(FileSource.open(path))


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads."""
    sizes: list[int] = []
    read_at = FileSource.read_at

    def counting(self: FileSource, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", counting)
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
    _read_legacy(write(tmp_path / "a.pt", data), Limits(pickle_bytes=longest))
    with pytest.raises(LimitExceededError, match=f"longer than {longest - 1} bytes"):
        _read_legacy(write(tmp_path / "a.pt", data), Limits(pickle_bytes=longest - 1))


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
