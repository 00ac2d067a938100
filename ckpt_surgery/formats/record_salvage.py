"""What is left of archives whose records are the tensors: numpy's, and those of torch.export.

A record is taken if all of it is there and its checksum, if it has one, is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import (
    ByteRange,
    MemorySource,
    Source,
    ZipArchive,
    ZipRecord,
    looks_like_zip,
)
from ckpt_surgery.fileio.record_sums import crc32_of
from ckpt_surgery.fileio.zip_salvage import FoundRecord, find_records
from ckpt_surgery.fileio.zip_structs import END, END_MAGIC, STORED
from ckpt_surgery.formats.archive_salvage import inflated, outer
from ckpt_surgery.formats.numpy_files import ARRAY_SUFFIX, array_of
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.formats.torch_export import WEIGHTS, describe_weights, is_config
from ckpt_surgery.pickles import Limits
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import role_of

_CUT: Final = "its record ends before its last byte, or has no end that can be found"
_WRONG: Final = "the bytes of its record are not those of their checksum"
_GONE: Final = "its record is missing"
_UNNAMED: Final = (
    "the directory of the archive is not whole, which names all arrays: there may have been others"
)
_UNLIKE: Final = "an array of {}, which torch does not have"
_OF_EXPORT: Final = re.compile(rf"([^/]+)/{WEIGHTS}[^/]+(?<!\.pt)")


@dataclass(frozen=True, slots=True)
class LeftRecords:
    """The tensors that are whole; the names of others, and why they are not; what else to say."""

    checkpoint: Checkpoint
    lost: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def read_damaged_records(source: Source, limits: Limits) -> LeftRecords | None:
    """Return what is left of an archive of numpy or of torch.export; None for any other file.

    Raises `DamagedFileError` if the description is lost that names the tensors of the second.
    """
    if not looks_like_zip(source):
        return None
    records = list(outer(find_records(source)))
    if records and all(record.name.endswith(ARRAY_SUFFIX) for record in records):
        return _arrays(source, records)
    roots = [found[1] for each in records if (found := _OF_EXPORT.fullmatch(each.name))]
    return _weights(source, records, roots[0], limits) if roots else None


def _content(source: Source, record: FoundRecord, *, says_end: bool) -> ByteRange | str:
    """Return what a record decodes to, or why that is not whole.

    `says_end`: its content shows by itself where it ends, so that it may be the last thing in the
    file, which behind it would say how long it is.
    """
    stored = record.stored_nbytes
    if stored is None and says_end:
        stored = source.size - record.start
    if stored is None or record.start + stored > source.size:
        return _CUT
    data = ByteRange(source, record.start, stored)
    if record.method != STORED:
        inside = inflated(source, record, stored, source.name)
        data = ByteRange(inside, 0, inside.size)
    if any(record.crc32) and not set(crc32_of([data])) <= set(record.crc32):
        return _WRONG
    return data


def _arrays(source: Source, records: Sequence[FoundRecord]) -> LeftRecords:
    """Return the arrays of an ``.npz`` file, whose directory, the last thing in it, may be gone."""
    entries: list[Entry] = []
    lost: list[tuple[str, str]] = []
    for record in records:
        name = record.name.removesuffix(ARRAY_SUFFIX)
        data = _content(source, record, says_end=True)
        try:
            found = None if isinstance(data, str) else array_of(name, data)
        except DamagedFileError as error:
            data, found = error.message, None
        if isinstance(found, Tensor):
            entries.append(Entry(name, found, role_of(name, found)))
        else:
            lost.append((name, data if isinstance(data, str) else _UNLIKE.format(found)))
    checkpoint = _checkpoint("npz", source, (StateDict("", "model", tuple(entries)),))
    end = source.read_at(max(source.size - END.size, 0), min(END.size, source.size))
    return LeftRecords(checkpoint, tuple(lost), () if end.startswith(END_MAGIC) else (_UNNAMED,))


def _checkpoint(name: str, source: Source, found: tuple[StateDict, ...]) -> Checkpoint:
    return Checkpoint(format=name, sources=(source,), root=None, state_dicts=found)


def _weights(
    source: Source, records: Sequence[FoundRecord], root: str, limits: Limits
) -> LeftRecords:
    """Return the weights of an archive of torch.export, by their descriptions in JSON."""
    inside = f"{root}/"
    contents = {
        each.name.removeprefix(inside): _content(
            source, each, says_end=is_config(each.name.removeprefix(inside))
        )
        for each in records
        if each.name.startswith(f"{inside}{WEIGHTS}") or each.name == f"{inside}byteorder"
    }
    whole = {name: data for name, data in contents.items() if isinstance(data, ByteRange)}
    lost: list[tuple[str, str]] = []
    configs: list[ZipRecord] = []
    for name in filter(is_config, whole):
        weights = _described(whole[name])
        if weights is None:
            continue
        gone = {each: _why(contents, weight) for each, weight in weights.items()}
        lost += ((each, why) for each, why in gone.items() if why)
        kept = {each: weight for each, weight in weights.items() if not gone[each]}
        data = json.dumps({"config": kept}).encode()
        memory = MemorySource(data, name=source.name, origin=source)
        configs.append(_record(name, ByteRange(memory, 0, len(data))))
    if not configs:
        raise DamagedFileError(
            "nothing can be salvaged: the description of its weights, which names them, is missing",
            path=source.name,
            entry=WEIGHTS,
        )
    others = [_record(name, data) for name, data in whole.items() if not is_config(name)]
    archive = ZipArchive(source, root, (*configs, *others))
    found, _ = describe_weights(archive, configs, limits)
    return LeftRecords(_checkpoint("torch-export", source, found), tuple(lost))


def _described(data: ByteRange) -> dict[str, object] | None:
    """Return what a description says of each weight, None if it is no whole one."""
    try:
        said = load_object(data.read(), path=data.source.name, what="the description")
    except DamagedFileError:
        return None
    found = said.get("config")
    return found if isinstance(found, dict) else None


def _why(contents: Mapping[str, ByteRange | str], weight: object) -> str:
    """Return why the bytes of a weight are not whole; nothing if they are, or have no record."""
    place = weight.get("path_name") if isinstance(weight, dict) else None
    found = contents.get(f"{WEIGHTS}{place}", _GONE)
    return found if isinstance(found, str) else ""


def _record(name: str, data: ByteRange) -> ZipRecord:
    return ZipRecord(name, data, compressed=False, nbytes=data.nbytes, crc32=0, header_offset=0)
