"""Zip archives as records: names, and the ranges of the file that hold their bytes.

The standard library's `zipfile` cannot serve: it refuses files saved without checksums, and where
an archive is ambiguous it and torch's reader (miniz) pick different records. Everything on which
two readers could disagree is refused here, so that what is read is what torch would load.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio.ranges import ByteRange
from ckpt_surgery.fileio.sources import Source
from ckpt_surgery.fileio.zip_records import ZipArchive, ZipRecord
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

MAX_RECORDS: Final = 1 << 20
_MAX_DIRECTORY: Final = 1 << 28  # bytes: 256 for each of a million records
_MAX_COMMENT: Final = 0xFFFF
_DESCRIPTOR64: Final = 24  # bytes of the longest data descriptor
_FOLDER: Final = 0x10  # of the external attributes


class _Directory(NamedTuple):
    """Where the central directory lies, in bytes, and how many entries it should have."""

    offset: int
    nbytes: int
    n_records: int


class _Entry(NamedTuple):
    """An entry of the central directory, with its 64-bit values in place."""

    name: str
    flags: int
    method: int
    crc32: int
    stored_nbytes: int
    nbytes: int
    header_offset: int


def looks_like_zip(file: Source) -> bool:
    """Return whether the file starts as a zip archive does: with a local header, or empty."""
    return file.size >= END.size and file.read_at(0, 4) in (LOCAL_MAGIC, END_MAGIC)


def read_zip(file: Source) -> ZipArchive:
    """Find the records of an archive; reads its headers, never its records.

    Only the source code of a TorchScript archive may be compressed. Raises DamagedFileError if
    the archive is truncated, damaged, ambiguous or uses anything that torch never writes, and
    LimitExceededError if its directory is too large.
    """
    directory = _find_directory(file)
    entries = _parse_directory(file, directory)
    root = _check_names(file, entries)
    is_torchscript = any(entry.name == f"{root}/constants.pkl" for entry in entries)
    spans: list[tuple[int, int, str]] = []
    records: list[ZipRecord] = []
    for entry, (start, end) in zip(entries, _locate(file, entries), strict=True):
        spans.append((entry.header_offset, end, entry.name))
        if entry.name.endswith("/"):
            continue
        name = entry.name[len(root) + 1 :]
        compressed = entry.method == DEFLATED
        if compressed and not (is_torchscript and name.startswith("code/")):
            raise _damaged(file, "the record is compressed", entry.name)
        crc32 = None if compressed else entry.crc32
        data = ByteRange(file, start, entry.stored_nbytes, crc32, record=name)
        records.append(
            ZipRecord(name, data, compressed, entry.nbytes, entry.crc32, entry.header_offset)
        )
    unused = _check_disjoint(file, spans, directory.offset)
    return ZipArchive(file, root, tuple(records), unused)


def _damaged(file: Source, message: str, entry: str | None = None) -> DamagedFileError:
    return DamagedFileError(message, path=file.name, entry=entry)


def _find_directory(file: Source) -> _Directory:
    if not looks_like_zip(file):
        raise _damaged(file, "the archive does not start with a record")
    end = file.size - END.size
    (magic, disk, start_disk, count_here, count, nbytes, offset, comment) = END.unpack(
        file.read_at(end, END.size)
    )
    if magic != END_MAGIC or comment:
        raise _no_end(file)
    if disk or start_disk or count_here != count:
        raise _damaged(file, "the archive is split over several files")
    directory = _Directory(offset, nbytes, count)
    locator = file.read_at(end - LOCATOR.size, LOCATOR.size) if end >= LOCATOR.size else b""
    if locator.startswith(LOCATOR_MAGIC):
        end, directory = _find_directory64(file, locator, directory)
    if directory.offset + directory.nbytes != end:
        raise _damaged(file, "the central directory is not where the end of the archive says")
    if directory.n_records * CENTRAL.size > directory.nbytes:
        raise _damaged(
            file,
            f"{directory.n_records} records are claimed, but the directory is too short for them",
        )
    if directory.n_records > MAX_RECORDS or directory.nbytes > _MAX_DIRECTORY:
        raise LimitExceededError(
            f"the directory has {directory.n_records} records in {directory.nbytes} bytes, "
            f"more than {MAX_RECORDS} in {_MAX_DIRECTORY}",
            path=file.name,
        )
    return directory


def _no_end(file: Source) -> DamagedFileError:
    """Say why the last bytes of the file are not the end record of an archive."""
    tail_offset = max(0, file.size - END.size - _MAX_COMMENT)
    tail = file.read_at(tail_offset, file.size - tail_offset)
    at = tail.rfind(END_MAGIC)
    if at < 0 or at + END.size > len(tail):
        return DamagedFileError(
            "the archive has no end record", path=file.name, hint="the file is truncated"
        )
    comment = END.unpack_from(tail, at)[-1]
    junk = len(tail) - at - END.size - comment
    if junk > 0:
        return _damaged(file, f"{junk} bytes follow the end of the archive")
    if junk < 0:
        return _damaged(file, "the comment of the archive is truncated")
    return _damaged(file, f"the archive has a comment of {comment} bytes")


def _find_directory64(
    file: Source, locator: bytes, directory: _Directory
) -> tuple[int, _Directory]:
    """Return where the zip64 end record starts, and what it says about the directory."""
    _, disk, end, disks = LOCATOR.unpack(locator)
    expected = file.size - END.size - LOCATOR.size - END64.size
    if disk or disks != 1 or end != expected or expected < 0:
        raise _damaged(file, "the zip64 end record is not where its locator says")
    (magic, size, _, _, disk, start_disk, count_here, count, nbytes, offset) = END64.unpack(
        file.read_at(end, END64.size)
    )
    if magic != END64_MAGIC or size != END64.size - 12:
        raise _damaged(file, "the zip64 end record is damaged")
    if disk or start_disk or count_here != count:
        raise _damaged(file, "the archive is split over several files")
    for narrow, wide, saturated in (
        (directory.n_records, count, SATURATED_16),
        (directory.nbytes, nbytes, SATURATED_32),
        (directory.offset, offset, SATURATED_32),
    ):
        if narrow not in (wide, saturated):
            raise _damaged(file, "the two end records of the archive contradict each other")
    return end, _Directory(offset, nbytes, count)


def _parse_directory(file: Source, directory: _Directory) -> list[_Entry]:
    data = file.read_at(directory.offset, directory.nbytes)
    entries: list[_Entry] = []
    at = 0
    for _ in range(directory.n_records):
        if at + CENTRAL.size > len(data) or not data.startswith(CENTRAL_MAGIC, at):
            raise _damaged(file, f"the central directory is damaged at byte {at} of it")
        fields = CENTRAL.unpack_from(data, at)
        name_nbytes, extra_nbytes, comment_nbytes = fields[10:13]
        at += CENTRAL.size
        following = at + name_nbytes + extra_nbytes + comment_nbytes
        if following > len(data):
            raise _damaged(file, f"the central directory is damaged at byte {at} of it")
        name = _decode_name(file, data[at : at + name_nbytes])
        extra = data[at + name_nbytes : at + name_nbytes + extra_nbytes]
        entries.append(_make_entry(file, name, fields, extra))
        at = following
    if at != len(data):
        raise _damaged(file, f"the directory goes on after its {directory.n_records} records")
    return entries


def _decode_name(file: Source, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(file, f"the record name {raw!r} is not UTF-8") from error


def _make_entry(file: Source, name: str, fields: tuple[int, ...], extra: bytes) -> _Entry:
    _, _, _, flags, method, _, _, crc32, stored_nbytes, nbytes, *_, attributes, offset = fields
    disk = fields[13]
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8):
        raise _damaged(file, f"the record has flags {flags:#06x}: encrypted or unknown", name)
    if method not in (STORED, DEFLATED):
        raise _damaged(file, f"the record is compressed by the unknown method {method}", name)
    if disk:
        raise _damaged(file, "the record is said to be in another file", name)
    nbytes, stored_nbytes, offset = _widen(
        file, name, extra, (nbytes, stored_nbytes, offset), "the directory"
    )
    if attributes & _FOLDER and nbytes:  # torch would leave its memory uninitialised
        raise _damaged(file, "the record is marked as a folder but has bytes", name)
    if method == STORED and stored_nbytes != nbytes:
        raise _damaged(
            file, f"the record is stored as {stored_nbytes} bytes but claims {nbytes}", name
        )
    return _Entry(name, flags, method, crc32, stored_nbytes, nbytes, offset)


def _widen(
    file: Source, name: str, extra: bytes, values: tuple[int, int, int], where: str
) -> tuple[int, int, int]:
    """Replace saturated 32-bit values by those of the zip64 field in `extra`, in its order."""
    if SATURATED_32 not in values:
        return values
    wide = _find_extra(file, name, extra, where)
    widened: list[int] = []
    for value in values:
        if value != SATURATED_32:
            widened.append(value)
            continue
        if len(wide) < 8:
            raise _damaged(file, f"a 64-bit value is missing in {where}", name)
        widened.append(int.from_bytes(wide[:8], "little"))
        wide = wide[8:]
    return widened[0], widened[1], widened[2]


def _find_extra(file: Source, name: str, extra: bytes, where: str) -> bytes:
    """Return the content of the only zip64 field in `extra`; empty if there is none."""
    found: list[bytes] = []
    while extra:
        kind, nbytes = struct.unpack_from("<HH", extra) if len(extra) >= 4 else (0, len(extra))
        if 4 + nbytes > len(extra):
            raise _damaged(file, f"the extra fields in {where} are damaged", name)
        if kind == ZIP64_EXTRA:
            found.append(extra[4 : 4 + nbytes])
        extra = extra[4 + nbytes :]
    if len(found) > 1:
        raise _damaged(file, f"{where} has two zip64 fields", name)
    return found[0] if found else b""


def _check_names(file: Source, entries: list[_Entry]) -> str:
    """Return the folder that everything is in; raises
    DamagedFileError for a name that is not to be.
    """
    if not entries:
        raise _damaged(file, "the archive has no records")
    root, slash, _ = entries[0].name.partition("/")
    if not slash:
        raise _damaged(file, "the record is in no folder", root)
    seen: set[bytes] = set()
    for entry in entries:
        name = entry.name
        if "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise _damaged(file, "the name of the record is not allowed", repr(name))
        if not name.startswith(f"{root}/"):
            raise _damaged(file, f"the record is not in the folder '{root}' of the others", name)
        if name.endswith("/") and entry.nbytes:
            raise _damaged(file, "the record is a folder but has bytes", name)
        # bytes.lower is ASCII only, as miniz compares names
        folded = name.encode().lower()
        if folded in seen:
            raise _damaged(file, "two records have this name, case ignored", name)
        seen.add(folded)
    return root


def _locate(file: Source, entries: Sequence[_Entry]) -> list[tuple[int, int]]:
    """Return where each entry's stored bytes start, and where its record ends (descriptor incl.).

    All local headers are read at once, then all descriptors, so that a source far away is asked
    twice and not twice a record.
    """
    for entry in entries:
        if entry.header_offset + LOCAL.size > file.size:
            raise _damaged(file, "the record lies outside the file", entry.name)
    heads = file.read_ranges([_head_range(file, entry) for entry in entries])
    starts = [_data_offset(file, entry, head) for entry, head in zip(entries, heads, strict=True)]
    ends = [start + entry.stored_nbytes for entry, start in zip(entries, starts, strict=True)]
    followed = [place for place, entry in enumerate(entries) if entry.flags & FLAG_DESCRIPTOR]
    descriptors = file.read_ranges(
        [(ends[place], min(_DESCRIPTOR64, file.size - ends[place])) for place in followed]
    )
    for place, descriptor in zip(followed, descriptors, strict=True):
        ends[place] += _descriptor_nbytes(file, entries[place], descriptor)
    return list(zip(starts, ends, strict=True))


def _head_range(file: Source, entry: _Entry) -> tuple[int, int]:
    """Return where the local header and the name behind it lie: their offset and length."""
    offset = entry.header_offset
    return offset, min(LOCAL.size + len(entry.name.encode()), file.size - offset)


def _data_offset(file: Source, entry: _Entry, head: bytes) -> int:
    """Return where the stored bytes start; `head`, the local header, must agree with the entry."""
    name = entry.name
    raw_name = name.encode()
    magic, _, flags, method, _, _, crc32, stored, nbytes, name_nbytes, extra_nbytes = LOCAL.unpack(
        head[: LOCAL.size]
    )
    if magic != LOCAL_MAGIC:
        raise _damaged(file, "the directory points at something that is not a record", name)
    if name_nbytes != len(raw_name) or head[LOCAL.size :] != raw_name:
        raise _damaged(file, "the record has another name than in the directory", name)
    if (flags, method) != (entry.flags, entry.method):
        raise _damaged(file, "the record has other flags or method than in the directory", name)
    start = entry.header_offset + LOCAL.size + name_nbytes + extra_nbytes
    if start + entry.stored_nbytes > file.size:
        raise _damaged(file, "the record lies outside the file", name)
    if SATURATED_32 in (stored, nbytes):
        extra = file.read_at(start - extra_nbytes, extra_nbytes)
        nbytes, stored, _ = _widen(file, name, extra, (nbytes, stored, 0), "the record's header")
    said = crc32, stored, nbytes
    # A streaming writer does not know them yet and says 0; they follow in a descriptor.
    unknown = flags & FLAG_DESCRIPTOR and not any(said)
    if not unknown and said != (entry.crc32, entry.stored_nbytes, entry.nbytes):
        raise _damaged(file, "the record contradicts the directory", name)
    return int(start)


def _descriptor_nbytes(file: Source, entry: _Entry, data: bytes) -> int:
    """Return the length of the data descriptor in `data`, which must agree with the directory."""
    known = entry.crc32, entry.stored_nbytes, entry.nbytes
    # The longer form first: of a record below 4 GiB it cannot be mistaken for the shorter one,
    # whose length it would follow with zeros.
    if data == struct.pack("<4sIQQ", DESCRIPTOR_MAGIC, *known):
        return _DESCRIPTOR64
    if entry.stored_nbytes < SATURATED_32 and entry.nbytes < SATURATED_32:
        short = struct.pack("<III", *known)
        if data.startswith(DESCRIPTOR_MAGIC + short):
            return 16
        if data.startswith(short):
            return 12
    raise _damaged(file, "what follows the record contradicts the directory", entry.name)


def _check_disjoint(file: Source, spans: list[tuple[int, int, str]], limit: int) -> int:
    """Return bytes before the directory at `limit` that no record
    takes; records may not overlap.
    """
    unused = at = 0
    for start, end, name in sorted(spans):
        if start < at:
            raise _damaged(file, "the record overlaps another", name)
        unused += start - at
        at = end
    if at > limit:
        raise _damaged(file, "the last record overlaps the directory")
    return unused + limit - at
