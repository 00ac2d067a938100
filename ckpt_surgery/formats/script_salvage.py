"""What is left of a TorchScript archive that is truncated or damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.fileio import ByteRange, MemorySource, Source, ZipArchive, ZipRecord
from ckpt_surgery.fileio.padded import PaddedSource
from ckpt_surgery.fileio.zip_structs import DEFLATED
from ckpt_surgery.formats.torch_zip_container import CONSTANTS, PICKLE, STORAGE_FOLDER
from ckpt_surgery.formats.torchscript import read_torchscript
from ckpt_surgery.pickles import Global, Limits, Object, parse
from ckpt_surgery.torch_objects.storages import StorageId, parse_storage_id

if TYPE_CHECKING:
    from ckpt_surgery.formats.salvage_parts import Part

_CODE: Final = "code/"
_OWN: Final = "__torch__"
_NO_CONSTANTS: Final = b"\x80\x02)."  # an empty tuple
_WITHOUT: Final = (
    "code is missing, which says what is a parameter or a buffer: every tensor that an attribute "
    "of a module holds is taken for a buffer"
)


def is_script(parts: Mapping[str, Part], pickle: bytes, limits: Limits) -> bool:
    """Say whether records are those of TorchScript, of which any may be missing."""
    if CONSTANTS in parts or any(name.startswith(_CODE) for name in parts):
        return True
    root = parse(pickle, limits=limits).root
    callee = root.callee if isinstance(root, Object) else None
    return isinstance(callee, Global) and callee.module.startswith(_OWN)


def read_damaged_script(
    source: Source, parts: Mapping[str, Part], pickle: bytes, limits: Limits
) -> tuple[Checkpoint, dict[str, StorageId], tuple[str, ...]]:
    """Describe the state dict; its storages as the pickle says that they are; and what to say.

    Constants, which are no part of a state dict, are left out.
    """
    needed: dict[str, StorageId] = {}

    def load(pid: object) -> object:
        found = parse_storage_id(pid, of_script=True)
        if found is not None:
            needed.setdefault(found.key, found)
        return pid

    parse(pickle, limits=limits, persistent_load=load)
    starts = {
        key: parts[STORAGE_FOLDER + key].record.start if STORAGE_FOLDER + key in parts
        else source.size
        for key in needed
    }  # fmt: skip
    size = max([source.size, *(starts[key] + each.nbytes for key, each in needed.items())])
    padded = PaddedSource(source, size)
    code = list(_code(source, parts))
    records = [
        _in_memory(PICKLE, pickle),
        _in_memory(CONSTANTS, _NO_CONSTANTS),
        *code,
        *_byte_order(source, parts.get("byteorder")),
        *(
            _record(STORAGE_FOLDER + key, ByteRange(padded, starts[key], each.nbytes))
            for key, each in needed.items()
        ),
    ]
    archive = ZipArchive(source, "archive", tuple(records))
    classes = {each.module for each in parse(pickle, limits=limits).globals}
    wanted = {f"{_CODE}{each.replace('.', '/')}.py" for each in classes if each.startswith(_OWN)}
    notes = (_WITHOUT,) if wanted - {each.name for each in code} else ()
    return read_torchscript(source, archive, limits, without_code=True), needed, notes


def _record(name: str, data: ByteRange) -> ZipRecord:
    return ZipRecord(name, data, compressed=False, nbytes=data.nbytes, crc32=0, header_offset=0)


def _in_memory(name: str, data: bytes) -> ZipRecord:
    return _record(name, ByteRange(MemorySource(data, name=name), 0, len(data)))


def _code(source: Source, parts: Mapping[str, Part]) -> Iterator[ZipRecord]:
    """Yield the source files that are whole."""
    for name, part in parts.items():
        if name.startswith(_CODE) and part.state in {"whole", "unchecked"}:
            found = part.record
            data = ByteRange(source, found.start, found.stored_nbytes or 0)
            yield ZipRecord(name, data, found.method == DEFLATED, found.nbytes or 0, 0, 0)


def _byte_order(source: Source, part: Part | None) -> Iterator[ZipRecord]:
    if part is not None and part.state in {"whole", "unchecked"}:
        yield _in_memory(
            "byteorder", source.read_at(part.record.start, part.record.stored_nbytes or 0)
        )
