"""The ``.metadata`` of torch.distributed.checkpoint: parsed, never run.

torch reads it with ``pickle.load``, which runs what it says. Here it is a graph, of which exactly
the classes are read that torch writes (``torch/distributed/checkpoint/metadata.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import Source
from ckpt_surgery.pickles import NO_STATE, Dict, Global, Limits, Node, Object, parse
from ckpt_surgery.pickles.emit import emit
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.mappings import named_items, state_of

NAME: Final = ".metadata"

_MODULE: Final = "torch.distributed.checkpoint.metadata."
_STORAGE_INFOS: Final = (
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint._extension._StorageInfo",
)
_VERSION: Final = "1.0.0"  # of the format, which torch writes as well
_LONGEST_PATH: Final = 1000  # keys from the root to an entry


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """A chunk of a tensor, and where in which file the archive lies that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorItem:
    """A tensor: its type and shape, and its chunks."""

    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[ChunkPlace, ...]


@dataclass(frozen=True, slots=True)
class ObjectItem:
    """Anything else: the archive that holds it."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpMetadata:
    """What ``.metadata`` says: the items by name, and the keys that lead to each from the root."""

    items: Mapping[str, TensorItem | ObjectItem]
    paths: Mapping[str, tuple[str | int, ...]]
    globals: tuple[str, ...]


def read_metadata(source: Source, limits: Limits) -> DcpMetadata:
    """Parse the file. Raises `DamagedFileError` for any form that torch does not write."""
    parsed = parse(source.read_at(0, source.size), limits=limits)
    fields = _fields(parsed.root, _MODULE + "Metadata")
    storage = _storage(_need(fields, "storage_data"))
    items: dict[str, TensorItem | ObjectItem] = {}
    for name, node in _named(_need(fields, "state_dict_metadata")).items():
        items[name] = _item(name, node, storage)
    known = {(name, offsets) for name, item in items.items() for offsets in _offsets(item)}
    for name, offsets in storage:
        if (name, offsets) not in known:
            raise DamagedFileError("data is stored for what is not listed", entry=name)
    return DcpMetadata(
        items,
        _paths(fields.get("planner_data"), items),
        tuple(dict.fromkeys(each.qualified for each in parsed.globals)),
    )


def metadata_bytes(
    items: Sequence[tuple[str, tuple[str | int, ...], Tensor | None, int, int]],
    order: Sequence[str],
    file: str,
) -> bytes:
    """Return ``.metadata`` of a checkpoint whose archives all lie in `file`.

    `items` are, in the order of the state dict: the name, the keys that lead to it from the root,
    the tensor (None for an object), and byte and length of the archive. `order` are the names as
    the file has them.
    """
    zeros = {name: (0,) * len(t.shape) if t is not None else None for name, _, t, *_ in items}
    spans = {name: span for name, _, _, *span in items}
    listed: list[Node] = []
    paths: list[Node] = []
    stored: list[Node] = []
    for name, path, tensor, *_ in items:
        listed += (name, _object("BytesStorageMetadata") if tensor is None else _stored(tensor))
        paths += (name, path)
    for name in order:
        at = zeros[name]
        index = None if at is None else 0
        place = _object(
            "MetadataIndex", fqn=name, index=index, **({} if at is None else {"offset": _sizes(at)})
        )
        info = dict(zip(("offset", "length"), spans[name], strict=True))
        stored += (place, _made(_STORAGE_INFOS[0], relative_path=file, **info))
    root = _object(
        "Metadata",
        state_dict_metadata=Dict(listed),
        planner_data=Dict(paths),
        storage_data=Dict(stored),
        storage_meta=None,
        version=_VERSION,
    )
    return emit(root)


def _stored(tensor: Tensor) -> Object:
    """Return what is said of a tensor in one chunk."""
    layout = Object("REDUCE", Global("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Object("REDUCE", _global(_MODULE + "_MEM_FORMAT_ENCODING"), (0,))
    state = (Global("torch", tensor.dtype.name), layout, False, contiguous, False)
    chunk = _object(
        "ChunkStorageMetadata",
        offsets=_sizes((0,) * len(tensor.shape)),
        sizes=_sizes(tensor.shape),
    )
    return _object(
        "TensorStorageMetadata",
        properties=Object("NEWOBJ", _global(_MODULE + "TensorProperties"), (), state=state),
        size=_sizes(tensor.shape),
        chunks=[chunk],
    )


def _object(name: str, **fields: Node) -> Object:
    return _made(_MODULE + name, **fields)


def _made(qualified: str, **fields: Node) -> Object:
    state = Dict([part for item in fields.items() for part in item]) if fields else NO_STATE
    return Object("NEWOBJ", _global(qualified), (), state=state)


def _global(qualified: str) -> Global:
    module, _, name = qualified.rpartition(".")
    return Global(module, name)


def _sizes(sizes: tuple[int, ...]) -> Object:
    return Object("REDUCE", Global("torch", "Size"), (tuple(iter(sizes)),))


def _offsets(item: TensorItem | ObjectItem) -> list[tuple[int, ...] | None]:
    return [None] if isinstance(item, ObjectItem) else [chunk.offsets for chunk in item.chunks]


_Places = dict[tuple[str, tuple[int, ...] | None], tuple[str, int, int]]


def _storage(node: Node) -> _Places:
    """Return file, offset and length of every chunk by name and offsets (None: no tensor)."""
    places: _Places = {}
    if not isinstance(node, Dict):
        _refuse("no dictionary of places")
    for key, value in node.pairs():
        index = _fields(key, _MODULE + "MetadataIndex")
        name, offset = _need(index, "fqn"), index.get("offset")
        if not isinstance(name, str):
            _refuse("the name of an entry is no text")
        info = _fields(value, *_STORAGE_INFOS)
        file, start, length = (_need(info, key) for key in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or not _is_size(start) or not _is_size(length):
            _refuse("a place in a file is not one", name)
        if info.get("transform_descriptors"):
            _refuse("the data is transformed (compressed or encrypted)", name)
        where = (name, None if offset is None else _size(offset, name))
        if where in places:
            _refuse("an entry is stored twice", name)
        places[where] = (file, int(start), int(length))  # type: ignore[call-overload]
    return places


def _item(name: str, node: Node, storage: _Places) -> TensorItem | ObjectItem:
    if isinstance(node, Object) and node.name == _MODULE + "BytesStorageMetadata":
        if not _is_made_alone(node) or node.state is not NO_STATE:
            _refuse("an object is described by more than that it is one", name)
        if (name, None) not in storage:
            _refuse("nothing is stored for it", name)
        return ObjectItem(*storage[name, None])
    fields = _fields(node, _MODULE + "TensorStorageMetadata")
    chunks = []
    listed = _need(fields, "chunks")
    for chunk in listed if isinstance(listed, list) else _refuse("no list of chunks", name):
        place = _fields(chunk, _MODULE + "ChunkStorageMetadata")
        offsets = _size(_need(place, "offsets"), name)
        if (name, offsets) not in storage:
            _refuse(f"nothing is stored for the chunk at {list(offsets)}", name)
        sizes = _size(_need(place, "sizes"), name)
        chunks.append(ChunkPlace(offsets, sizes, *storage[name, offsets]))
    dtype = _dtype(_need(fields, "properties"), name)
    return TensorItem(dtype, _size(_need(fields, "size"), name), tuple(chunks))


def _dtype(node: Node, name: str) -> DType:
    """Return the type in ``TensorProperties``, whose state is a tuple, once a dictionary."""
    named = isinstance(node, Object) and node.name == _MODULE + "TensorProperties"
    if not isinstance(node, Object) or not named or not _is_made_alone(node):
        _refuse("no properties of a tensor", name)
    state = state_of(node)
    first = (
        state[0] if isinstance(state, tuple) and state else (named_items(state) or {}).get("dtype")
    )
    if not isinstance(first, Global) or first.module != "torch" or first.name not in BY_NAME:
        _refuse("no element type of torch", name)
    return BY_NAME[first.name]


def _paths(
    node: Node, items: Mapping[str, TensorItem | ObjectItem]
) -> dict[str, tuple[str | int, ...]]:
    """Return the keys that lead to each entry: of the planner, or its name alone."""
    paths: dict[str, tuple[str | int, ...]] = {name: (name,) for name in items}
    for name, path in (named_items(node) or {}).items() if node is not None else ():
        if name not in items:
            continue
        if not isinstance(path, tuple) or not 0 < len(path) <= _LONGEST_PATH:
            _refuse("no path of an entry", name)
        keys: list[str | int] = []
        for key in path:
            if isinstance(key, str) or _is_size(key):
                keys.append(key)
            else:
                _refuse("a path of an entry has a key that is neither text nor index", name)
        paths[name] = tuple(keys)
    return paths


def _fields(node: Node, *classes: str) -> dict[str, Node]:
    """Return the attributes of an object of one of `classes` that nothing but them was given."""
    if not isinstance(node, Object) or node.name not in classes or not _is_made_alone(node):
        found = node.name if isinstance(node, Object) else type(node).__name__
        _refuse(f"'{found[:80]}' stands where '{classes[0].rpartition('.')[2]}' should")
    fields = named_items(state_of(node))
    if fields is None:
        _refuse(f"'{classes[0].rpartition('.')[2]}' has no attributes")
    return fields


def _is_made_alone(node: Object) -> bool:
    """Return whether an object is made without arguments, items and elements."""
    is_given = node.items is not None or node.elements is not None
    return node.op == "NEWOBJ" and node.args == () and not is_given


def _need(fields: Mapping[str, Node], name: str) -> Node:
    if name not in fields:
        _refuse(f"'{name}' is missing")
    return fields[name]


def _named(node: Node) -> dict[str, Node]:
    found = named_items(node)
    return found if found is not None else _refuse("no dictionary of entries")


def _size(node: Node, name: str) -> tuple[int, ...]:
    """Return a ``torch.Size``."""
    if isinstance(node, Object) and node.name == "torch.Size" and node.op == "REDUCE":
        sizes = Call.plain(node, 1, 1).settled(0)
        if isinstance(sizes, tuple) and all(map(_is_size, sizes)):
            return tuple(int(n) for n in sizes if isinstance(n, int))
    return _refuse("no size of a tensor", name)


def _is_size(node: Node) -> bool:
    return type(node) is int and 0 <= node < 2**63


def _refuse(message: str, name: str | None = None) -> NoReturn:
    raise DamagedFileError(f"not of the form that torch writes: {message}", entry=name or NAME)
