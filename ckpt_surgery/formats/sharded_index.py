"""The index of shards: which file has which tensor, and what it says of all of them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Other
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.formats.safetensors_header import is_alias
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MAX_INDEX_BYTES: Final = 64 << 20
"""An index has some hundred bytes a tensor; the largest published ones have 10 MB."""

INDEX_SUFFIX: Final = ".index.json"
_WEIGHT_MAP: Final = "weight_map"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What an index says: the file of each tensor, and what it knows of all of them."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def total_size(self) -> int | None:
        """The bytes of all tensors, None if it does not say."""
        total = self.metadata.get("total_size")
        return int(total) if isinstance(total, int | float) else None

    @property
    def files(self) -> list[str]:
        """The names of the shards, sorted, as they are numbered."""
        return sorted(set(self.weight_map.values()))


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a checkpoint was split: its index, and each shard by its name as it was read.

    `index` is the name of the index, `file` its bytes, `weight_map` and `metadata` what it says.
    `others` are those of all shards in one.
    """

    index: str
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]
    file: ByteRange
    shards: tuple[tuple[str, Checkpoint], ...]
    others: tuple[Other, ...]


def looks_like_index(source: Source) -> bool:
    """Say whether `source` is a JSON object with a weight map; reads at most what an index has."""
    if not 0 < source.size <= _MAX_INDEX_BYTES:
        return False
    if not source.read_at(0, min(source.size, 64)).lstrip().startswith(b"{"):
        return False
    return f'"{_WEIGHT_MAP}"'.encode() in source.read_at(0, source.size)


def read_index(source: Source) -> ShardIndex:
    """Return what the index says. Raises `DamagedFileError` if it is not of an index's form."""
    if source.size > _MAX_INDEX_BYTES:
        raise LimitExceededError(
            f"the index has {source.size} bytes, more than {_MAX_INDEX_BYTES}", path=source.name
        )
    found = load_object(source.read_at(0, source.size), path=source.name, what="the index")
    weight_map, metadata = found.get(_WEIGHT_MAP), found.get("metadata")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise DamagedFileError(
            f"'{_WEIGHT_MAP}' does not map names of tensors to names of files", path=source.name
        )
    return ShardIndex(weight_map, metadata if isinstance(metadata, dict) else {})


def index_ties(metadata: Mapping[str, Any], names: Container[str]) -> dict[str, str]:
    """Return the tied names among an index's metadata, each with the name of what is written."""
    return {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str) and is_alias(key, value, names)
    }
