"""The records of a damaged archive of torch, and how much of each is left."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.fileio.record_sums import crc32_of
from ckpt_surgery.fileio.zip_salvage import FoundRecord, find_records
from ckpt_surgery.fileio.zip_structs import STORED
from ckpt_surgery.formats.torch_zip_container import PICKLE
from ckpt_surgery.startup.lazy_dataclass import dataclass

_State = Literal["whole", "unchecked", "cut", "damaged"]

_STATES: Final[tuple[_State, ...]] = ("whole", "unchecked", "cut", "damaged")


@dataclass(frozen=True, slots=True)
class Part:
    """A record and how much of it is left.

    It is ``whole`` if its checksum says so, ``unchecked`` if it has none, ``cut`` if it has no end
    and ``damaged`` if its bytes are not those of its checksum.
    """

    name: str
    record: FoundRecord
    state: _State


def parts_of(source: Source) -> list[Part]:
    """Return the records of an archive with their states; of each name the best one."""
    found: dict[str, Part] = {}
    for part in _parts(source, find_records(source)):
        known = found.get(part.name)
        if known is None or _STATES.index(part.state) < _STATES.index(known.state):
            found[part.name] = part
    return list(found.values())


def _parts(source: Source, records: Sequence[FoundRecord]) -> Iterator[Part]:
    root = next((r.name.partition("/")[0] for r in records if r.name.endswith(f"/{PICKLE}")), None)
    named = [r for r in records if root is not None and r.name.startswith(f"{root}/")]
    ends = {id(r): _end(source, r) for r in named}
    stored = [r for r in named if ends[id(r)] is not None and r.method == STORED]
    ranges = [ByteRange(source, r.start, r.stored_nbytes or 0) for r in stored]
    computed = dict(zip(map(id, stored), crc32_of(ranges), strict=True))
    for record in named:
        name = record.name[len(root or "") + 1 :]
        if ends[id(record)] is None:
            yield Part(name, record, "cut")
        elif record.stored_nbytes == 0:
            yield Part(name, record, "whole")
        elif not any(record.crc32):
            yield Part(name, record, "unchecked")
        else:
            crc32 = computed.get(id(record))
            crc32 = _inflated_crc32(source, record) if crc32 is None else crc32
            yield Part(name, record, "whole" if crc32 in record.crc32 else "damaged")


def _end(source: Source, record: FoundRecord) -> int | None:
    """Return the byte at which the record's data ends; None if that
    is not known or not in the file.
    """
    if record.stored_nbytes is None or record.start + record.stored_nbytes > source.size:
        return None
    return record.start + record.stored_nbytes


def _inflated_crc32(source: Source, record: FoundRecord) -> int | None:
    """Return the checksum of what a compressed record decodes to, None if it does not."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    crc32 = 0
    for chunk in ByteRange(source, record.start, record.stored_nbytes or 0).chunks():
        data: bytes = bytes(chunk)
        while data:
            try:
                crc32 = zlib.crc32(inflate.decompress(data, 1 << 20), crc32)
            except zlib.error:
                return None
            data = inflate.unconsumed_tail
    return crc32
