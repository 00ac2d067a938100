"""What one rank's file holds: its part of every tensor, and everything else, by the way to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from math import prod
from typing import Final, Literal

from ckpt_surgery.checkpoint.description import Checkpoint, Placement, Tensor
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits, Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.rebuild import lower, settled
from ckpt_surgery.torch_objects.sharded_tensor import read_sharded_tensor
from ckpt_surgery.torch_objects.tensors import TensorReader

Way = tuple[str, ...]
"""Keys from the root of a file to something in it."""

_PATH_SHARE: Final = 2  # characters of all ways, as a share of the operations of `Limits`


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has of a tensor.

    `chunks` are where each begins in the whole, and its elements. Of a ``plain`` tensor nothing is
    said about a whole: `shape` is its own. An ``other`` one has no chunks that could be joined;
    `layout` says what it is. `node` rebuilds it.
    """

    kind: Literal["plain", "dtensor", "sharded", "other"]
    shape: tuple[int, ...]
    layout: str
    chunks: tuple[tuple[tuple[int, ...], Tensor], ...] = ()
    node: object = field(default=None, compare=False, repr=False)

    @property
    def is_placed(self) -> bool:
        """Whether the file says which part of the whole it is."""
        return self.kind in ("dtensor", "sharded")

    @property
    def tensor(self) -> Tensor:
        """The elements of a plain one."""
        return self.chunks[0][1]


@dataclass(frozen=True, slots=True)
class RankFile:
    """One rank's file: the graph in it, its tensors and all other values, by the way to each."""

    checkpoint: Checkpoint
    root: Node
    parts: Mapping[Way, Part]
    values: Mapping[Way, Node]

    @property
    def name(self) -> str:
        """What messages call the file."""
        return self.checkpoint.file.name


def read_parts(checkpoint: Checkpoint, limits: Limits = DEFAULT_LIMITS) -> RankFile:
    """Return what a rank's file holds. Raises `DamagedFileError` for a tensor of a wrong form."""
    root = checkpoint.root
    if root is None or checkpoint.replaced:
        root = settled(lower(checkpoint))
    reader = TensorReader(limits)
    parts: dict[Way, Part] = {}
    values: dict[Way, Node] = {}
    room = limits.operations // _PATH_SHARE
    for way, node in _leaves(root, reader):
        room -= 1 + sum(map(len, way))
        if room < 0:
            raise LimitExceededError("the names of what it holds are too long")
        part = _part(node, reader)
        if part is None:
            values[way] = node
        else:
            parts[way] = part
    return RankFile(checkpoint, root, parts, values)


def _leaves(root: Node, reader: TensorReader) -> Iterator[tuple[Way, Node]]:
    """Yield what lies in dictionaries, lists and tuples, each object of these visited once."""
    waiting: list[tuple[Way, Node]] = [((), root)]
    seen: set[int] = set()
    while waiting:
        way, node = waiting.pop()
        below = None
        if reader.describe(node) is None:
            pairs = mapping_pairs(node)
            if pairs is not None:
                below = [((*way, printed_key(key)), value) for key, value in pairs]
            elif isinstance(node, list | tuple):
                below = [((*way, str(index)), each) for index, each in enumerate(node)]
        if below is None:
            yield way, node
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.extend(reversed(below))


def _part(node: Node, reader: TensorReader) -> Part | None:
    """Return what a tensor is a part of; None for what is none."""
    sharded = read_sharded_tensor(node, reader.describe)
    if sharded is not None:
        return Part("sharded", sharded.shape, "sharded", sharded.chunks, node)
    tensor = reader.describe(node)
    if tensor is None:
        return None
    if tensor.shard is not None and tensor.shard.local is not None:
        if tensor.shard.is_partial:
            return Part("other", tensor.shape, "partial sum", node=node)
        offsets, sizes = _extent(tensor.shape, tensor.shard.placements)
        local = tensor.shard.local
        if local.shape != sizes and prod(local.shape) + prod(sizes):
            raise DamagedFileError(
                f"a rank has {list(local.shape)} of a tensor of {list(tensor.shape)}, and its "
                f"placement says {list(sizes)}"
            )
        return Part("dtensor", tensor.shape, tensor.layout, ((offsets, local),), node)
    if tensor.layout != "strided" or tensor.storage is None:
        return Part("other", tensor.shape, tensor.layout, node=node)
    return Part("plain", tensor.shape, "strided", (((0,) * len(tensor.shape), tensor),), node)


def _extent(
    shape: tuple[int, ...], placements: tuple[Placement, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where a rank's part of a DTensor begins, and its sizes.

    Each dimension of the mesh splits what those before it left, as `torch.chunk` does: in parts of
    equal length, of which the last ones are shorter or empty. A strided one (FSDP over a tensor
    that is already split for tensor parallelism) comes after those behind it.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    strided = [p for p in placements if p.kind == "strided-shard"]
    for placement in (*(p for p in placements if p.kind == "shard"), *reversed(strided)):
        axis = placement.axis if placement.axis is not None else 0
        if not -len(shape) <= axis < len(shape):
            raise DamagedFileError(f"a tensor of {len(shape)} axes is split along axis {axis}")
        length = -(-sizes[axis] // placement.size)
        start = min(placement.coordinate * length, sizes[axis])
        offsets[axis] += start
        sizes[axis] = min(length, sizes[axis] - start)
    return tuple(offsets), tuple(sizes)
