"""Zip archives exactly as torch.save writes them.

Every offset is known before the first byte is written, so that writing goes forward only. The
layout is that of `PyTorchStreamWriter` (caffe2/serialize/inline_container.cc over miniz): data is
aligned by a padding field in the local header, lengths and checksums follow the data in a
descriptor, and fields of 64 bits appear only where a value needs them. torch computes storage
offsets from this layout instead of looking them up (``torch.load`` with ``map_location="meta"``),
so that it is part of the format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from ckpt_surgery.errors import ReadError, WriteError
from ckpt_surgery.fileio.ranges import ByteRange, Bytes, ByteSource
from ckpt_surgery.fileio.sink import Sink, copy_with_crc32
from ckpt_surgery.fileio.zip_read import MAX_RECORDS
from ckpt_surgery.fileio.zip_structs import (
    CENTRAL,
    CENTRAL_MAGIC,
    DEFLATED,
    DESCRIPTOR_MAGIC,
    END,
    END64,
    END64_MAGIC,
    END_MAGIC,
    FLAG_DESCRIPTOR,
    FLAG_UTF8,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR,
    LOCATOR_MAGIC,
    SATURATED_16,
    SATURATED_32,
    STORED,
    ZIP64_EXTRA,
)
from ckpt_surgery.startup.lazy_dataclass import dataclass

_ALIGNMENT: Final = 64
"""Bytes that the data of a record is aligned to, unless torch is told otherwise."""

_MAX_ALIGNMENT: Final = 1 << 15  # the padding field counts its length in 16 bits
_PADDING: Final = struct.Struct("<2sH")  # the padding field's kind and length; then letters Z
_DEFLATE_NEEDED: Final = 20
_END64_MADE_BY: Final = 0x031E
_END64_NEEDED: Final = 45

_Written: TypeAlias = tuple[str, int, int]
"""A record that was written: its name, its length in bytes, its CRC-32."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A record whose `nbytes` bytes follow from the records before it.

    `make` is given those, in the order in which they were written.
    """

    nbytes: int
    make: Callable[[Sequence[_Written]], bytes]


@dataclass(frozen=True, slots=True)
class PlacedRecord:
    """A record and the bytes of the archive at which its local header and its data start.

    `decoded_nbytes` is given for one that is compressed, as torch does with code; `written_at` is
    the time and date that old versions of torch wrote into headers.
    """

    name: str
    source: ByteSource | Derived
    header_offset: int
    data_offset: int
    end: int
    decoded_nbytes: int | None = None
    written_at: tuple[int, int] = (0, 0)

    @property
    def nbytes(self) -> int:
        return self.source.nbytes

    @property
    def flags(self) -> int:
        return FLAG_UTF8 | (FLAG_DESCRIPTOR if self.nbytes else 0)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes as they are stored, and as they are decoded."""
        return self.nbytes, self.nbytes if self.decoded_nbytes is None else self.decoded_nbytes

    @property
    def method(self) -> tuple[int, int]:
        """The version needed to read it, and the method of compression."""
        return (0, STORED) if self.decoded_nbytes is None else (_DEFLATE_NEEDED, DEFLATED)

    @property
    def zip64(self) -> bool:
        return self.nbytes >= SATURATED_32 or self.header_offset >= SATURATED_32


@dataclass(frozen=True, slots=True)
class ZipLayout:
    """Where everything of an archive lies. `nbytes` is its whole length."""

    root: str
    records: tuple[PlacedRecord, ...]
    directory_offset: int
    directory_nbytes: int

    @property
    def nbytes(self) -> int:
        return self.directory_offset + self.directory_nbytes + END64.size + LOCATOR.size + END.size

    def write(self, sink: Sink) -> None:
        """Write the archive, forward only.

        Raises WriteError if it cannot be written, ReadError if a source cannot be read.
        """
        sink.reserve(self.nbytes)
        written: list[_Written] = []
        right: set[ByteRange] = set()
        for record in self.records:
            sink.write(_local_header(self.root, record))
            try:
                crc32 = _write_data(sink, record, written, right)
            except ReadError as error:
                error.entry = error.entry or record.name
                raise
            if record.nbytes:
                sink.write(_descriptor(record, crc32))
            written.append((record.name, record.nbytes, crc32))
        for record, (_, _, crc32) in zip(self.records, written, strict=True):
            sink.write(_central_header(self.root, record, crc32))
        sink.write(self._end())

    def structure(self, crc32s: Sequence[int]) -> Iterator[tuple[int, bytes, str | None]]:
        """Yield everything but the data, given each record's checksum: where, what, and of which.

        The end of the archive is of no record.
        """
        at = self.directory_offset
        for record, crc32 in zip(self.records, crc32s, strict=True):
            yield record.header_offset, _local_header(self.root, record), record.name
            if record.nbytes:
                yield record.end, _descriptor(record, crc32), record.name
            entry = _central_header(self.root, record, crc32)
            yield at, entry, record.name
            at += len(entry)
        yield at, self._end(), None

    def _end(self) -> bytes:
        count = len(self.records)
        nbytes, offset = self.directory_nbytes, self.directory_offset
        return (
            END64.pack(
                *(END64_MAGIC, END64.size - 12, _END64_MADE_BY, _END64_NEEDED, 0, 0),
                *(count, count, nbytes, offset),
            )
            + LOCATOR.pack(LOCATOR_MAGIC, 0, offset + nbytes, 1)
            + END.pack(
                *(END_MAGIC, 0, 0, min(count, SATURATED_16), min(count, SATURATED_16)),
                *(min(nbytes, SATURATED_32), min(offset, SATURATED_32), 0),
            )
        )


def lay_out(
    root: str,
    records: Sequence[tuple[str, ByteSource | Derived]],
    *,
    alignment: int = _ALIGNMENT,
    decoded: Mapping[str, int] = MappingProxyType({}),
    written_at: tuple[int, int] = (0, 0),
) -> ZipLayout:
    """Place `records`, named below the folder `root`, in the order given.

    `decoded` are the lengths of those that are compressed, by their names.

    Data starts at multiples of `alignment` bytes. Raises WriteError if the alignment is not one
    that the format can express, or if there are more records than can be read again.
    """
    if not 1 <= alignment <= _MAX_ALIGNMENT:
        raise WriteError(f"an alignment of {alignment} bytes is not between 1 and {_MAX_ALIGNMENT}")
    if len(records) > MAX_RECORDS:
        raise WriteError(f"{len(records)} records are more than the {MAX_RECORDS} allowed")
    placed: list[PlacedRecord] = []
    position = directory_nbytes = 0
    for name, source in records:
        name_nbytes = len(f"{root}/{name}".encode())
        if name_nbytes > SATURATED_16:
            raise WriteError("the record's name is too long", entry=name)
        head = LOCAL.size + name_nbytes + _PADDING.size
        head += _zip64_nbytes(2 * (source.nbytes >= SATURATED_32) + (position >= SATURATED_32))
        data = -(-(position + head) // alignment) * alignment
        record = PlacedRecord(
            name, source, position, data, data + source.nbytes, decoded.get(name), written_at
        )
        placed.append(record)
        directory_nbytes += CENTRAL.size + name_nbytes + len(_central_extra(record))
        position = record.end + len(_descriptor(record, 0) if record.nbytes else b"")
    return ZipLayout(root, tuple(placed), position, directory_nbytes)


def _zip64_nbytes(values: int) -> int:
    return 4 + 8 * values if values else 0


def _zip64_extra(*values: int) -> bytes:
    if not values:
        return b""
    return struct.pack(f"<HH{len(values)}Q", ZIP64_EXTRA, 8 * len(values), *values)


def _local_header(root: str, record: PlacedRecord) -> bytes:
    name = f"{root}/{record.name}".encode()
    # Unlike APPNOTE.TXT 4.5.3, miniz also states the offset here, and no length of stored data.
    sizes = (record.nbytes, 0) if record.nbytes >= SATURATED_32 else ()
    offset = (record.header_offset,) if record.header_offset >= SATURATED_32 else ()
    zip64 = _zip64_extra(*sizes, *offset)
    room = record.data_offset - record.header_offset - LOCAL.size - len(name) - len(zip64)
    padding = room - _PADDING.size
    extra = zip64 + _PADDING.pack(b"FB", padding) + b"Z" * padding
    return (
        LOCAL.pack(
            *(LOCAL_MAGIC, record.method[0], record.flags, record.method[1]),
            *(*record.written_at, 0, 0, 0, len(name), len(extra)),
        )
        + name
        + extra
    )


def _write_data(
    sink: Sink, record: PlacedRecord, written: Sequence[_Written], right: set[ByteRange]
) -> int:
    """Write the bytes of a record; return their CRC-32."""
    if not isinstance(record.source, Derived):
        return copy_with_crc32(record.source, sink, right)
    data = record.source.make(written)
    if len(data) != record.nbytes:
        raise WriteError(f"{record.nbytes} bytes were expected, {len(data)} given")
    return copy_with_crc32(Bytes(data), sink, right)


def _descriptor(record: PlacedRecord, crc32: int) -> bytes:
    sizes = "QQ" if record.zip64 else "II"
    return struct.pack(f"<4sI{sizes}", DESCRIPTOR_MAGIC, crc32, *record.sizes)


def _central_extra(record: PlacedRecord) -> bytes:
    values = (*reversed(record.sizes), record.header_offset)
    return _zip64_extra(*(value for value in values if value >= SATURATED_32))


def _central_header(root: str, record: PlacedRecord, crc32: int) -> bytes:
    name = f"{root}/{record.name}".encode()
    extra = _central_extra(record)
    stored, nbytes = (min(size, SATURATED_32) for size in record.sizes)
    offset = min(record.header_offset, SATURATED_32)
    return (
        CENTRAL.pack(
            *(CENTRAL_MAGIC, 0, record.method[0], record.flags, record.method[1]),
            *(*record.written_at, crc32, stored, nbytes),
            *(len(name), len(extra), 0, 0, 0, 0, offset),
        )
        + name
        + extra
    )
