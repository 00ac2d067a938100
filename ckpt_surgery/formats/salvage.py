"""What is left of a truncated or damaged file, as a checkpoint, and which tensors of it are whole.

A reader of the format gets the file as it should be: records put together from their marks, and
zeros where bytes are missing. Which bytes are right is known beside that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import field, replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import (
    ByteRange,
    MemorySource,
    Source,
    ZipArchive,
    ZipRecord,
    looks_like_zip,
)
from ckpt_surgery.fileio.padded import PaddedSource
from ckpt_surgery.formats.archive_salvage import Opener, left_members, only_checkpoint
from ckpt_surgery.formats.record_salvage import read_damaged_records
from ckpt_surgery.formats.safetensors import Safetensors
from ckpt_surgery.formats.salvage_parts import Part, parts_of
from ckpt_surgery.formats.script_salvage import is_script, read_damaged_script
from ckpt_surgery.formats.streams import is_compressed, left_of
from ckpt_surgery.formats.tar_salvage import read_damaged_tar
from ckpt_surgery.formats.torch_legacy import TorchLegacy, storage_places
from ckpt_surgery.formats.torch_tar import TorchTar
from ckpt_surgery.formats.torch_zip import read_torch_zip
from ckpt_surgery.formats.torch_zip_container import PICKLE, STORAGE_FOLDER
from ckpt_surgery.formats.traits import OWN_RECORDS
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits, Node, PersistentId, parse
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.storages import StorageId, parse_storage_id

_BYTE_ORDER: Final = "byteorder"


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A checkpoint of which a part is missing.

    `right_nbytes` gives the bytes of a storage, from its start, that are there and not known to be
    wrong; `notes` say what else is not as it should be. `lost` are tensors of which nothing but the
    name is known, and why. `reasons` say by path why a tensor is not whole, if more is known than
    that bytes are missing. `records` are names of what else is in an archive, beside a checkpoint.
    """

    checkpoint: Checkpoint
    right_nbytes: Callable[[Storage], int]
    notes: tuple[str, ...] = ()
    lost: tuple[tuple[str, str], ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    records: tuple[str, ...] = ()

    def is_whole(self, tensor: Tensor) -> bool:
        """Return whether all bytes of a tensor are right."""
        return all(
            part.dtype.nbytes(part.offset + part.extent) <= self.right_nbytes(part.storage)
            for part in tensor.strided_parts()
            if part.storage is not None and part.extent
        )


def read_damaged(source: Source, limits: Limits = DEFAULT_LIMITS) -> Salvaged:
    """Read what is left of a file, truncated or damaged in any place.

    Raises `DamagedFileError` if not even the names of its tensors are known any longer, and
    `ReadError` for a file of no format that can be put together again.
    """
    if is_compressed(source):
        return _read_stream(source, limits)
    if (left := _read_records(source, limits)) is not None:
        return left
    members = {} if TorchTar().sniff(source) else left_members(source)
    if members:
        return _read_member(source, members, limits)
    found = _read_file(source, limits)
    if found is None:
        raise ReadError(
            "what is left of it cannot be put together: it is no archive of torch, no older file "
            "of torch and no safetensors file",
            path=source.name,
        )
    return found


def _read_file(source: Source, limits: Limits) -> Salvaged | None:
    if looks_like_zip(source):
        return _read_records(source, limits) or _read_zip(source, limits)
    if Safetensors().sniff(source):
        return _read_safetensors(source, limits)
    if TorchLegacy().sniff(source):
        return _read_legacy(source, limits)
    if TorchTar().sniff(source):
        return _read_tar(source, limits)
    return None


def _read_records(source: Source, limits: Limits) -> Salvaged | None:
    """Read what is left of an archive whose records are tensors; None for any other file."""
    left = read_damaged_records(source, limits)
    if left is None:
        return None
    return Salvaged(left.checkpoint, lambda storage: storage.nbytes, left.notes, left.lost)


def _read_stream(source: Source, limits: Limits) -> Salvaged:
    """Read what is left of what a compressed stream holds up to the place where it is damaged."""
    inner, error = left_of(source)
    left = read_damaged(inner, limits)
    return left if error is None else replace(left, notes=(error.message, *left.notes))


def _read_member(source: Source, members: Mapping[str, Opener], limits: Limits) -> Salvaged:
    """Read the one member of an archive of other files that is a checkpoint."""
    found: dict[str, Salvaged] = {}
    for name, opener in members.items():
        member = opener()
        with suppress(ReadError):
            left = _read_file(member, limits)
            if left is not None and any(True for _ in left.checkpoint.all_tensors):
                found[name] = left
    name = only_checkpoint(source, list(found))
    return replace(found[name], notes=(f"of '{name}' in the archive", *found[name].notes))


def _read_zip(source: Source, limits: Limits) -> Salvaged:
    parts = {part.name: part for part in parts_of(source)}
    pickle, notes = _pickle(source, parts.get(PICKLE), limits)
    others = tuple(
        name for name in parts if not name.startswith(STORAGE_FOLDER) and name not in OWN_RECORDS
    )
    if is_script(parts, pickle, limits):
        script, stored, said = read_damaged_script(source, parts, pickle, limits)
        right = _right(source, parts, stored)
        return Salvaged(script, right, (*notes, *said), records=others)
    needed = _needed_storages(pickle, limits)
    starts = {key: _start(source, parts.get(STORAGE_FOLDER + key)) for key in needed}
    size = max([source.size, *(starts[key] + each.nbytes for key, each in needed.items())])
    padded = PaddedSource(source, size)
    records = [
        _in_memory(PICKLE, pickle),
        *_byte_order(source, parts.get(_BYTE_ORDER)),
        *(
            _record(STORAGE_FOLDER + key, ByteRange(padded, starts[key], each.nbytes))
            for key, each in needed.items()
        ),
        _in_memory("version", b"3\n"),
    ]
    archive = ZipArchive(source, "archive", tuple(records))
    checkpoint = replace(read_torch_zip(source, archive, limits), unwritable="")
    if len(records) == len(needed) + 2:  # no byte order: the records are those of a new archive
        checkpoint = replace(checkpoint, container=None)
    return Salvaged(checkpoint, _right(source, parts, needed), notes, records=others)


def _right(
    source: Source, parts: Mapping[str, Part], needed: Mapping[str, StorageId]
) -> Callable[[Storage], int]:
    """Return what gives the bytes of a storage that are right, from its start."""
    right = {
        key: _right_nbytes(source, parts.get(STORAGE_FOLDER + key), each)
        for key, each in needed.items()
    }
    return lambda storage: right.get(storage.key, 0)


def _in_memory(name: str, data: bytes) -> ZipRecord:
    return _record(name, ByteRange(MemorySource(data, name=name), 0, len(data)))


def _record(name: str, data: ByteRange) -> ZipRecord:
    return ZipRecord(name, data, compressed=False, nbytes=data.nbytes, crc32=0, header_offset=0)


def _pickle(source: Source, part: Part | None, limits: Limits) -> tuple[bytes, tuple[str, ...]]:
    """Return the bytes of ``data.pkl``, and what is to be said of
    them. Raises `DamagedFileError`.
    """
    if part is None:
        raise _nothing_left(source, "its pickle, which names the tensors, is missing")
    start, left = part.record.start, source.size - part.record.start
    known = part.record.stored_nbytes
    nbytes = min(left if known is None else known, left, limits.pickle_bytes)
    data = source.read_at(start, nbytes)
    try:
        end = parse(data, limits=limits).end
    except ReadError as error:
        raise _nothing_left(source, f"its pickle cannot be read: {error.message}") from error
    if part.state == "damaged":
        what = "the checksum of its pickle is wrong: names, shapes and values beside may be, too"
        return data[:end], (what,)
    return data[:end], ()


def _nothing_left(source: Source, why: str) -> DamagedFileError:
    return DamagedFileError(f"nothing can be salvaged: {why}", path=source.name, entry=PICKLE)


def _needed_storages(pickle: bytes, limits: Limits) -> dict[str, StorageId]:
    """Return what the pickle says of each storage, by its key."""
    needed: dict[str, StorageId] = {}

    def load(pid: Node) -> PersistentId:
        found = parse_storage_id(pid)
        if found is not None:
            needed.setdefault(found.key, found)
        return PersistentId(pid)

    parse(pickle, limits=limits, persistent_load=load)
    return needed


def _start(source: Source, part: Part | None) -> int:
    """Return the byte at which a storage begins; the end of the file for one that is lost."""
    return source.size if part is None else part.record.start


def _right_nbytes(source: Source, part: Part | None, needed: StorageId) -> int:
    """Return the bytes of a storage, from its start, that are there and not known to be wrong."""
    if part is None or part.state == "damaged":
        return 0
    stored = part.record.stored_nbytes
    if part.state != "cut":
        return needed.nbytes if stored == needed.nbytes else 0
    return min(needed.nbytes, source.size - part.record.start)


def _byte_order(source: Source, part: Part | None) -> Iterator[ZipRecord]:
    """Yield the record of the byte order, where it says that numbers are turned round."""
    if part is not None and part.state in {"whole", "unchecked"}:
        data = source.read_at(part.record.start, part.record.stored_nbytes or 0)
        if data == b"big":
            yield _in_memory(_BYTE_ORDER, data)


def _read_safetensors(source: Source, limits: Limits) -> Salvaged:
    head = int.from_bytes(source.read_at(0, 8), "little")
    try:
        header = json.loads(source.read_at(8, head))
        spans = [each["data_offsets"] for name, each in header.items() if name != "__metadata__"]
        size = 8 + head + max((int(end) for _, end in spans), default=0)
    except (ReadError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFileError(
            "nothing can be salvaged: its header, which names the tensors, is broken",
            path=source.name,
            entry="header",
        ) from error
    checkpoint = Safetensors().read(PaddedSource(source, size), limits)
    return Salvaged(checkpoint, lambda storage: _before(storage, source.size))


def _read_legacy(source: Source, limits: Limits) -> Salvaged:
    places = storage_places(source, limits)
    size = max([at + 8 + found.nbytes for at, found in places], default=source.size)
    patches = {at: struct.pack("<q", found.numel) for at, found in places}
    wrong = [
        found.key
        for at, found in places
        if at + 8 <= source.size and source.read_at(at, 8) != patches[at]
    ]
    notes = tuple(f"the element count before storage {key} is wrong" for key in wrong)
    checkpoint = TorchLegacy().read(PaddedSource(source, size, patches), limits)
    return Salvaged(
        replace(checkpoint, unwritable=""),
        lambda storage: _before(storage, source.size),
        notes,
    )


def _read_tar(source: Source, limits: Limits) -> Salvaged:
    checkpoint, made_up = read_damaged_tar(source, limits)

    def right(storage: Storage) -> int:
        return 0 if id(storage.data) in made_up else _before(storage, source.size)

    return Salvaged(replace(checkpoint, unwritable=""), right)


def _before(storage: Storage, size: int) -> int:
    """Return the bytes of a storage that lie before byte `size` of the file."""
    start = storage.data.offset if isinstance(storage.data, ByteRange) else 0
    return min(max(size - start, 0), storage.nbytes)
