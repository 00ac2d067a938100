"""What is left of a sharded checkpoint some of whose shards are missing, truncated or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage
from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.formats.model_directory import index_in
from ckpt_surgery.formats.recognise import find_format
from ckpt_surgery.formats.salvage import Salvaged, read_damaged
from ckpt_surgery.formats.sharded import SafetensorsIndex, TorchIndex
from ckpt_surgery.formats.sharded_index import read_index
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard as far as it can be read; `error` says what is wrong with it, None if nothing."""

    file: str
    left: Salvaged | None
    error: ReadError | None


def damaged_shards(source: Source, limits: Limits = DEFAULT_LIMITS) -> list[tuple[str, ReadError]]:
    """Return the shards that cannot be read, and why; none for what is not sharded."""
    try:
        return [(each.file, each.error) for each in _shards(source, limits) if each.error]
    except ReadError:  # the index itself, about which its reader says more
        return []


def read_damaged_shards(source: Source, limits: Limits = DEFAULT_LIMITS) -> Salvaged | None:
    """Read what is left of a sharded checkpoint; None for a source that is not one.

    Tensors of shards of which nothing is left are `lost` by the names that the index has.
    Raises `ReadError` if the index cannot be read.
    """
    folder, index = _index_of(source)
    if folder is None or index is None:
        return None
    weight_map = read_index(index).weight_map
    shards = list(_shards(source, limits))
    right: dict[int, Callable[[Storage], int]] = {}
    entries: list[Entry] = []
    for each in shards:
        for entry in [] if each.left is None else _entries(each.left.checkpoint):
            entries.append(entry)
            if each.left is not None and entry.tensor is not None:
                for part in entry.tensor.strided_parts():
                    right[id(part.storage)] = each.left.right_nbytes
    read = [each.left.checkpoint for each in shards if each.left is not None]
    checkpoint = Checkpoint(
        format=read[0].format if read else "safetensors",
        sources=(source, *(each.file for each in read)),
        root=None,
        state_dicts=(StateDict("", "model", tuple(entries)),),
    )
    known = {entry.name for entry in entries}
    return Salvaged(
        checkpoint,
        lambda storage: right[id(storage)](storage),
        tuple(f"{each.file}: {note}" for each in shards if each.left for note in each.left.notes),
        tuple((name, _why(shards, file)) for name, file in weight_map.items() if name not in known),
    )


def _why(shards: list[_Shard], file: str) -> str:
    error = next((each.error for each in shards if each.file == file), None)
    return f"{file}: {'it is not there' if error is None else error.message}"


def _entries(checkpoint: Checkpoint) -> Iterator[Entry]:
    for state_dict in checkpoint.state_dicts:
        yield from state_dict.entries


def _index_of(source: Source) -> tuple[DirectorySource | None, Source | None]:
    """Return the folder of the shards and their index; nothing for a source without one."""
    if isinstance(source, DirectorySource):
        return source, index_in(source)
    if source.path is None or not (SafetensorsIndex().sniff(source) or TorchIndex().sniff(source)):
        return None, None
    return DirectorySource.open(os.path.dirname(source.path) or "."), source  # noqa: PTH120


def _shards(source: Source, limits: Limits) -> Iterator[_Shard]:
    folder, index = _index_of(source)
    if folder is None or index is None:
        return
    for file in read_index(index).files:
        yield _shard(folder, file, limits)


def _shard(folder: DirectorySource, file: str, limits: Limits) -> _Shard:
    try:
        member = folder.member(file)
    except ReadError as error:
        return _Shard(file, None, error)
    try:
        whole = find_format(member).read(member, limits)
    except ReadError as error:
        try:
            return _Shard(file, read_damaged(member, limits), error)
        except ReadError:
            return _Shard(file, None, error)
    return (
        _Shard(file, read_damaged(member, limits), None)
        if _is_checked(whole)
        else _Shard(file, Salvaged(whole, lambda storage: storage.nbytes), None)
    )


def _is_checked(checkpoint: Checkpoint) -> bool:
    """Return whether the shard has checksums, which say which of its tensors are whole."""
    return checkpoint.format == "torch-zip"
