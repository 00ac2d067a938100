"""The records of a zip archive, as values."""

from __future__ import annotations

import zlib
from dataclasses import field

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio.ranges import ByteRange
from ckpt_surgery.fileio.sources import Source
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """A record of an archive.

    `name` is its name below the root folder, `data` its bytes as they are stored, `nbytes` and
    `crc32` the length in bytes and the checksum of what they decode to, as the directory says
    (torch writes 0 where it was told not to compute one). `header_offset` is the byte at which
    its local header starts.
    """

    name: str
    data: ByteRange
    compressed: bool
    nbytes: int
    crc32: int
    header_offset: int

    def read(self, limit: int) -> bytes:
        """Return the decoded bytes, of which there may be `limit`.

        Raises LimitExceededError if there are more, DamagedFileError if they do not decode to
        `nbytes` bytes or are not those of the checksum, ReadError if they cannot be read.
        """
        if self.nbytes > limit:
            raise LimitExceededError(
                f"the record has {self.nbytes} bytes, more than {limit}",
                path=self.data.source.name,
                entry=self.name,
            )
        try:
            return self._inflate() if self.compressed else self.data.read()
        except DamagedFileError as error:
            error.entry = error.entry or self.name
            raise

    def _inflate(self) -> bytes:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        parts: list[bytes] = []
        left = self.data.nbytes
        room = self.nbytes + 1  # zlib takes 0 for "no limit", so one byte more than may come
        try:
            for chunk in self.data.chunks():
                parts.append(inflate.decompress(chunk, room))
                room -= len(parts[-1])
                left -= len(chunk)
                if inflate.eof or not room:
                    break
        except zlib.error as error:
            raise self._damaged(f"cannot be inflated: {error}") from error
        if room != 1 or left or not inflate.eof or inflate.unused_data:
            raise self._damaged(f"does not inflate to the {self.nbytes} bytes that it claims")
        data = b"".join(parts)
        if self.crc32 and zlib.crc32(data) != self.crc32:
            raise self._damaged("does not inflate to the bytes of its checksum")
        return data

    def _damaged(self, message: str) -> DamagedFileError:
        return DamagedFileError(message, path=self.data.source.name, entry=self.name)


@dataclass(frozen=True, slots=True)
class ZipArchive:
    """The records of a zip archive, in the order of its directory.

    `root` is the folder that all of them are in. `unused_nbytes` counts the bytes that belong to
    no record and to no structure of the archive.
    """

    file: Source
    root: str
    records: tuple[ZipRecord, ...]
    unused_nbytes: int = 0
    _by_name: dict[bytes, ZipRecord] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {record.name.encode().lower(): record for record in self.records}
        object.__setattr__(self, "_by_name", by_name)

    def get(self, name: str) -> ZipRecord | None:
        """Return the record of that exact name below the root folder, or None.

        Raises DamagedFileError for one that has another case: torch, which compares names as miniz
        does, would take it.
        """
        record = self._by_name.get(name.encode().lower())  # of bytes only ASCII is lowered
        if record is not None and record.name != name:
            raise DamagedFileError(
                f"torch would take the record for '{name}', which has another case",
                path=self.file.name,
                entry=record.name,
            )
        return record
