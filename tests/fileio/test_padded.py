"""A source with zeros behind its end, and patches."""

from __future__ import annotations

import pytest

from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import MemorySource
from ckpt_surgery.fileio.padded import PaddedSource


def padded(size: int = 8, **patches: bytes) -> PaddedSource:
    inner = MemorySource(b"abcde", name="inner")
    return PaddedSource(inner, size, {int(at[1:]): data for at, data in patches.items()})


def test_what_is_missing_is_zero() -> None:
    source = padded()
    assert source.size == 8
    assert source.read_at(0, 8) == b"abcde\0\0\0"
    assert source.read_ranges([(4, 3), (6, 2), (8, 0)]) == [b"e\0\0", b"\0\0", b""]
    assert (source.name, source.path, source.identity) == ("inner", None, None)
    assert source.descriptor_at(0) is None


def test_it_can_be_shorter() -> None:
    assert padded(3).read_at(1, 2) == b"bc"
    with pytest.raises(DamagedFileError):
        padded(3).read_at(1, 3)


def test_patches_stand_instead_of_what_is_there() -> None:
    source = padded(_1=b"XY", _4=b"UVW")
    assert source.read_at(0, 8) == b"aXYdUVW\0"
    assert source.read_at(2, 3) == b"YdU"
    assert source.read_at(6, 2) == b"W\0"


def test_closing_it_closes_the_source_inside() -> None:
    source = padded()
    source.require_unchanged()
    source.close()
    with pytest.raises(ReadError):
        source.read_at(0, 1)
