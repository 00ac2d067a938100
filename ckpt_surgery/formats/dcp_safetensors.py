"""The safetensors variant of torch.distributed.checkpoint, as each rank saves its own shards.

``HuggingFaceStorageWriter(…, save_distributed=True)`` writes a file for each rank, whose
``__metadata__`` says under ``DCP_SHARDING_INFO`` where the part of each tensor begins. Without that
option it writes what any reader of sharded safetensors reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    Other,
    StateDict,
    Storage,
    Tensor,
    contiguous_strides,
)
from ckpt_surgery.checkpoint.stitch import Chunk, stitch
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import MemorySource, Source
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.safetensors import A_PART, OF_DCP, OF_RANKS, Safetensors
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.pickles import Limits
from ckpt_surgery.torch_objects.kinds import role_of
from ckpt_surgery.torch_objects.row_major import row_major

_SHARD: Final = re.compile(r"shard-(\d{5})-model-(\d{5})-of-(\d{5})\.safetensors")
_OFFSETS: Final = "saved_offsets"


class DcpSafetensors(Format):
    """A directory that ``HuggingFaceStorageWriter`` wrote from several ranks."""

    name = "dcp-safetensors"
    title = "a distributed checkpoint of safetensors"
    written_as = "safetensors"
    of_directories = True

    def sniff(self, source: Source) -> bool:
        """Say whether files of ranks lie in it."""
        return isinstance(source, DirectorySource) and bool(rank_files(source))

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the tensors of all ranks, each whole.

        Raises `DamagedFileError` if a file does not say where its parts are, or parts do not make
        a whole.
        """
        if not isinstance(source, DirectorySource):
            raise ReadError("is no directory", path=source.name)
        shards = [Safetensors().read(source.member(name), limits) for name in rank_files(source)]
        return put_together(source, shards, frozenset())


def put_together(
    source: DirectorySource, shards: Sequence[Checkpoint], lost: Collection[str]
) -> Checkpoint:
    """Describe the tensors of all ranks, whose files are `shards`, but those that are `lost`."""
    chunks: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {}
    texts: dict[str, str] = {}
    for shard in shards:
        metadata: Mapping[str, str] = next(
            (other.value for other in shard.others if other.path == METADATA), {}
        )
        texts |= {key: value for key, value in metadata.items() if key not in OF_DCP}
        places = _places(shard, metadata)
        for name, tensor in shard.state_dicts[0].tensors:
            if name not in lost:
                chunks.setdefault(name, []).append((_place(shard, name, tensor, places), tensor))
    entries = tuple(_entry(name, parts, source) for name, parts in chunks.items())
    return Checkpoint(
        format=DcpSafetensors.name,
        # the directory is what was named, and its bytes are those of the files
        sources=(MemorySource(b"", name=source.name), *(shard.file for shard in shards)),
        root=None,
        state_dicts=(StateDict("", "model", entries),),
        others=(Other(METADATA, "dict", texts),) if texts else (),
        notes=(
            *(note for shard in shards for note in shard.notes if note != A_PART),
            *_gaps(rank_files(source)),
        ),
    )


def require_whole(shard: Checkpoint) -> None:
    """Raise `DamagedFileError` if a file says that a tensor in it is a part, beside an index."""
    for other in shard.others:
        if other.path != METADATA or OF_RANKS not in other.value:
            continue
        places = _places(shard, other.value)
        for name, tensor in shard.state_dicts[0].tensors:
            if any(_place(shard, name, tensor, places)):
                raise DamagedFileError(
                    "is a part of a tensor, and the index takes it for the whole",
                    path=shard.file.name,
                    entry=name,
                )


def rank_files(source: DirectorySource) -> list[str]:
    """Return the names of the files of ranks in a directory."""
    return [name for name in source.names if _SHARD.fullmatch(name)]


def _gaps(files: Sequence[str]) -> Iterator[str]:
    """Yield which numbers are missing among those that ranks and files have in their names."""
    found = [tuple(map(int, match.groups())) for name in files if (match := _SHARD.fullmatch(name))]
    for what, numbers, last in (
        ("rank", {rank for rank, _, _ in found}, max(rank for rank, _, _ in found)),
        ("model file", {file for _, file, _ in found}, max(last for _, _, last in found)),
    ):
        gone = [str(number) for number in range(1, last + 1) if number not in numbers]
        if gone:
            yield (
                f"nothing is there of {what} {', '.join(gone)}: one that is lost looks like one "
                "that had nothing to save"
            )


def _places(shard: Checkpoint, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    if OF_RANKS not in metadata:
        raise DamagedFileError(
            f"'{OF_RANKS}' is missing in the metadata", path=shard.file.name, entry=METADATA
        )
    return load_object(metadata[OF_RANKS].encode(), path=shard.file.name, what=OF_RANKS)


def _place(
    shard: Checkpoint, name: str, tensor: Tensor, places: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return where a rank's part of a tensor begins."""
    found = places.get(name)
    offsets = found.get(_OFFSETS) if isinstance(found, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != len(tensor.shape)
        or any(type(n) is not int or not 0 <= n < 2**63 for n in offsets)
    ):
        raise DamagedFileError(
            f"'{OF_RANKS}' does not say where its part of the tensor begins",
            path=shard.file.name,
            entry=name,
        )
    return tuple(offsets)


def _entry(
    name: str, parts: list[tuple[tuple[int, ...], Tensor]], source: DirectorySource
) -> Entry:
    dtype = parts[0][1].dtype
    ends = [[at + n for at, n in zip(a, t.shape, strict=True)] for a, t in parts]
    if len({(t.dtype.name, len(t.shape)) for _, t in parts}) > 1:
        raise DamagedFileError("parts are of several types", path=source.name, entry=name)
    shape = tuple(map(max, zip(*ends, strict=True)))
    try:
        chunks = {at: Chunk(at, tensor.shape, row_major(tensor)) for at, tensor in parts}
        data = stitch(shape, dtype.itemsize, list(chunks.values()))
    except ReadError as error:
        error.entry = name
        error.name_file(source.name)
        raise
    storage = Storage(name, dtype, "cpu", data, untyped=dtype.storage_class is None)
    tensor = Tensor(shape, dtype, contiguous_strides(shape), storage=storage)
    return Entry(name, tensor, role_of(name, tensor))
