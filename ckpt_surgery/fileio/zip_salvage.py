"""Records of an archive that is truncated or damaged, by the marks that they have in the file.

Every local header, data descriptor and directory entry begins with a signature. Whatever of them
is left is put together here; nothing is refused, and nothing is trusted: whoever uses a record
compares its bytes with its checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.fileio.ranges import CHUNK
from ckpt_surgery.fileio.sources import Source
from ckpt_surgery.fileio.zip_structs import (
    CENTRAL,
    CENTRAL_MAGIC,
    DESCRIPTOR_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    SATURATED_32,
    ZIP64_EXTRA,
)
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST: Final = 1 << 20  # signatures, as many as an archive may have records
_PK: Final = b"PK"
_DESCRIPTOR: Final = struct.Struct("<4sIII")
_DESCRIPTOR64: Final = struct.Struct("<4sIQQ")


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record of which some mark is left.

    `name` is the whole name, `start` the byte at which its stored bytes begin. `stored_nbytes` is
    their number where that is known, `nbytes` that of what they decode to, `method` how they are
    compressed, `crc32` the checksums that the file states for it, none of which may be right.
    """

    name: str
    start: int
    method: int
    stored_nbytes: int | None
    nbytes: int | None
    crc32: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a directory entry or a descriptor says. `start` is that of the data, or of a header."""

    start: int
    crc32: int
    stored_nbytes: int
    nbytes: int
    name: bytes = b""
    method: int = 0


def find_records(source: Source) -> list[FoundRecord]:
    """Return every record of which a local header or a directory entry can be read, in order.

    Reads the whole source once. Raises `LimitExceededError` if it holds more than a million
    signatures, `ReadError` if it cannot be read.
    """
    headers: list[int] = []
    entries: dict[int, _Mark] = {}
    descriptors: dict[int, _Mark] = {}
    for at in _signatures(source):
        magic = source.read_at(at, 4)
        if magic == LOCAL_MAGIC:
            headers.append(at)
        elif magic == DESCRIPTOR_MAGIC:
            descriptors.update((mark.start, mark) for mark in _descriptor(source, at))
        elif magic == CENTRAL_MAGIC and (mark := _entry(source, at)) is not None:
            entries[mark.start] = mark
    names = {at: _name_at(source, at) for at in headers}
    known = {*names.values()}
    # An entry whose record stands elsewhere is of an archive inside, and counts from its start.
    entries = {
        at: mark
        for at, mark in entries.items()
        if names.get(at) == mark.name or mark.name not in known
    }
    places = sorted({*headers, *entries})
    found = (_record(source, at, entries.get(at), descriptors) for at in places)
    return [record for record in found if record is not None]


def _signatures(source: Source) -> Iterator[int]:
    """Yield the places of all signatures of records, read once from start to end."""
    count = 0
    overlap = b""
    for start in range(0, source.size, CHUNK):
        data = overlap + source.read_at(start, min(CHUNK, source.size - start))
        base = start - len(overlap)
        at = data.find(_PK)
        while 0 <= at <= len(data) - 4:
            if data[at : at + 4] in (LOCAL_MAGIC, CENTRAL_MAGIC, DESCRIPTOR_MAGIC):
                count += 1
                if count > _MOST:
                    raise LimitExceededError(
                        f"there are more than {_MOST} signatures of records", path=source.name
                    )
                yield base + at
            at = data.find(_PK, at + 1)
        overlap = data[-3:]


def _descriptor(source: Source, at: int) -> Iterator[_Mark]:
    """Yield what a descriptor says, read as each of its two forms; it lies just behind its data."""
    for layout in (_DESCRIPTOR64, _DESCRIPTOR):
        if at + layout.size <= source.size:
            _, crc32, stored, nbytes = layout.unpack(source.read_at(at, layout.size))
            if stored <= at:
                yield _Mark(at - stored, crc32, stored, nbytes)


def _entry(source: Source, at: int) -> _Mark | None:
    if at + CENTRAL.size > source.size:
        return None
    fields = CENTRAL.unpack(source.read_at(at, CENTRAL.size))
    method, crc32, stored, nbytes, name_nbytes, extra_nbytes = *fields[4:5], *fields[7:12]
    offset = fields[-1]
    rest = name_nbytes + extra_nbytes
    if at + CENTRAL.size + rest > source.size:
        return None
    tail = source.read_at(at + CENTRAL.size, rest)
    sizes = iter(_wide(tail[name_nbytes:]))
    wide = [next(sizes, v) if v == SATURATED_32 else v for v in (nbytes, stored, offset)]
    nbytes, stored, offset = wide
    return _Mark(offset, crc32, stored, nbytes, tail[:name_nbytes], method)


def _name_at(source: Source, at: int) -> bytes:
    """Return the name in the local header at byte `at`, as far as the file goes."""
    if at + LOCAL.size > source.size:
        return b""
    nbytes = LOCAL.unpack(source.read_at(at, LOCAL.size))[-2]
    return source.read_at(at + LOCAL.size, min(nbytes, source.size - at - LOCAL.size))


def _wide(extra: bytes) -> list[int]:
    """Return the 64-bit values of the first zip64 field."""
    while len(extra) >= 4:
        kind, nbytes = struct.unpack_from("<HH", extra)
        if kind == ZIP64_EXTRA:
            value = extra[4 : 4 + nbytes]
            return [int.from_bytes(value[i : i + 8], "little") for i in range(0, len(value), 8)]
        extra = extra[4 + nbytes :]
    return []


def _record(
    source: Source, at: int, entry: _Mark | None, descriptors: dict[int, _Mark]
) -> FoundRecord | None:
    """Return the record whose local header starts at byte `at`, by
    whatever says something about it.
    """
    if at + LOCAL.size > source.size:
        return None
    fields = LOCAL.unpack(source.read_at(at, LOCAL.size))
    _, _, _, method, _, _, crc32, stored, nbytes, name_nbytes, extra_nbytes = fields
    start = at + LOCAL.size + name_nbytes + extra_nbytes
    if start > source.size:
        return None
    name = source.read_at(at + LOCAL.size, name_nbytes)
    if entry is not None and name != entry.name:  # one of them is damaged: the directory goes by
        name, method = entry.name, entry.method  # what was written last
    sizes = iter(_wide(source.read_at(start - extra_nbytes, extra_nbytes)))
    nbytes, stored = [next(sizes, n) if n == SATURATED_32 else n for n in (nbytes, stored)]
    local = _Mark(start, crc32, stored, nbytes)
    marks = [m for m in (entry, descriptors.get(start), local) if m is not None and _says(m)]
    empty = not marks and entry is None and not fields[2] & 0x08
    known = marks[0] if marks else _Mark(start, 0, 0, 0) if empty or entry is not None else None
    return FoundRecord(
        name.decode("utf-8", "backslashreplace"),
        start,
        method,
        None if known is None else known.stored_nbytes,
        None if known is None else known.nbytes,
        tuple(dict.fromkeys(mark.crc32 for mark in marks)),
    )


def _says(mark: _Mark) -> bool:
    """Return whether a mark says something: a local header with zeros waits for its descriptor."""
    return bool(mark.stored_nbytes or mark.nbytes or mark.crc32)
