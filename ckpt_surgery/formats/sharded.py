"""Sharded checkpoints: an index in JSON that says which file holds each tensor, and those files.

The form is that of huggingface_hub and transformers: ``{"metadata": {"total_size": …},
"weight_map": {name: file}}``. An index is as little to be trusted as a pickle: the names of its
files stay below its directory, every tensor lies in one file and in the one that it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Storage
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.base import Format, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.dcp_safetensors import require_whole
from ckpt_surgery.formats.safetensors import A_PART, OF_DCP
from ckpt_surgery.formats.sharded_index import (
    ShardIndex,
    Sharding,
    index_ties,
    looks_like_index,
    read_index,
)
from ckpt_surgery.pickles import Limits
from ckpt_surgery.torch_objects.kinds import role_of

_METADATA: Final = "__metadata__"
_SAFETENSORS: Final = ".safetensors"
_MOST_NAMED: Final = 3


class _Sharded(Format):
    """What indices of safetensors files and of torch's files have in common."""

    is_flat = True
    shard_suffix: str
    stem: str
    shard_format: str

    def sniff(self, source: Source) -> bool:
        """Say whether it is an index whose files are of this kind."""
        if not looks_like_index(source):
            return False
        try:
            files = read_index(source).files
        except ReadError:  # some index: `read` says what is wrong with it
            return self.shard_suffix == _SAFETENSORS
        return all(file.endswith(_SAFETENSORS) for file in files) == (
            self.shard_suffix == _SAFETENSORS
        )

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe all shards as one checkpoint; raises as `read_sharded` does."""
        if source.path is None:
            raise ReadError(
                "an index without a place in a directory does not say where its shards are",
                path=source.name,
                hint="name the index file, or its directory",
            )
        place = os.path.dirname(source.path)  # noqa: PTH120
        folder = DirectorySource.open(place or ".", None if place else source.name)
        return read_sharded(source, folder, limits, self.name)

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return what its shards do not hold; they are of one state dict."""
        return registry.get(self.shard_format).losses(checkpoint)

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place the shards and their index in a directory."""
        from ckpt_surgery.formats.sharded_write import Kind, layout

        kind = Kind(self.stem, self.shard_suffix, registry.get(self.shard_format))
        return layout(checkpoint, options, kind)


class SafetensorsIndex(_Sharded):
    """The index of several safetensors files."""

    name = "safetensors-index"
    title = "sharded safetensors"
    honours = frozenset({"metadata", "duplicate_ties", "max_shard_size"})
    shard_suffix = _SAFETENSORS
    stem = "model"
    shard_format = "safetensors"


class TorchIndex(_Sharded):
    """The index of several files of torch.save."""

    name = "torch-index"
    title = "a sharded checkpoint of torch"
    keeps_checksums = True
    honours = frozenset({"max_shard_size"})
    shard_suffix = ".bin"
    stem = "pytorch_model"
    shard_format = "torch-zip"

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return what its shards do not hold, which a whole file might."""
        from ckpt_surgery.formats.sharded_write import torch_losses

        return torch_losses(checkpoint)


def read_sharded(source: Source, folder: DirectorySource, limits: Limits, name: str) -> Checkpoint:
    """Describe the shards that the index in `source` names, which lie in `folder`, as one.

    Raises `DamagedFileError` if a shard is missing or leads out of the folder, if a tensor is in
    two shards, or not where the index says, and what reading a shard raises.
    """
    from ckpt_surgery.formats.recognise import find_format

    index = read_index(source)
    shards: list[tuple[str, Checkpoint]] = []
    for file in index.files:
        member = folder.member(file)
        likely = registry.get("safetensors" if file.endswith(_SAFETENSORS) else "torch-zip")
        kind = likely if likely.sniff(member) else find_format(member)
        shards.append((file, kind.read(member, limits)))
    entries = _with_aliases(_entries(source, index, shards), index)
    others = _metadata(source, shards)
    checkpoint = Checkpoint(
        format=name,
        sources=(source, *(shard.file for _, shard in shards)),
        root=None,
        state_dicts=(StateDict("", "model", entries, _modules(shards)),),
        others=others,
        globals=tuple(dict.fromkeys(each for _, shard in shards for each in shard.globals)),
        container=Sharding(
            os.path.basename(source.name),  # noqa: PTH119
            index.weight_map,
            index.metadata,
            ByteRange(source, 0, source.size),
            tuple(shards),
            others,
        ),
        unwritable=next((shard.unwritable for _, shard in shards if shard.unwritable), ""),
    )
    return replace(checkpoint, notes=tuple(_notes(index, checkpoint, shards)))


def _entries(
    source: Source, index: ShardIndex, shards: Sequence[tuple[str, Checkpoint]]
) -> tuple[Entry, ...]:
    """Return the entries of all shards in order, each where the index says."""
    found: dict[str, str] = {}
    entries: list[Entry] = []
    for file, shard in shards:
        for entry in _state_dict(source, file, shard).entries:
            if entry.name in found:
                raise DamagedFileError(
                    f"the tensor is in two shards: '{found[entry.name]}' and '{file}'",
                    path=source.name,
                    entry=entry.name,
                )
            found[entry.name] = file
            entries.append(entry)
    for name, file in index.weight_map.items():
        if found.get(name) != file:
            where = f"it is in '{found[name]}'" if name in found else "it is in none"
            raise DamagedFileError(
                f"the index says that the tensor is in '{file}', but {where}",
                path=source.name,
                entry=name,
            )
    return tuple(entries)


def _with_aliases(entries: tuple[Entry, ...], index: ShardIndex) -> tuple[Entry, ...]:
    """Add the names that the index says are tied to another, as huggingface_hub writes it."""
    tensors = {entry.name: entry.tensor for entry in entries}
    ties = index_ties(index.metadata, tensors)
    added = [(alias, tensors[name]) for alias, name in ties.items()]
    return (*entries, *(Entry(alias, t, role_of(alias, t)) for alias, t in added if t is not None))


def _state_dict(source: Source, file: str, shard: Checkpoint) -> StateDict:
    others = [other.path for other in shard.others if other.path != _METADATA]
    if len(shard.state_dicts) != 1 or shard.state_dicts[0].path or others:
        raise DamagedFileError("the shard is no plain state dict", path=source.name, entry=file)
    return shard.state_dicts[0]


def _modules(shards: Sequence[tuple[str, Checkpoint]]) -> Mapping[str, object] | None:
    """Return ``_metadata`` of all shards; None if none has any."""
    found = [s.state_dicts[0].metadata for _, s in shards if s.state_dicts[0].metadata is not None]
    return {name: node for each in found for name, node in each.items()} if found else None


def _metadata(source: Source, shards: Sequence[tuple[str, Checkpoint]]) -> tuple[Other, ...]:
    """Return ``__metadata__`` of the safetensors among the shards, which is to be one.

    Where torch.distributed.checkpoint wrote them, what it says of each file by itself is left out.
    """
    merged: dict[str, str] = {}
    for file, shard in shards:
        require_whole(shard)
        for other in shard.others:
            for key, value in other.value.items():
                if key not in OF_DCP and merged.setdefault(key, value) != value:
                    raise DamagedFileError(
                        f"the shards differ in the metadata '{key}'", path=source.name, entry=file
                    )
    return (Other(_METADATA, "dict", merged),) if merged else ()


def _notes(
    index: ShardIndex, checkpoint: Checkpoint, shards: Sequence[tuple[str, Checkpoint]]
) -> Iterator[str]:
    unnamed = _unnamed(index, checkpoint)
    if unnamed:
        shown = ", ".join(f"'{name}'" for name in unnamed[:_MOST_NAMED])
        more = f" and {len(unnamed) - _MOST_NAMED} more" if len(unnamed) > _MOST_NAMED else ""
        yield f"in the shards, but not in the index: {shown}{more}"
    nbytes = sum(tensor.nbytes for _, tensor in checkpoint.tensors)
    if index.total_size is not None and index.total_size != nbytes:
        stored = _stored_nbytes(checkpoint)
        if index.total_size != stored:
            least = min(nbytes, stored)
            yield f"the index says {index.total_size:,} bytes, the tensors have {least:,}"
    for file, shard in shards:
        yield from (f"{file}: {note}" for note in shard.notes if note != A_PART)


def _unnamed(index: ShardIndex, checkpoint: Checkpoint) -> list[str]:
    """Return names that the index does not have; one that is tied to another need not be in it."""
    names = index.weight_map
    if all(name in names for name, _ in checkpoint.tensors):
        return []
    named = {tensor.identity for name, tensor in checkpoint.tensors if name in names}
    return [n for n, t in checkpoint.tensors if n not in names and t.identity not in named]


def _stored_nbytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all storages, which several tensors may lie in."""
    storages: dict[Storage, int] = {}
    for _, tensor in checkpoint.tensors:
        for part in tensor.strided_parts():
            if part.storage is not None:
                storages[part.storage] = part.storage.nbytes
    return sum(storages.values())
