"""The members of a truncated or damaged archive of other files, as far as they are left."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, Final, TypeAlias, cast

from ckpt_surgery.errors import DamagedFileError, LimitExceededError, ReadError
from ckpt_surgery.fileio import CHUNK, FileSource, PartSource, Source, looks_like_zip
from ckpt_surgery.fileio.zip_salvage import FoundRecord, find_records
from ckpt_surgery.fileio.zip_structs import DEFLATED, STORED
from ckpt_surgery.formats.archive_members import SEPARATOR, is_of_torch
from ckpt_surgery.formats.streams import is_compressed, left_of, spooled
from ckpt_surgery.formats.tar_header import TAR_BLOCK, is_tar_header

_STORAGE: Final = re.compile(r"[^/]+/(?:data|constants)/\d+")  # of torch's own
_MOST: Final = 1 << 30  # bytes that a member may be inflated to
_PAX_PATH: Final = re.compile(rb"(?:^|\n)\d+ path=([^\n]+)\n")

Opener: TypeAlias = Callable[[], Source]


def left_members(source: Source) -> dict[str, Opener]:
    """Return what opens what is left of each member, by its name; none for what is no archive, or
    torch's own.

    What is stored is a part of `source`, cut where that ends. Raises `ReadError` if it cannot be
    read, and `LimitExceededError` when a member is opened that inflates to too much.
    """
    if looks_like_zip(source):
        found = dict(_of_zip(source))
    elif source.size >= TAR_BLOCK and is_tar_header(source.read_at(0, TAR_BLOCK)):
        found = dict(_of_tar(source))
    else:
        return {}
    return {} if is_of_torch(list(found)) or any(map(_STORAGE.fullmatch, found)) else found


def open_left(path: str) -> Source | None:
    """Open what is left of ``ARCHIVE:MEMBER``; None if there is nothing.

    Raises `ReadError` if the archive cannot be read.
    """
    for at in (at for at, sign in enumerate(path) if sign == SEPARATOR and at):
        if not os.path.isfile(path[:at]):  # noqa: PTH113
            continue
        whole: Source = FileSource.open(path[:at])
        inside = left_of(whole)[0] if is_compressed(whole) else whole
        opener = left_members(inside).get(path[at + 1 :])
        return None if opener is None else opener()
    return None


def _of_zip(source: Source) -> Iterator[tuple[str, Opener]]:
    for record in outer(find_records(source)):
        left = source.size - record.start
        stored = left if record.stored_nbytes is None else min(record.stored_nbytes, left)
        label = f"{source.name}{SEPARATOR}{record.name}"
        if record.method == STORED:
            yield record.name, partial(PartSource, source, record.start, stored, name=label)
        elif record.method == DEFLATED:
            yield record.name, partial(inflated, source, record, stored, label)


def outer(found: Sequence[FoundRecord]) -> Iterator[FoundRecord]:
    """Yield the members among records: those that lie inside no other one."""
    end = 0
    for record in found:
        if record.start >= end and record.name and not record.name.endswith("/"):
            yield record
            end = record.start + (record.stored_nbytes or 0)


def inflated(source: Source, record: FoundRecord, stored: int, label: str) -> Source:
    """Return what a record inflates to, up to the place where it ends or is damaged."""
    raw = _Pieces(_inflating(source, record, stored))
    return spooled(cast("IO[bytes]", io.BufferedReader(raw, CHUNK)), source, label)


def _inflating(source: Source, record: FoundRecord, stored: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    nbytes = 0
    step = 1 << 10  # of an error at most so much is lost
    for start in range(record.start, record.start + stored, CHUNK):
        data = source.read_at(start, min(CHUNK, record.start + stored - start))
        for at in range(0, len(data), step):
            try:
                piece = inflate.decompress(data[at : at + step])
            except zlib.error:
                return
            nbytes += len(piece)
            if nbytes > _MOST:
                raise LimitExceededError(
                    f"the member inflates to more than {_MOST} bytes",
                    path=source.name,
                    entry=record.name,
                )
            yield piece


class _Pieces(io.RawIOBase):
    """Pieces one after another, as a file object."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._left and (piece := next(self._pieces, None)) is not None:
            self._left = memoryview(piece)
        nbytes = min(len(view), len(self._left))
        view[:nbytes] = self._left[:nbytes]
        self._left = self._left[nbytes:]
        return nbytes


def _of_tar(source: Source) -> Iterator[tuple[str, Opener]]:
    """Yield members up to the first header that is none."""
    at = 0
    name = ""
    while at + TAR_BLOCK <= source.size:
        try:
            header = tarfile.TarInfo.frombuf(
                source.read_at(at, TAR_BLOCK), "utf-8", "surrogateescape"
            )
        except tarfile.HeaderError:
            return
        if header.size < 0:  # the next header would be this one, or one before it
            return
        start = at + TAR_BLOCK
        there = max(min(header.size, source.size - start), 0)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            name = source.read_at(start, min(there, 1 << 16)).rstrip(b"\0").decode(errors="replace")
        elif header.type == tarfile.XHDTYPE:
            said = _PAX_PATH.search(source.read_at(start, min(there, 1 << 16)))
            name = said[1].decode(errors="replace") if said else name
        elif header.isreg():
            name = (name or header.name).removeprefix("./")
            label = f"{source.name}{SEPARATOR}{name}"
            yield name, partial(PartSource, source, start, there, name=label)
            name = ""
        at = start + -(-header.size // TAR_BLOCK) * TAR_BLOCK


def cut_members(source: Source) -> list[tuple[str, int]] | None:
    """Return the members of a zip archive that end before their last byte, and where they begin.

    None for what is no archive of other files.
    """
    if not looks_like_zip(source) or not left_members(source):
        return None
    return [
        (record.name, record.start)
        for record in find_records(source)
        if record.stored_nbytes is None or record.start + record.stored_nbytes > source.size
    ]


def only_checkpoint(source: Source, readable: list[str]) -> str:
    """Return the one member that can be salvaged. Raises `ReadError` unless there is one."""
    if len(readable) == 1:
        return readable[0]
    if not readable:
        raise DamagedFileError(
            "nothing can be salvaged: no checkpoint is left in the archive", path=source.name
        )
    names = ", ".join(f"'{name}'" for name in readable[:8])
    raise ReadError(
        f"there are several checkpoints in the archive: {names}",
        path=source.name,
        hint=f"name one as FILE: '{source.name}{SEPARATOR}{readable[0]}'",
    )
