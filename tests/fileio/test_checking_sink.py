"""What goes through a checking sink is what came, and is compared with its checksum."""

from __future__ import annotations

import os
import zlib

import pytest

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import ByteRange, Bytes, MemorySource
from ckpt_surgery.fileio.checking_sink import CheckingSink, NowhereSink
from ckpt_surgery.fileio.digest_sink import DigestSink

DATA = os.urandom(700_000)


class Counted(MemorySource):
    """Bytes that count how many of them were read."""

    def __init__(self) -> None:
        super().__init__(DATA, name="counted")
        self.read = 0

    def read_at(self, offset: int, nbytes: int) -> bytes:
        self.read += nbytes
        return super().read_at(offset, nbytes)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read += buffer.nbytes
        super().read_into(offset, buffer)


def test_bytes_arrive_as_they_are() -> None:
    source = Counted()
    plain, inner = DigestSink(), DigestSink()
    checking = CheckingSink(inner, set())
    for sink in (plain, checking):
        sink.reserve(10)
        sink.write(b"head")
        sink.copy(ByteRange(source, 0, len(DATA), zlib.crc32(DATA)))
        sink.copy(ByteRange(source, 3, 100))
        sink.copy(ByteRange(source, 3, 100, 0))
        sink.copy(Bytes(DATA[:77]))
    assert inner.hexdigest() == plain.hexdigest()
    assert (checking.position, checking.name) == (plain.position, plain.name)


def test_a_wrong_checksum_is_refused_after_the_last_byte() -> None:
    nowhere = NowhereSink()
    with pytest.raises(DamagedFileError, match="the checksum of the bytes is"):
        CheckingSink(nowhere, set()).copy(ByteRange(Counted(), 0, len(DATA), 1))
    assert nowhere.position == len(DATA)


def test_for_a_part_the_whole_is_compared_and_only_once() -> None:
    source, right = Counted(), set()
    whole = ByteRange(source, 0, len(DATA), zlib.crc32(DATA))
    for _ in range(3):
        sink = CheckingSink(NowhereSink(), right)
        sink.copy(whole.slice(5, 100))
        sink.copy(whole.slice(50, 100))
        assert sink.position == 200
    assert source.read == len(DATA)
    wrong = ByteRange(source, 0, len(DATA), 1)
    with pytest.raises(DamagedFileError):
        CheckingSink(NowhereSink(), right).copy(wrong.slice(5, 100))
