"""A layout whose bytes are compared with their checksums on the way."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.fileio.checking_sink import CheckingSink, NowhereSink
from ckpt_surgery.formats.base import FileLayout, Layout


def verified(layout: Layout) -> Layout:
    """Return `layout` with nothing copied unread."""
    right: set[ByteRange] = set()
    return replace(layout, files=tuple(_verified(file, right) for file in layout.files))


def _verified(file: FileLayout, right: set[ByteRange]) -> FileLayout:
    return replace(file, write=lambda sink: file.write(CheckingSink(sink, right)))


def has_checksums(layout: Layout) -> bool:
    """Return whether something that will be copied has a checksum."""
    return any(isinstance(each, ByteRange) and each.crc32 for each in layout.sources)


def unchecked_nbytes(layout: Layout) -> int:
    """Return how many of the bytes that will be copied have no checksum."""
    bare = {
        each
        for each in layout.sources
        if isinstance(each, ByteRange) and not each.crc32 and each.whole is None
    }
    return sum(each.nbytes for each in bare)


def read_through(layout: Layout) -> None:
    """Read everything that a verified layout would copy; write nothing.

    Raises `DamagedFileError` if bytes are not those of their checksum.
    """
    for file in layout.files:
        file.write(NowhereSink())
