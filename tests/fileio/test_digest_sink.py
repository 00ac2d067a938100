"""A checksum takes what a file would get, and nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_surgery.errors import WriteError
from ckpt_surgery.fileio import CHUNK, ByteRange, Bytes, FileSource, MemorySource
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.digest_sink import DigestSink
from ckpt_surgery.fileio.sink import Sink

DATA = os.urandom(1_300_000)


def fill(sink: Sink, source: FileSource) -> None:
    sink.reserve(1 << 70 if isinstance(sink, DigestSink) else 10)
    sink.write(b"head")
    sink.copy(ByteRange(source, 3, source.size - 3))
    sink.copy(Bytes(DATA[:70_000]))
    sink.write(memoryview(bytes(16)).cast("d"))
    sink.copy(ByteRange(MemorySource(DATA, name="memory"), 7, 100_000))


def test_digest_is_that_of_the_file_that_would_be_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    digest = DigestSink()
    with FileSource.open(tmp_path / "source") as source:
        fill(digest, source)
        with atomic_output(tmp_path / "out") as sink:
            fill(sink, source)
            assert sink.position == digest.position
    written = (tmp_path / "out").read_bytes()
    assert digest.position == len(written)
    assert digest.hexdigest() == hashlib.sha256(written).hexdigest()


class _Lying(Bytes):
    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        yield self.data[:3]


def test_source_that_lies_about_its_length_is_refused() -> None:
    with pytest.raises(WriteError, match="5 bytes were expected, 3 given") as caught:
        DigestSink().copy(_Lying(b"abcde"))
    assert str(caught.value.path) == "the checksum"
