"""FSDP of fairscale: flat parameters, and ``shard_metadata`` that says what is in them.

The rules are those of ``FullyShardedDataParallel.consolidate_shard_weights`` (fairscale 0.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import Node
from ckpt_surgery.ranks.flat import Vector, item, shaped, view_of
from ckpt_surgery.ranks.parts import RankFile, Way
from ckpt_surgery.torch_objects.calls import sizes
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.storages import text

_METADATA: Final = "shard_metadata"


def has_shard_metadata(rank: RankFile) -> bool:
    """Return whether the file says what is in its flat parameters."""
    return item(rank.root, _METADATA, "param_metadata") is not None


def unflattened(ranks: Sequence[RankFile]) -> dict[str, Tensor]:
    """Return the parameters and buffers in the files of all ranks.

    Raises `DamagedFileError` if the metadata does not fit the weights.
    """
    weights = [_weights(rank) for rank in ranks]
    described = [_list(item(rank.root, _METADATA, "param_metadata"), rank) for rank in ranks]
    found: dict[str, Tensor] = {}
    shared: list[tuple[str, str]] = []
    for number, wrapper in enumerate(described[0]):
        path = text(item(wrapper, "fsdp_path")) or ""
        alone = item(wrapper, "no_broadcast_optim_state") is True
        for backing, info in _named(item(wrapper, "params")):
            paddings = [
                item(each[number] if number < len(each) else None, "params", backing, "padding")
                for each in (described[:1] if alone else described)
            ]
            runs = [
                _unpadded(weights[rank], _join(path, backing), padding, ranks[rank])
                for rank, padding in enumerate(paddings)
            ]
            found |= _split(path, info, runs, ranks[0])
        shared = _shared(item(wrapper, "shared_param_info"))
    for source, name in shared:
        if source in found:
            found[name] = found[source]
    for buffer in _list(item(ranks[0].root, _METADATA, "buffer_names"), ranks[0]):
        name = text(buffer) or ""
        if name not in weights[0]:
            raise DamagedFileError("a buffer is missing", path=ranks[0].name, entry=name)
        found[name] = weights[0][name]
    return found


def _weights(rank: RankFile) -> dict[str, Tensor]:
    """Return the tensors of the one dictionary that flat parameters are in, by their names."""
    ways = [way for way in rank.parts if way and way[0] != _METADATA]
    folders: dict[Way, int] = {}
    for way in ways:
        folders[way[:-1]] = folders.get(way[:-1], 0) + ("flat_param" in way[-1])
    folder = max(folders, key=lambda each: folders[each], default=())
    return {
        way[-1]: rank.parts[way].tensor
        for way in ways
        if way[:-1] == folder and rank.parts[way].kind == "plain"
    }


def _unpadded(
    weights: Mapping[str, Tensor], name: str, padding: Node, rank: RankFile
) -> list[Tensor]:
    tensor = weights.get(name)
    if tensor is None or type(padding) is not int or not 0 <= padding <= tensor.numel:
        raise DamagedFileError(
            "the metadata of shards does not fit the weights", path=rank.name, entry=name
        )
    flat = view_of(tensor, (tensor.numel,))
    return Vector([flat]).runs(0, flat.numel - padding)


def _split(
    path: str, info: Node, runs: Sequence[Sequence[Tensor]], rank: RankFile
) -> dict[str, Tensor]:
    """Return the parameters that lie one after the other in `runs`."""
    names, shapes = _list(item(info, "names"), rank), _list(item(info, "shapes"), rank)
    vector = Vector([run for each in runs for run in each])
    found: dict[str, Tensor] = {}
    start = 0
    for name, shape in zip(names, map(sizes, shapes), strict=True):
        numel = 1
        for n in shape:
            numel *= n
        full = _join(path, text(name) or "")
        found[full] = shaped(full, shape, vector.runs(start, numel))
        start += numel
    if start != vector.numel:
        raise DamagedFileError(
            f"flat parameters of {vector.numel} elements are said to hold {start}",
            path=rank.name,
        )
    return found


def _shared(node: Node) -> list[tuple[str, str]]:
    pairs = (
        [each for each in node if isinstance(each, list | tuple) and len(each) == 2]
        if (isinstance(node, list | tuple))
        else []
    )
    named = [(text(source), text(name)) for source, name in pairs]
    return [(source, name) for source, name in named if source is not None and name is not None]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _list(node: Node, rank: RankFile) -> list[Node]:
    if not isinstance(node, list | tuple):
        raise DamagedFileError("the metadata of shards is not of fairscale's form", path=rank.name)
    return list(node)


def _named(node: Node) -> list[tuple[str, Node]]:
    return [(text(key) or "", value) for key, value in mapping_pairs(node) or ()]
