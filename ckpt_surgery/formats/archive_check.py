"""What is wrong with an archive of other files: its structure, and the checksum of each member.

`archive_members` finds the members as the standard library's readers do, which look away from much:
here every header is compared with the directory, and nothing may lie between members or after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from zipfile import ZipFile, ZipInfo

from ckpt_surgery.checkpoint.findings import Finding, Rule, Severity
from ckpt_surgery.errors import CkptError, ReadError
from ckpt_surgery.fileio import ByteRange, Source, looks_like_zip
from ckpt_surgery.fileio.zip_structs import (
    DESCRIPTOR_MAGIC,
    END,
    END_MAGIC,
    FLAG_DESCRIPTOR,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR,
    LOCATOR_MAGIC,
    SATURATED_16,
    SATURATED_32,
)
from ckpt_surgery.formats.archive_members import Member, is_of_torch, members_of
from ckpt_surgery.formats.streams import decompressed, file_of, is_compressed
from ckpt_surgery.formats.tar_header import TAR_BLOCK

_DESCRIPTORS: Final = (12, 16, 20, 24)  # bytes, with and without signature, of 32 and 64 bits
_LEAST_END: Final = 2 * TAR_BLOCK  # zeros behind the last member of a tar archive


@dataclass(slots=True)
class Archive:
    """An archive as it lies in `source`, which is what a compressed stream holds.

    `is_checked`: it has a checksum of every byte of its members. `sums` are members that are stored
    as they are, with theirs; the bytes of others were compared when they were read. `files` are the
    members as files, of those that can be read.
    """

    source: Source
    kind: str
    is_checked: bool
    findings: list[Finding] = field(default_factory=list)
    sums: list[tuple[str, ByteRange]] = field(default_factory=list)
    files: dict[str, Source] = field(default_factory=dict)


def look_into(source: Source) -> Archive | None:
    """Return an archive of other files, and what is odd about it.

    None for what is no archive, for torch's own, and for one that no reader can list.
    """
    inside = source
    try:
        if is_compressed(source):
            inside = decompressed(source)
        members = members_of(inside)
    except CkptError:
        return None
    if not members or is_of_torch([member.name for member in members]):
        return None
    is_zip = looks_like_zip(inside)
    is_checked = is_zip or inside is not source  # a tar archive has none, a stream has one
    found = Archive(inside, "zip" if is_zip else "tar", is_checked)
    found.findings += _twice(members)
    found.findings += check_zip(inside) if is_zip else _of_tar(inside, members)
    for member in members:
        _open(found, member, source.name)
    return found


def _open(archive: Archive, member: Member, name: str) -> None:
    """Open a member as a file, and note how its bytes can be compared."""
    if member.is_encrypted:
        what = "the member is encrypted, and was not looked at"
        archive.findings.append(_finding("warning", what, member.name, "structure"))
        return
    try:
        file = member.opened(f"{name}:{member.name}")
    except ReadError as error:
        archive.findings.append(_finding("error", error.message, member.name, "damaged"))
        return
    archive.files.setdefault(member.name, file)
    if member.is_stored and member.crc32 is not None:
        archive.sums.append(
            (member.name, ByteRange(file, 0, file.size, member.crc32, record=member.name))
        )


def _finding(severity: Severity, message: str, entry: str | None, rule: Rule) -> Finding:
    return Finding(severity, message, entry, None, rule)


def _twice(members: Sequence[Member]) -> Iterator[Finding]:
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            yield _finding("error", "two members have this name", member.name, "damaged")
        seen.add(member.name)


def check_zip(source: Source) -> Iterator[Finding]:
    """Yield where headers contradict the directory, and bytes that no member takes."""
    archive = ZipFile(file_of(source))
    spans: list[tuple[int, int]] = []
    for info in archive.infolist():
        start, what = _header(source, info)
        if what:
            yield _finding("error", what, info.orig_filename, "damaged")
            continue
        spans.append((info.header_offset, start + info.compress_size))
    yield from _between(source, sorted(spans), archive)
    yield from _endcheck_zip(source, archive)


def _header(source: Source, info: ZipInfo) -> tuple[int, str]:
    """Return where a member's bytes start, and how its header contradicts the directory."""
    at = info.header_offset
    if not 0 <= at <= source.size - LOCAL.size:
        return at, "the directory points out of the file"
    (magic, needs, flags, method, time, date, crc32, stored, nbytes, n_name, n_extra) = (
        LOCAL.unpack(source.read_at(at, LOCAL.size))
    )
    start = at + LOCAL.size + n_name + n_extra
    if magic != LOCAL_MAGIC or start + info.compress_size > source.size:
        return start, "the directory points at something that is not the member"
    name = source.read_at(at + LOCAL.size, n_name)
    if name != _raw_name(info):
        return start, "the member has another name than in the directory"
    year, month, day, hour, minute, second = info.date_time
    when = (hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day)
    said = (needs, flags, method, time, date)
    if said != (info.extract_version, info.flag_bits, info.compress_type, *when):
        return start, "the header of the member contradicts the directory"
    unknown = flags & FLAG_DESCRIPTOR and not any((crc32, stored, nbytes))
    for found, known in (
        (crc32, info.CRC), (stored, info.compress_size), (nbytes, info.file_size)
    ):  # fmt: skip
        if found != known and not unknown and found != SATURATED_32:
            return start, "the header of the member contradicts the directory"
    return start, ""


def _raw_name(info: ZipInfo) -> bytes:
    """Return the name as the directory has it, of which `zipfile` keeps only the text."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _between(source: Source, spans: list[tuple[int, int]], archive: ZipFile) -> Iterator[Finding]:
    """Yield bytes before, between and behind members that are no data descriptor of one."""
    position = hidden = 0
    for start, end in [*spans, (archive.start_dir, archive.start_dir)]:
        gap = start - position
        if gap < 0:
            yield _finding("error", "members overlap", None, "damaged")
        elif gap and not (gap in _DESCRIPTORS and position and _descriptor(source, position)):
            hidden += gap
        position = end
    if hidden:
        what = f"{hidden} bytes lie between members, where nothing refers to them"
        yield _finding("warning", what, None, "hidden-bytes")


def _descriptor(source: Source, at: int) -> bool:
    """Say whether a data descriptor with its signature stands at byte `at`."""
    return source.read_at(at, 4) == DESCRIPTOR_MAGIC


def _endcheck_zip(source: Source, archive: ZipFile) -> Iterator[Finding]:
    """Yield how the end record contradicts the directory, and what follows it."""
    at = source.size - END.size - len(archive.comment)
    magic, disk, start_disk, here, count, nbytes, offset, _ = END.unpack(
        source.read_at(max(at, 0), END.size)
    )
    if magic != END_MAGIC:
        yield _finding("warning", "bytes follow the end of the archive", None, "hidden-bytes")
        return
    locator = source.read_at(max(at - LOCATOR.size, 0), 4)
    if locator == LOCATOR_MAGIC:  # of 64 bits, which `zipfile` reads and compares
        return
    members = len(archive.infolist())
    right = (0, 0, members & SATURATED_16, members & SATURATED_16, at - archive.start_dir)
    if (disk, start_disk, here, count, nbytes) != right or offset != archive.start_dir:
        what = "the end of the archive contradicts its directory"
        yield _finding("error", what, None, "damaged")


def _of_tar(source: Source, members: Sequence[Member]) -> Iterator[Finding]:
    """Yield where the archive ends too early, or goes on where its reader stops."""
    import tarfile

    end = 0
    with tarfile.open(fileobj=file_of(source), mode="r:") as archive:
        for info in archive:
            stored = info.size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
            last = info.offset_data + stored
            end = -(-last // TAR_BLOCK) * TAR_BLOCK
            if last > source.size:
                what = "the archive ends inside the member"
                yield _finding("error", what, info.name, "truncated")
                return
            padding = source.read_at(last, min(end, source.size) - last)
            if any(padding):
                what = f"{len(padding)} bytes behind it are not zero"
                yield _finding("warning", what, info.name, "hidden-bytes")
    if source.size - end < _LEAST_END:
        what = f"the archive has no end: {len(members)} members are whole"
        yield _finding("error", what, None, "truncated")
    at = next((at for at in range(end, source.size, 1 << 20) if _not_zero(source, at)), None)
    if at is not None:
        what = f"behind byte {end} no header of a member follows, and no end of the archive"
        yield _finding("error", what, None, "damaged")


def _not_zero(source: Source, at: int) -> bool:
    return any(source.read_at(at, min(1 << 20, source.size - at)))
