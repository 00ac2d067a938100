"""What a checkpoint holds, described without holding it: names, shapes, types, places of bytes.

Nothing here reads a tensor. A reader makes a `Checkpoint`, a plan makes another from it, a writer
writes one; none of them knows the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from math import prod
from typing import Any, Literal

from ckpt_surgery.dtypes import DType
from ckpt_surgery.fileio import ByteSource, Source
from ckpt_surgery.startup.lazy_dataclass import dataclass

Role = Literal["parameter", "buffer", "unknown"]
PlacementKind = Literal["shard", "strided-shard", "replicate", "partial"]
StateDictKind = Literal["model", "ema"]


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A run of bytes that tensors view; two storages are equal if they are one object.

    `dtype` is the type that the file stores them as (``uint8`` for an untyped one), `device` where
    they lay when they were saved, `key` their name in the file they come from. Elements of
    several bytes are little-endian unless `big_endian`.
    """

    key: str
    dtype: DType
    device: str
    data: ByteSource
    untyped: bool = False
    big_endian: bool = False

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def numel(self) -> int:
        """What a persistent id counts: elements, or bytes if untyped, as all are of types that
        have no storage class in Python.
        """
        is_untyped = self.untyped or self.dtype.storage_class is None
        return self.nbytes if is_untyped else self.nbytes // self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Placement:
    """What a dimension of a mesh of ranks, of `size`, does to a tensor; `axis` is what it splits.

    `coordinate` is this rank's, from 0.
    """

    kind: PlacementKind
    size: int
    coordinate: int
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a tensor that several ranks have: `number` (from 1) of `count`.

    It has the shape `shape`, of the whole along all axes but `axes`. `is_partial`: parts are of the
    whole's shape, and to be summed up. `placements` say it for each dimension of the mesh, `local`
    is the tensor that this rank has.
    """

    number: int
    count: int
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    is_partial: bool = False
    placements: tuple[Placement, ...] = field(default=(), compare=False)
    local: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor: each rank has a copy."""
        return self.count == 1

    def __str__(self) -> str:
        if self.is_whole:
            return "replica"
        return f"{'partial sum' if self.is_partial else 'shard'} {self.number} of {self.count}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "count": self.count,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "partial": self.is_partial,
        }


@dataclass(frozen=True, slots=True)
class Tensor:
    """How a tensor's elements lie in its storage.

    `stride` and `offset` count elements of `dtype`. A tensor whose elements are not one strided
    view (sparse, nested, a wrapper subclass, meta) has no `storage`; `parts` are then the tensors
    that it is made of. `node` is the graph node that rebuilds exactly this tensor. Of a DTensor
    (layout ``dtensor``), `shape` is that of the whole, and `shard` what part of it this one is.
    """

    shape: tuple[int, ...]
    dtype: DType
    stride: tuple[int, ...]
    offset: int = 0
    storage: Storage | None = None
    layout: str = "strided"
    device: str = "cpu"
    requires_grad: bool = False
    is_parameter: bool = False
    parts: tuple[Tensor, ...] = ()
    shard: Shard | None = None
    node: object = field(default=None, compare=False, repr=False)

    @property
    def described_layout(self) -> str:
        """Its layout for people: of a shard also which."""
        return self.layout if self.shard is None else f"{self.layout}, {self.shard}"

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements: a strided tensor's own, otherwise those of its parts."""
        if self.storage is not None:
            return self.dtype.nbytes(self.numel)
        return sum(part.nbytes for part in self.parts)

    @property
    def extent(self) -> int:
        """Elements from the first to the last that it touches, both counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def identity(self) -> object:
        """Return what it has in common with exactly those tensors that are the same elements.

        Tied tensors are: of the same storage, from the same offset on, with the same type, shape
        and strides, except those of dimensions of one element. A tensor without storage or
        elements shares it with none.
        """
        if self.storage is None or not self.numel:
            return id(self)
        strides = tuple(step for n, step in zip(self.shape, self.stride, strict=True) if n > 1)
        return self.storage, self.dtype, self.offset, self.shape, strides

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return False
            expected *= max(n, 1)
        return True

    def strided_parts(self) -> Iterator[Tensor]:
        """Yield the strided tensors that this one is made of, itself if it is one."""
        if self.storage is not None:
            yield self
        for part in self.parts:
            yield from part.strided_parts()


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a state dict. `tensor` is None for a value that is no tensor (an extra state).

    `tensors` are those below such a value: an optimizer's among the weights of a flat file.
    """

    name: str
    tensor: Tensor | None
    role: Role = "unknown"
    node: object = field(default=None, compare=False, repr=False)
    key_node: object = field(default=None, compare=False, repr=False)
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class StateDict:
    """A mapping of names to tensors. `path` joins nested keys with ``/``; the top level is ``""``.

    `metadata` is ``_metadata``: module path to the node of what is stored for it (None: the
    mapping has none). `node` is the graph node it was read from, and that writing it replaces.
    `missing` names modules whose weights are not among the entries, though the model has them.
    """

    path: str
    kind: StateDictKind
    entries: tuple[Entry, ...]
    metadata: Mapping[str, object] | None = None
    node: object = field(default=None, compare=False, repr=False)
    missing: tuple[str, ...] = ()

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((e.name, e.tensor) for e in self.entries if e.tensor is not None)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]


@dataclass(frozen=True, slots=True)
class PickledModule:
    """A pickled module, and the state dict that it was read as.

    As long as an edit leaves that as it is the module stays what it is when it is written. `notes`
    say why the module itself might give another.
    """

    state_dict: StateDict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Other:
    """Anything in the file beside its state dicts: an epoch, an optimizer, the arguments.

    `type` is the qualified name of its class, `value` its value if that is a plain scalar or a
    short text. `tensors` are those below it. It stands under `key_node` in the container `parent`.
    """

    path: str
    type: str
    value: Any = None
    tensors: tuple[Tensor, ...] = ()
    node: object = field(default=None, compare=False, repr=False)
    parent: object = field(default=None, compare=False, repr=False)
    key_node: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint, described: its state dicts, what lies beside them, and the graph of both.

    `sources` are what its bytes come from: first what the user named, then what that leads to
    (the shards of an index).

    The graph (`root`) is what the reader found and is never changed. What differs from it is said
    here, and carried out by the writer: state dicts whose entries differ from their node's items,
    the `dropped` among the other entries, `moved` tensors by the identity of their node, and
    other nodes that are `replaced`, by theirs. `devices` says which device is written in the place
    of one that tensors were saved on.
    `architecture` is what a file beside the weights calls the model, if one does; `opcodes` are the
    rarer ones in its pickles, and `globals` the classes and functions that these name.
    `modules` are the pickled modules that may stay what they are, by the identity of their node.
    `provenance` is to be kept in the file that is written: how it came about, as JSON.
    `notes` are the reader's remarks; `unwritable` says what of the file would get lost if it was
    written again.
    """

    format: str
    sources: tuple[Source, ...]
    root: object
    state_dicts: tuple[StateDict, ...]
    others: tuple[Other, ...] = ()
    globals: tuple[str, ...] = ()
    container: object = None
    notes: tuple[str, ...] = ()
    unwritable: str = ""
    dropped: tuple[Other, ...] = ()
    moved: Mapping[int, Tensor] = field(default_factory=dict)
    replaced: Mapping[int, object] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[int, PickledModule] = field(default_factory=dict)
    architecture: str = ""
    opcodes: frozenset[int] = frozenset()
    provenance: str = ""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what tensor bytes would come from; the description stays usable."""
        for source in self.sources:
            source.close()

    @property
    def file(self) -> Source:
        """What the user named."""
        return self.sources[0]

    @property
    def size(self) -> int:
        """Length in bytes of all sources together."""
        return sum(source.size for source in self.sources)

    @property
    def all_tensors(self) -> Iterator[Tensor]:
        """Every tensor of the file, an optimizer's beside or among the weights included."""
        for state_dict in self.state_dicts:
            for entry in state_dict.entries:
                yield from entry.tensors if entry.tensor is None else (entry.tensor,)
        for other in self.others:
            yield from other.tensors

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of every state dict, as ``path/name`` (``name`` at the top level)."""
        for state_dict in self.state_dicts:
            for name, tensor in state_dict.tensors:
                yield join_path(state_dict.path, name), tensor


def join_path(path: str, key: str) -> str:
    """`key` below `path`; the top level is the empty path."""
    return f"{path}/{key}" if path else key


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a row-major tensor of that shape, in elements, as torch counts them."""
    steps: list[int] = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(reversed(steps))


def find_ties(tensors: Iterable[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names whose tensors are the same elements of the same storage."""
    listed = [(name, tensor) for name, tensor in tensors if tensor.storage is not None]
    shared = shared_storages(tensor for _, tensor in listed)
    groups: dict[object, list[str]] = {}
    for name, tensor in listed:
        if tensor.storage in shared and tensor.numel:
            groups.setdefault(tensor.identity, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def shared_storages(tensors: Iterable[Tensor]) -> set[Storage]:
    """Return the storages that several of `tensors` lie in: no others can be tied."""
    seen: set[Storage] = set()
    shared: set[Storage] = set()
    for tensor in tensors:
        storage = tensor.storage
        if storage is not None:
            (shared if storage in seen else seen).add(storage)
    return shared
