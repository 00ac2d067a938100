"""A ShardedTensor of one rank (FSDP1, ``torch.distributed._shard``): its chunks and their places.

It is written as the rank's own shards, each with its offsets and sizes in the whole, and the
metadata of all shards: ``ShardedTensor.__getstate__`` in ``sharded_tensor/api.py`` of torch. Until
torch 2.0 it was no subclass of a tensor, with the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ckpt_surgery.checkpoint.description import Shard, Tensor
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Dict, Global, List, Node, Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import sizes, steps
from ckpt_surgery.torch_objects.mappings import named_items

_CLASSES: Final = frozenset(
    {
        "torch.distributed._shard.sharded_tensor.api.ShardedTensor",
        "torch.distributed._sharded_tensor.api.ShardedTensor",
    }
)
_FROM_TYPE: Final = "_rebuild_from_type_v2"
_PARTS_OF_STATE: Final = 5
_CHANGEABLE: Final = (List, Dict, Object)


@dataclass(frozen=True, slots=True)
class ShardedTensor:
    """The shape of the whole, and the rank's chunks of it: where each begins, and its elements.

    `places` are where the chunks of all ranks begin.
    """

    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], Tensor], ...]
    places: tuple[tuple[int, ...], ...] = ()

    @property
    def shard(self) -> Shard:
        """What part of the whole the rank has: its first chunk, or none, which is the last."""
        count = max(len(self.places), 1)
        if not self.chunks:
            return Shard(count, count, (), (0,) * len(self.shape))
        at, tensor = self.chunks[0]
        number = self.places.index(at) + 1 if at in self.places else 1
        axes = (n for n, size in enumerate(self.shape) if tensor.shape[n : n + 1] != (size,))
        return Shard(number, count, tuple(axes), tensor.shape)


def read_sharded_tensor(
    node: Node, describe: Callable[[Node], Tensor | None]
) -> ShardedTensor | None:
    """Return what a node says that rebuilds a ShardedTensor; None for any other.

    Raises `DamagedFileError` if it is not of the form that torch writes.
    """
    if not isinstance(node, Object):
        return None
    if node.name.endswith(_FROM_TYPE) and isinstance(node.args, tuple) and len(node.args) == 4:
        kind, state, at = node.args[1], node.args[3], node.at
    elif node.op == "NEWOBJ" and node.args == ():
        kind, state, at = node.callee, node.state, node.changed
    else:
        return None
    if not isinstance(kind, Global) or kind.qualified not in _CLASSES:
        return None
    if not isinstance(state, tuple) or len(state) != _PARTS_OF_STATE:
        raise DamagedFileError("a ShardedTensor has not the state that torch gives it")
    shards, metadata = state[0], _fields(state[1], at)
    if not isinstance(shards, list) or "size" not in metadata:
        raise DamagedFileError("a ShardedTensor has no shards or no size")
    _require_settled(shards, at)
    listed = metadata.get("shards_metadata")
    places = (_fields(each, at).get("shard_offsets") for each in _list(listed, at))
    return ShardedTensor(
        sizes(metadata["size"]),
        tuple(_chunk(shard, at, describe) for shard in shards),
        tuple(steps(place) for place in places if place is not None),
    )


def _list(node: Node, at: int) -> list[Node]:
    _require_settled(node, at)
    return node if isinstance(node, list) else []


def _chunk(
    shard: Node, at: int, describe: Callable[[Node], Tensor | None]
) -> tuple[tuple[int, ...], Tensor]:
    fields = _fields(shard, at)
    tensor = describe(fields.get("tensor"))
    place = _fields(fields.get("metadata"), at)
    if tensor is None or not {"shard_offsets", "shard_sizes"} <= place.keys():
        raise DamagedFileError("a shard of a ShardedTensor has no tensor or no place")
    for part in ("shard_offsets", "shard_sizes"):
        _require_settled(place[part], at)
    if sizes(place["shard_sizes"]) != tensor.shape:
        raise DamagedFileError("a shard of a ShardedTensor has another shape than its place")
    return steps(place["shard_offsets"]), tensor


def _fields(node: Node, at: int) -> dict[str, Node]:
    """Return the attributes of an object, which a dataclass with slots has as a pair."""
    if not isinstance(node, Object) or node.state is NO_STATE:
        return {}
    _require_settled(node, at)
    state = node.state
    if isinstance(state, tuple) and len(state) == 2:
        state = state[1]
    _require_settled(state, at)
    return named_items(state) or {}


def _require_settled(node: Node, at: int) -> None:
    if isinstance(node, _CHANGEABLE) and node.changed > at:
        raise DamagedFileError("what a ShardedTensor is made of is changed after it was made")
