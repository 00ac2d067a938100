"""Sharded checkpoints: which tensors go into which file, and the index that says so.

Tensors are taken in the order of the state dict until a shard is full, as
``huggingface_hub.split_torch_state_dict_into_shards`` does it: one larger than a shard has one to
itself, and tensors of one storage stay together. A checkpoint that came in shards keeps them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.formats.base import FileLayout, Format, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.safetensors_write import tied_names
from ckpt_surgery.formats.sharded_index import INDEX_SUFFIX, Sharding, index_ties
from ckpt_surgery.formats.traits import lost_traits
from ckpt_surgery.startup.lazy_dataclass import dataclass

_DEFAULT_SHARD_BYTES: Final = 5 * 10**9
"""What huggingface_hub takes."""

_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SAFETENSORS: Final = ".safetensors"
_DIFFUSERS: Final = "diffusion_pytorch_model"
_TOTAL_SIZE: Final = "total_size"
_STALE: Final = frozenset({"total_parameters"})
_NO_PLACE: Final = "a sharded checkpoint holds nothing but one state dict"


@dataclass(frozen=True, slots=True)
class Kind:
    """How the files of a kind of shards are called, and the format that each of them is of."""

    stem: str
    suffix: str
    shard: Format

    @property
    def is_safetensors(self) -> bool:
        """Whether tied tensors are written once, and every tensor has bytes of its own."""
        return self.shard.name == "safetensors"


@dataclass(frozen=True, slots=True)
class _Shard:
    """One file to be written: its name, and the checkpoint that it holds."""

    file: str
    checkpoint: Checkpoint

    @property
    def state_dict(self) -> StateDict:
        return self.checkpoint.state_dicts[0]


def parse_shard_size(text: str) -> int:
    """Return a size in bytes: ``5GB``, ``200MB``, ``10KB`` (decimal) or a plain number.

    Raises `UsageError` if it is none, or not positive.
    """
    number, unit = text.strip(), 1
    if number[-2:].upper() in _UNITS:
        number, unit = number[:-2].strip(), _UNITS[number[-2:].upper()]
    try:
        size = int(number) if unit == 1 else int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(
            f"'--max-shard-size {text}' is no size",
            hint="give bytes, or a number with KB, MB, GB or TB: 5GB",
        )
    return size


def torch_losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what shards of torch.save would not hold."""
    from ckpt_surgery.formats.torch_zip_layout import losses

    found = losses(checkpoint)
    listed = {loss.path for loss in found if loss.part == "other"}
    if len(checkpoint.state_dicts) != 1:
        what = f"one of {len(checkpoint.state_dicts)} state dicts"
        found += [Loss(s.path, "state_dict", what, _NO_PLACE) for s in checkpoint.state_dicts]
    if not checkpoint.state_dicts:
        found.append(Loss("", "state_dict", "no state dict", "there is nothing to write"))
    found += (
        Loss(other.path, "other", other.type, _NO_PLACE)
        for other in checkpoint.others
        if other.path not in listed
    )
    if not isinstance(checkpoint.container, Sharding):
        found += lost_traits(checkpoint, "the shards are archives of their own", ["records"])
    return found


def layout(checkpoint: Checkpoint, options: LayoutOptions, kind: Kind) -> Layout:
    """Place every byte of every shard, and of the index if there are several.

    Raises what laying out a shard raises.
    """
    found = checkpoint.container
    kept = found if isinstance(found, Sharding) and checkpoint.state_dicts[0].entries else None
    if kept is None or options.max_shard_size is not None:
        stem = _own_stem(checkpoint, kind) if kept is None else _stem(kept.index, kind)
        shards = _split(checkpoint, options.max_shard_size or _DEFAULT_SHARD_BYTES, stem, kind)
        index = f"{stem}{kind.suffix}{INDEX_SUFFIX}" if len(shards) > 1 else None
    elif all(file.endswith(_SAFETENSORS) == kind.is_safetensors for file, _ in kept.shards):
        shards, index = _as_they_were(checkpoint, kept, options), kept.index
    else:
        groups = list(_by_file(checkpoint, kept).values())
        shards = _numbered(checkpoint, groups, kind.stem, kind)
        index = f"{kind.stem}{kind.suffix}{INDEX_SUFFIX}"
    files = [
        replace(kind.shard.lay_out(each.checkpoint, options).files[0], name=each.file)
        for each in shards
    ]
    if index is not None:
        ties = kind.is_safetensors and not options.duplicate_ties
        tied = tied_names(checkpoint.state_dicts[0]) if ties else {}
        data = _index(shards, kept, options, kind, tied)
        files.append(FileLayout(index, data.nbytes, [data], partial(_write, data)))
    return Layout(tuple(files), owned=_owned(index, kind))


def _write(data: ByteSource, sink: Sink) -> None:
    sink.copy(data)


def _index(
    shards: Sequence[_Shard],
    kept: Sharding | None,
    options: LayoutOptions,
    kind: Kind,
    tied: Mapping[str, str],
) -> ByteSource:
    """Return the index, as transformers writes it; that of the input if it says the same.

    `tied` names stand in its metadata, as huggingface_hub puts them there, unless there is an input
    whose index has none.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for each in shards:
        written, nbytes = _written(each.state_dict, options, kind)
        total += nbytes
        known = () if kept is None else kept.weight_map
        weight_map |= {n: each.file for n in each.state_dict.names if n in written or n in known}
    old = {} if kept is None else kept.metadata
    metadata: dict[str, Any] = dict(old)
    if old.get(_TOTAL_SIZE) != total:
        metadata = {key: value for key, value in old.items() if key not in _STALE}
        metadata[_TOTAL_SIZE] = total
    stale = index_ties(old, () if kept is None else kept.weight_map)
    if kept is None or stale:
        metadata = {key: value for key, value in metadata.items() if key not in stale}
        metadata |= _ties_of(tied, weight_map)
    if kept is not None and metadata == old and weight_map == kept.weight_map:
        return kept.file
    document = {"metadata": metadata, "weight_map": weight_map}
    return Bytes((json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def _ties_of(tied: Mapping[str, str], weight_map: Mapping[str, str]) -> dict[str, str]:
    """Return the tied names that have no file, each with the one that has it."""
    groups: dict[str, list[str]] = {}
    for alias, name in tied.items():
        groups.setdefault(name, [name]).append(alias)
    return {
        alias: next(each for each in names if each in weight_map)
        for names in groups.values()
        for alias in names
        if alias not in weight_map
    }


def _written(
    state_dict: StateDict, options: LayoutOptions, kind: Kind
) -> tuple[Container[str], int]:
    """Return the names that a shard has tensors for, and the bytes of these.

    A tied name of a safetensors file stands in its header alone, and not in an index.
    """
    if not kind.is_safetensors:
        storages = {storage for entry in state_dict.entries for storage in _storages(entry)}
        return state_dict.names, sum(storage.nbytes for storage in storages)
    ties = {} if options.duplicate_ties else tied_names(state_dict)
    written = {name: each.nbytes for name, each in state_dict.tensors if name not in ties}
    return written, sum(written.values())


def _owned(index: str | None, kind: Kind) -> tuple[str, ...]:
    """Return the names that an earlier output into the same directory may have left."""
    stems = {kind.stem, _DIFFUSERS} if index is None else {kind.stem, _stem(index, kind)}
    suffix = kind.suffix
    return tuple(
        name
        for stem in sorted(stems)
        for name in (
            f"{stem}-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]{suffix}",
            f"{stem}{suffix}",
            f"{stem}{suffix}{INDEX_SUFFIX}",
        )
    )


def _own_stem(checkpoint: Checkpoint, kind: Kind) -> str:
    """Return what files of a single one are called: diffusers has a name of its own."""
    name = os.path.basename(checkpoint.file.name)  # noqa: PTH119
    return _DIFFUSERS if name.startswith(f"{_DIFFUSERS}.") else kind.stem


def _stem(index: str, kind: Kind) -> str:
    """Return what the names of a checkpoint's files begin with, if they are of that kind."""
    stem = index.removesuffix(kind.suffix + INDEX_SUFFIX)
    return stem if stem and stem != index else kind.stem


def _split(checkpoint: Checkpoint, most: int, stem: str, kind: Kind) -> list[_Shard]:
    (state_dict,) = checkpoint.state_dicts
    groups = _grouped(state_dict.entries, most)
    if len(groups) <= 1:
        whole = _part(checkpoint, state_dict.entries) if state_dict.path else checkpoint
        return [_Shard(f"{stem}{kind.suffix}", whole)]
    return _numbered(checkpoint, groups, stem, kind)


def _numbered(
    checkpoint: Checkpoint, groups: Sequence[Sequence[Entry]], stem: str, kind: Kind
) -> list[_Shard]:
    return [
        _Shard(f"{stem}-{number:05d}-of-{len(groups):05d}{kind.suffix}", _part(checkpoint, entries))
        for number, entries in enumerate(groups, 1)
    ]


def _grouped(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """Return the entries in groups of at most `most` bytes each, as huggingface_hub does it.

    Bytes of a storage count once, where its first tensor is, and all its tensors go there. A
    storage that is larger than `most` makes a group of its own, before the one that is being
    filled. Within a group the entries keep their order.
    """
    groups: list[list[Entry]] = []
    place: dict[object, list[Entry]] = {}
    current: list[Entry] = []
    filled = 0
    for entry in entries:
        key, nbytes = _block(entry)
        if key in place:
            place[key].append(entry)
        elif nbytes > most:
            place[key] = [entry]
            groups.append(place[key])
        else:
            if filled + nbytes > most:
                groups.append(current)
                current, filled = [], 0
            current.append(entry)
            filled += nbytes
            place[key] = current
    return [*groups, current] if current else groups


def _block(entry: Entry) -> tuple[object, int]:
    """Return what keeps an entry together with others, and the bytes of all of them.

    huggingface_hub tells storages apart by their addresses: all without bytes have the same.
    """
    storages = _storages(entry)
    nbytes = sum(storage.nbytes for storage in storages)
    return (storages[0] if nbytes else None), nbytes


def _storages(entry: Entry) -> list[Storage]:
    if entry.tensor is None:
        return []
    parts = entry.tensor.strided_parts()
    return list(dict.fromkeys(part.storage for part in parts if part.storage is not None))


def _part(checkpoint: Checkpoint, entries: Sequence[Entry]) -> Checkpoint:
    """Return the entries as a file of their own, with the versions of all modules."""
    (state_dict,) = checkpoint.state_dicts
    part = replace(state_dict, path="", entries=tuple(entries))
    return replace(checkpoint, root=None, container=None, state_dicts=(part,), dropped=())


def _as_they_were(checkpoint: Checkpoint, kept: Sharding, options: LayoutOptions) -> list[_Shard]:
    """Return the shards that a checkpoint came in, each with what is left of it.

    Each is the file it was with its edits, so that one without any is copied.
    """
    found = _by_file(checkpoint, kept)
    return [
        _Shard(file, _edited(checkpoint, kept, shard, found[file], options))
        for file, shard in kept.shards
        if file in found
    ]


def _edited(
    checkpoint: Checkpoint,
    kept: Sharding,
    shard: Checkpoint,
    entries: Sequence[Entry],
    options: LayoutOptions,
) -> Checkpoint:
    modules = _modules_of(shard, checkpoint, kept)
    of_index = {} if options.duplicate_ties else index_ties(kept.metadata, kept.weight_map)
    own = tuple(entry for entry in entries if entry.name not in of_index)
    whole = shard.state_dicts[0].entries
    held = whole if own == whole else tuple(entries)  # what the index says needs no new header
    state_dict = replace(shard.state_dicts[0], entries=held, metadata=modules)
    return replace(
        shard,
        state_dicts=(state_dict,),
        others=shard.others if checkpoint.others == kept.others else checkpoint.others,
        moved=checkpoint.moved,
        replaced=checkpoint.replaced,
    )


def _modules_of(
    shard: Checkpoint, checkpoint: Checkpoint, kept: Sharding
) -> Mapping[str, object] | None:
    """Return what is left of a shard's ``_metadata``; all, if an edit has put something into it."""
    modules = checkpoint.state_dicts[0].metadata or {}
    own = shard.state_dicts[0].metadata
    if own is None:
        return None
    known = {name for _, each in kept.shards for name in each.state_dicts[0].metadata or ()}
    names = own if known >= modules.keys() else modules
    return {name: modules[name] for name in names if name in modules}


def _by_file(checkpoint: Checkpoint, kept: Sharding) -> dict[str, list[Entry]]:
    """Return the entries by the shard that they came in.

    A tensor tells by its storage, a computed one by its name; any other follows the one before.
    """
    homes = {
        storage: file
        for file, shard in kept.shards
        for entry in shard.state_dicts[0].entries
        for storage in _storages(entry)
    }
    found: dict[str, list[Entry]] = {file: [] for file, _ in kept.shards}
    last = next(iter(found))
    for entry in checkpoint.state_dicts[0].entries:
        own = next((homes[each] for each in _storages(entry) if each in homes), None)
        last = own or kept.weight_map.get(entry.name, last)
        found[last].append(entry)
    return {file: entries for file, entries in found.items() if entries}
