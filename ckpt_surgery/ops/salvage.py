"""Write what is whole of a truncated or damaged file, and say what is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.compact import compact
from ckpt_surgery.checkpoint.description import Checkpoint, Storage, join_path
from ckpt_surgery.checkpoint.findings import Finding, Rule, finding_of
from ckpt_surgery.errors import DamagedFileError, PathLike, ReadError
from ckpt_surgery.fileio import Source, looks_like_zip
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.formats.base import Loss
from ckpt_surgery.formats.detect import opened
from ckpt_surgery.formats.recognise import source_is_directory
from ckpt_surgery.formats.salvage import Salvaged, read_damaged
from ckpt_surgery.formats.salvage_parts import parts_of
from ckpt_surgery.formats.streams import notes_on
from ckpt_surgery.reports.verification import Lost, SalvageReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import without
from ckpt_surgery.writing.write import write

_MOST: Final = 20
_LOST: Final = "a part of its bytes is missing or wrong"
_REST: Final = "all other tensors and objects are whole: '--salvage OUT' writes them"
_NO_STATE_DICT: Final = "there is no state dict in it whose tensors could be written"
_NO_PART: Final = "it is no part of a checkpoint, of which a new archive is made"
_SAID: Final = {
    "cut": "the record ends before its last byte, or has no end that can be found",
    "damaged": "the bytes of the record are not those of its checksum",
}


def salvage(source: PathLike | Source, output: Output) -> SalvageReport:
    """Write every tensor that is whole, and what lies beside the weights if all of that is.

    A tensor is whole if all its bytes are in the file and, where the file has a checksum for them,
    they are the ones that it was computed from. Raises `DamagedFileError` if there is none, or if
    their names are lost, and `ReadError` for a file that cannot be put together again.
    """
    output.check()
    file = _opened(source) if isinstance(source, str | os.PathLike) else source
    with closing(file):
        found = _read(file)
        lost = list(_lost(found))
        kept = without(found.checkpoint, lost)
        tensors = [name for name, _ in kept.tensors]
        if not tensors:
            any_at_all = found.lost or any(True for _ in found.checkpoint.tensors)
            why = "none of its tensors is whole" if any_at_all else _NO_STATE_DICT
            raise DamagedFileError(why, path=file.name)
        if any(found.right_nbytes(storage) < storage.nbytes for storage in _storages(kept)):
            kept = compact(kept)
        written = write(replace(kept, modules={}), output)  # weights that load without classes
        return SalvageReport(
            file.name,
            written.output,
            written.format,
            tuple(tensors),
            (
                *(Lost(loss.path, loss.part, loss.why) for loss in lost),
                *(Lost(name, "entry", why) for name, why in found.lost),
                *(Lost(name, "record", _NO_PART) for name in found.records),
            ),
            (*_compressed(file), *found.notes, *written.warnings),
        )


def _opened(path: PathLike) -> Source:
    """Open a file, or what is left of a member of a damaged archive. Raises `ReadError`."""
    try:
        return opened(path)
    except ReadError:
        from ckpt_surgery.formats.archive_salvage import open_left

        left = open_left(os.fspath(path))
        if left is None:
            raise
        return left


def _read(file: Source) -> Salvaged:
    """Read what is left of a file, or of the shards that an index or a directory holds."""
    from ckpt_surgery.formats.dcp import Dcp
    from ckpt_surgery.formats.dcp_safetensors import rank_files
    from ckpt_surgery.formats.dcp_salvage import read_damaged_dcp, read_damaged_ranks
    from ckpt_surgery.formats.sharded_salvage import read_damaged_shards

    if isinstance(file, DirectorySource) and Dcp().sniff(file):
        return read_damaged_dcp(file)
    if isinstance(file, DirectorySource) and rank_files(file):
        return read_damaged_ranks(file)
    sharded = read_damaged_shards(file)
    if sharded is None and source_is_directory(file):
        raise ReadError(
            "only sharded and distributed checkpoints are salvaged from directories", path=file.name
        )
    return read_damaged(file) if sharded is None else sharded


def _storages(checkpoint: Checkpoint) -> Iterator[Storage]:
    for tensor in checkpoint.all_tensors:
        for part in tensor.strided_parts():
            if part.storage is not None:
                yield part.storage


def _lost(found: Salvaged) -> Iterator[Loss]:
    """Yield what of the checkpoint is not whole."""
    checkpoint = found.checkpoint
    for state_dict in checkpoint.state_dicts:
        for name, tensor in state_dict.tensors:
            if not found.is_whole(tensor):
                path = join_path(state_dict.path, name)
                yield Loss(path, "entry", "a tensor", found.reasons.get(path, _LOST))
    for other in checkpoint.others:
        gone = sum(not found.is_whole(tensor) for tensor in other.tensors)
        if gone:
            why = f"{gone} of its {len(other.tensors)} tensors are not whole"
            yield Loss(other.path, "other", "an entry", why)


def _compressed(file: Source) -> tuple[str, ...]:
    return () if source_is_directory(file) else notes_on(file)


def damage(source: Source) -> Iterator[Finding]:
    """Yield which records of a damaged archive are not whole, and how many are."""
    from ckpt_surgery.formats.archive_salvage import cut_members

    if source_is_directory(source) or not looks_like_zip(source):
        return
    members = cut_members(source)
    if members is not None:
        for name, start in members:
            yield Finding("error", _SAID["cut"], name, None, "truncated", start)
        return
    try:
        parts = parts_of(source)
    except ReadError:
        return
    bad = [part for part in parts if part.state in _SAID]
    for part in bad[:_MOST]:
        rule: Rule = "truncated" if part.state == "cut" else "checksum"
        yield Finding("error", _SAID[part.state], part.name, None, rule, part.record.start)
    if len(bad) > _MOST:
        yield Finding("error", f"{len(bad) - _MOST:,} more records are not whole", rule="damaged")
    whole = sum(part.state == "whole" for part in parts)
    unchecked = sum(part.state == "unchecked" for part in parts)
    if whole + unchecked:
        what = f"{whole} records are whole by their checksums"
        more = f", {unchecked} have none" if unchecked else ""
        yield Finding(
            "note",
            f"{what}{more}",
            hint="'--salvage OUT' writes the tensors that are whole",
            rule="damaged",
        )


def shard_damage(source: Source) -> list[Finding]:
    """Return what is wrong with each shard of a sharded checkpoint, or with each part of a
    distributed one.
    """
    from ckpt_surgery.formats.sharded_salvage import damaged_shards

    if isinstance(source, DirectorySource) and (found := _distributed_damage(source)):
        return found
    return [
        replace(
            finding_of(error),
            entry=f"{file}: {error.entry}" if error.entry not in {None, file} else file,
        )
        for file, error in damaged_shards(source)
    ]


def _distributed_damage(source: DirectorySource) -> list[Finding]:
    """Return which tensors and objects of a distributed checkpoint are not whole."""
    from ckpt_surgery.formats.dcp import Dcp
    from ckpt_surgery.formats.dcp_salvage import damaged_archives, damaged_ranks

    damaged = damaged_archives(source) if Dcp().sniff(source) else damaged_ranks(source)
    findings = [
        replace(
            finding_of(error),
            entry=name,
            message=error.message if error.entry is None else f"{error.entry}: {error.message}",
        )
        for name, error in damaged
    ]
    return [*findings, Finding("note", _REST, None, None, "damaged")] if findings else []
