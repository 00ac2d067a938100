"""numpy's files: ``.npy`` of one array, ``.npz`` of several, as state dicts.

An ``.npy`` file is a magic, a version, the length of a header, the header (a literal of Python) and
the elements; an ``.npz`` file a zip archive of these (``numpy.lib.format``). Arrays of objects are
pickles; they are named and not read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import IO, Final, cast

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Tensor
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, MemorySource, Source, looks_like_zip
from ckpt_surgery.formats.archive_members import BROKEN
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.streams import SourceFile
from ckpt_surgery.pickles import Limits
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.arrays import array_tensor, dtype_of_code
from ckpt_surgery.torch_objects.kinds import role_of

_MAGIC: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 1 << 16
# ``numpy.lib.format`` writes the three keys in this order; numpy of Python 2 wrote sizes as ``3L``.
_HEADER: Final = re.compile(
    r"\s*\{'descr': (?:'(?P<code>[^'\\]+)'|(?P<fields>\[.*\])), 'fortran_order': "
    r"(?P<columns>True|False), 'shape': \((?P<shape>[\dL, ]*)\),? ?\}\s*",
    re.DOTALL,
)
_LOCAL_HEADER: Final = 30
_NO_END: Final = "file is not a zip file"  # as `zipfile` calls it
_TRUNCATED: Final = "the file is truncated"
ARRAY_SUFFIX: Final = ".npy"
_ALONE: Final = "arr_0"
_ARRAY: Final = "numpy.ndarray of "
_OBJECTS: Final = "objects"
_OF_OBJECTS: Final = _ARRAY + _OBJECTS
"""What numpy calls an array that was given no name."""


class Npy(Format):
    """One array."""

    name = "npy"
    title = "a numpy array"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins with numpy's magic."""
        return source.size > len(_MAGIC) and source.read_at(0, len(_MAGIC)) == _MAGIC

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the array. Raises `DamagedFileError` if it is not what its header says."""
        del limits
        return _checkpoint(self.name, source, [(_ALONE, ByteRange(source, 0, source.size))])

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield an error for an array of objects."""
        return _pickles(checkpoint)


@dataclass(frozen=True, slots=True)
class _Files:
    """The files in an archive by their names, each with the checksum that the archive has of it."""

    files: tuple[tuple[str, ByteRange], ...]


class Npz(Format):
    """A zip archive of arrays."""

    name = "npz"
    title = "a numpy archive"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it is a zip archive whose first member is called an array."""
        if not looks_like_zip(source):
            return False
        start = source.read_at(0, min(source.size, 1 << 12))
        length = int.from_bytes(start[26:28], "little")
        return start[_LOCAL_HEADER : _LOCAL_HEADER + length].endswith(ARRAY_SUFFIX.encode())

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the arrays; those that are compressed are decompressed into memory.

        Raises `DamagedFileError` for an archive or an array that is broken, and
        `LimitExceededError` for members that are far more than the file.
        """
        del limits
        members = list(_members(source))
        files = _Files(tuple((f"{name}{ARRAY_SUFFIX}", data) for name, data in members))
        return replace(_checkpoint(self.name, source, members), container=files)

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield an error for each array of objects, and what of the archive is not as it says."""
        from ckpt_surgery.formats.archive_check import check_zip

        yield from _pickles(checkpoint)
        yield from check_zip(checkpoint.file)

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return the files in the archive, which has a checksum of each."""
        del self
        container = checkpoint.container
        return container.files if isinstance(container, _Files) else ()


def _pickles(checkpoint: Checkpoint) -> Iterator[Finding]:
    for other in checkpoint.others:
        if other.type == _OF_OBJECTS:
            yield Finding(
                "error",
                "an array of objects is a pickle, which numpy.load may run",
                entry=other.path,
                hint="numpy runs it with allow_pickle=True alone",
                rule="unknown-global",
            )


def _members(source: Source) -> Iterator[tuple[str, ByteRange]]:
    room = max(1 << 30, 100 * source.size)
    seen: set[str] = set()
    entry: str | None = None
    try:
        with zipfile.ZipFile(cast("IO[bytes]", io.BufferedReader(SourceFile(source)))) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(ARRAY_SUFFIX) or member.filename in seen:
                    raise DamagedFileError("is no array, or there twice", entry=member.filename)
                seen.add(member.filename)
                entry = member.filename
                room -= member.file_size
                if room < 0:
                    raise LimitExceededError("its members are far more than the file")
                yield member.filename.removesuffix(ARRAY_SUFFIX), _content(source, archive, member)
    except BROKEN as error:
        said = str(error).lower()
        if said == _NO_END:
            raise DamagedFileError(
                "the archive has no end record", path=source.name, hint=_TRUNCATED
            ) from error
        what = f"the zip archive is damaged: {said}"
        raise DamagedFileError(what, path=source.name, entry=entry) from error


def _content(source: Source, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ByteRange:
    if member.compress_type != zipfile.ZIP_STORED:
        data = archive.read(member)
        memory = MemorySource(data, name=source.name, origin=source)
        return ByteRange(memory, 0, len(data), crc32=member.CRC)
    archive.open(member).close()  # compares the local header with the directory
    header = source.read_at(member.header_offset, _LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = member.header_offset + _LOCAL_HEADER + name + extra
    return ByteRange(source, start, member.file_size, crc32=member.CRC, record=member.filename)


def _checkpoint(name: str, source: Source, arrays: Sequence[tuple[str, ByteRange]]) -> Checkpoint:
    entries: list[Entry] = []
    others: list[Other] = []
    for key, data in arrays:
        tensor = array_of(key, data)
        if isinstance(tensor, Tensor):
            entries.append(Entry(key, tensor, role_of(key, tensor)))
        else:
            others.append(Other(key, f"{_ARRAY}{tensor}"))
    return Checkpoint(
        format=name,
        sources=(source,),
        root=None,
        state_dicts=(StateDict("", "model", tuple(entries)),) if entries else (),
        others=tuple(others),
    )


def _header(key: str, said: bytes) -> tuple[str, bool, tuple[int, ...]]:
    """Return the code of the type (fields as they are), whether columns come first, and the shape.

    Read as numpy writes it, without Python's own parser: the text comes from the file. Raises
    `DamagedFileError` for any other form.
    """
    found = _HEADER.fullmatch(said.decode("utf-8", "replace"))
    if found is None:
        raise DamagedFileError("the header of the array is malformed", entry=key)
    sizes = [size.strip().removesuffix("L") for size in found["shape"].split(",")]
    if sizes[-1] == "":
        sizes.pop()
    elif len(sizes) == 1:
        sizes = [""]  # one number in brackets is no tuple
    if not all(size.isdecimal() and size.isascii() and len(size) < 20 for size in sizes):
        raise DamagedFileError("the shape of the array is malformed", entry=key)
    code = found["code"] or found["fields"]
    return code, found["columns"] == "True", tuple(map(int, sizes))


def array_of(key: str, data: ByteRange) -> Tensor | str:
    """Return the tensor of an ``.npy`` file, or what its elements are if torch has no such type."""
    start = data.slice(0, min(12, data.nbytes)).read() if data.nbytes else b""
    wide = start[6:7] in {b"\2", b"\3"}
    begin = 12 if wide else 10
    length = int.from_bytes(start[8:begin], "little")
    if not start.startswith(_MAGIC) or length > _LONGEST_HEADER:
        raise DamagedFileError("is no array of numpy", entry=key)
    if data.nbytes < begin + length:
        raise DamagedFileError("ends inside the header of the array", entry=key, hint=_TRUNCATED)
    code, columns, shape = _header(key, data.slice(begin, length).read())
    dtype = dtype_of_code(code[1:])
    if dtype is None:
        return _OBJECTS if code == "|O" else code[:40]
    rest = data.slice(begin + length, data.nbytes - begin - length)
    try:
        return array_tensor(shape, dtype, rest, key=key, columns=columns, big=code[0] == ">")
    except DamagedFileError as error:
        error.entry = key
        if rest.nbytes < prod(shape) * dtype.itemsize:
            error.hint = _TRUNCATED
        raise
