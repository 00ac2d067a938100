"""The identifier that torch writes, recomputed."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from ckpt_surgery.formats.serialization_id import serialization_id

ID = ".data/serialization_id"


def saved_records(value: object) -> tuple[list[tuple[str, int, int]], bytes]:
    """The records of `torch.save(value)` as (name, bytes, CRC-32), and the identifier."""
    out = io.BytesIO()
    torch.save(value, out)
    with zipfile.ZipFile(out) as archive:
        records = [
            (info.filename.partition("/")[2], info.file_size, info.CRC)
            for info in archive.infolist()
        ]
        return records, archive.read(f"archive/{ID}")


# The numbers stand on both sides of where the set of names grows: 13, 29, 59, 127, … records, of
# which five to seven are not storages.
@pytest.mark.parametrize("storages", [0, 1, 6, 7, 8, 9, 22, 23, 24, 25, 52, 54, 120, 123, 1100])
def test_identifier_is_torchs(storages: int) -> None:
    records, expected = saved_records([torch.full((i % 3,), i) for i in range(storages)])
    assert records[-1][0] == ID
    assert serialization_id(records[:-1]) == expected


def test_identifier_has_forty_digits() -> None:
    for records in ([], [("data.pkl", 0, 0)], [("x" * 100, 1, 0xFFFFFFFF)]):
        assert len(serialization_id(records)) == 40
        assert serialization_id(records).isdigit()


def test_identifier_follows_names_and_checksums_apart() -> None:
    one = serialization_id([("a", 1, 5), ("b", 1, 6)])
    renamed = serialization_id([("a", 1, 5), ("c", 1, 6)])
    changed = serialization_id([("a", 1, 5), ("b", 1, 7)])
    assert one[:20] != renamed[:20]
    assert one[20:] == renamed[20:]
    assert one[:20] == changed[:20]
    assert one[20:] != changed[20:]
