"""Put a member's new content back into its archive, whose other members stay as they are.

Their bytes are copied as they lie, compressed or not, in their order. The new content is written to
a temporary file first, since its size and checksum stand in front of it; in a zip archive it is
compressed as the old one was. A compressed tar archive is compressed again as a whole.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import IO, Any, BinaryIO, Final, cast

from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import ByteRange, Bytes, ByteSource, FileSource, Source
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.file_sink import FileSink
from ckpt_surgery.fileio.sink import Progress, Sink
from ckpt_surgery.formats.streams import file_of, is_compressed
from ckpt_surgery.formats.tar_header import TAR_BLOCK

_MOST_OCTAL: Final = 8**11
_SIZE_AT, _SUM_AT = 124, 148
_UTF8: Final = 0x800
_SIZES_FOLLOW: Final = 0x08
_ZIP64: Final = 1
_GZIP_LEVELS: Final = {2: 9, 4: 1}
_GZIP_NAME: Final = 0x08
_GZIP_FLAGS_OF_MORE: Final = 0x04  # a field between the header and the name
_COPIED: Final = 1 << 20


@contextmanager
def new_content(
    archive: FileSource,
    member: zipfile.ZipInfo | tarfile.TarInfo,
    whole: Source,
    *,
    inputs: Iterable[Source],
    fsync: bool | None,
    progress: Progress | None,
) -> Iterator[Sink]:
    """Give a sink for what a member becomes; the archive is replaced when the block ends.

    `whole` is what `archive` holds, decompressed. The archive is replaced as `atomic_output` does
    it, or not at all. Raises what that raises, and `ReadError` for an archive that would not come
    out as it is.
    """
    if isinstance(member, zipfile.ZipInfo):
        _require_plain_names(whole)
    with tempfile.TemporaryFile() as spool:
        sink = FileSink(spool.fileno(), name=archive.name, progress=progress)
        yield sink
        sink.finish()
        spool.seek(0)
        content = FileSource.from_stream(cast("BinaryIO", spool), name=archive.name)
        with (
            closing(content),
            atomic_output(
                archive.path or archive.name, replacing=archive, inputs=inputs, fsync=fsync
            ) as out,
        ):
            if isinstance(member, zipfile.ZipInfo):
                _write_zip(whole, member, content, out)
            elif is_compressed(archive):
                with _compressor(archive, _Stream(out)) as stream:
                    for piece in _pieces_of_tar(whole, member, content):
                        for chunk in piece.chunks():
                            stream.write(chunk)
            else:
                for piece in _pieces_of_tar(whole, member, content):
                    out.copy(piece)


class _Stream:
    """A sink as a file object that is written forward and says where it is."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: Any) -> int:
        self._sink.write(data)
        return len(data)

    def tell(self) -> int:
        return self._sink.position

    def flush(self) -> None:
        """Do nothing: the sink sees to it."""


# --- tar


def _pieces_of_tar(whole: Source, member: tarfile.TarInfo, content: Source) -> Sequence[ByteSource]:
    end = member.offset_data + _padded(member.size)
    header = _tar_header(whole, member, content.size)
    padding = bytes(_padded(content.size) - content.size)
    return (
        ByteRange(whole, 0, member.offset),
        Bytes(header),
        ByteRange(content, 0, content.size),
        Bytes(padding),
        ByteRange(whole, end, whole.size - end),
    )


def _padded(nbytes: int) -> int:
    return -(-nbytes // TAR_BLOCK) * TAR_BLOCK


def _tar_header(whole: Source, member: tarfile.TarInfo, nbytes: int) -> bytes:
    """Return the member's header, and what extends it, with another size."""
    if "size" in member.pax_headers:
        changed = copy.copy(member)
        changed.size = nbytes
        changed.pax_headers = {k: v for k, v in member.pax_headers.items() if k != "size"}
        return changed.tobuf(tarfile.PAX_FORMAT)
    blocks = bytearray(whole.read_at(member.offset, member.offset_data - member.offset))
    block = memoryview(blocks)[-TAR_BLOCK:]
    octal = f"{nbytes:011o}\0".encode()
    size = octal if nbytes < _MOST_OCTAL else b"\x80" + nbytes.to_bytes(11, "big")
    block[_SIZE_AT : _SIZE_AT + 12] = size
    block[_SUM_AT : _SUM_AT + 8] = b" " * 8
    block[_SUM_AT : _SUM_AT + 8] = f"{sum(block):06o}\0 ".encode()
    return bytes(blocks)


def _compressor(archive: Source, out: _Stream) -> Any:
    """Return a stream that compresses as the archive is compressed, as far as that can be known."""
    start = archive.read_at(0, min(archive.size, _COPIED))
    raw = cast("IO[bytes]", out)
    if start.startswith(b"\x1f\x8b"):
        flags, level = start[3], _GZIP_LEVELS.get(start[8], 6)
        plain = flags & _GZIP_NAME and not flags & _GZIP_FLAGS_OF_MORE
        name = start[10 : start.find(b"\0", 10)].decode("latin-1") if plain else ""
        modified = int.from_bytes(start[4:8], "little")
        return gzip.GzipFile(name, "wb", level, cast("Any", out), modified)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw, "wb", compresslevel=int(start[3:4]))
    if start.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(raw, "wb")
    import zstandard

    return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)


# --- zip


def _require_plain_names(whole: Source) -> None:
    """Raise ReadError for names that `zipfile` would not write as they are."""
    archive = zipfile.ZipFile(file_of(whole))
    for info in archive.infolist():
        plain = info.filename.isascii() or info.flag_bits & _UTF8
        if not plain or info.filename != info.orig_filename:
            raise ReadError(
                f"the archive has a name that is no UTF-8: '{info.filename}'",
                path=whole.name,
                hint="give -o FILE: the archive cannot be written again as it is",
            )


def _write_zip(whole: Source, member: zipfile.ZipInfo, content: Source, out: Sink) -> None:
    old = zipfile.ZipFile(file_of(whole))
    new = zipfile.ZipFile(cast("IO[bytes]", _Stream(out)), "w")
    listed = old.infolist()
    places = sorted(info.header_offset for info in listed)
    ends = dict(zip(places, [*places[1:], old.start_dir], strict=True))
    if len(ends) != len(listed):
        raise ReadError("two members of the archive are the same bytes", path=whole.name)
    if places:
        out.copy(ByteRange(whole, 0, places[0]))
    moved: dict[int, zipfile.ZipInfo] = {}
    for info in sorted(listed, key=lambda info: info.header_offset):
        at = info.header_offset
        if at == member.header_offset:
            moved[at] = _written_anew(info, content, out)
        else:
            moved[at] = _without_zip64(info)
            moved[at].header_offset = out.position
            out.copy(ByteRange(whole, at, ends[at] - at))
    new.filelist = [moved[info.header_offset] for info in listed]
    new.comment = old.comment
    new.start_dir = out.position
    new.close()  # writes the directory


def _written_anew(info: zipfile.ZipInfo, content: Source, out: Sink) -> zipfile.ZipInfo:
    """Write a member of the same name, time and compression, and return its entry."""
    found = _without_zip64(info)
    with tempfile.TemporaryFile() as spool:
        with zipfile.ZipFile(spool, "w", info.compress_type) as scratch:
            made = zipfile.ZipInfo("a")
            made.compress_type = info.compress_type
            made.file_size = content.size
            with scratch.open(made, "w", force_zip64=True) as stream:
                shutil.copyfileobj(file_of(content), stream, _COPIED)
            packed_at = scratch.start_dir - made.compress_size
        packed = FileSource(_dup(spool), name=out.name, path=None)
        with closing(packed):
            found.CRC, found.file_size = made.CRC, made.file_size
            found.compress_size = made.compress_size
            found.flag_bits = info.flag_bits & _UTF8 | made.flag_bits & ~(_SIZES_FOLLOW | _UTF8)
            found.header_offset = out.position
            out.write(found.FileHeader())
            out.copy(ByteRange(packed, packed_at, made.compress_size))
    return found


def _dup(file: IO[bytes]) -> int:
    file.flush()
    return os.dup(file.fileno())


def _without_zip64(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Return a copy whose large sizes are said anew when it is written."""
    found, kept, rest = copy.copy(info), b"", info.extra
    while len(rest) >= 4:
        end = 4 + int.from_bytes(rest[2:4], "little")
        if int.from_bytes(rest[:2], "little") != _ZIP64:
            kept += rest[:end]
        rest = rest[end:]
    found.extra = kept + rest
    return found
