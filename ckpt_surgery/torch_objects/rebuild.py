"""From a description back to a graph: what an edited checkpoint looks like as a pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Storage
from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.pickles import (
    NO_STATE,
    Dict,
    Global,
    Node,
    Object,
    PersistentId,
    own_text,
    parse,
    walk,
)
from ckpt_surgery.pickles.emit import emit
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.find import metadata_node, metadata_of
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of, with_items
from ckpt_surgery.torch_objects.module_nodes import is_module
from ckpt_surgery.torch_objects.python2 import modern_texts
from ckpt_surgery.torch_objects.storages import parse_storage_id, text
from ckpt_surgery.torch_objects.tensor_calls import build, relocated

_STORAGE: Final = "storage"


@dataclass(frozen=True, slots=True)
class Pickled:
    """A pickle and the storages that it refers to, with their keys, in the order of visiting."""

    data: bytes
    keys: Mapping[Storage, str]

    @property
    def storages(self) -> list[Storage]:
        return list(self.keys)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A graph with the nodes that take the place of others when it is written."""

    root: Node
    replaced: Mapping[int, Node]
    devices: Mapping[str, str] = field(default_factory=dict)

    def emit(self, keys: Mapping[Storage, str] | None = None, *, views: bool = False) -> Pickled:
        """Return the pickle; storages are numbered from 0 in the order
        of visiting unless `keys` say.

        With `views` the ids of storages end as those before torch 1.6, which could be views.
        """
        naming = _StorageNaming(keys, self.devices, (None,) if views else ())
        data = emit(self.root, persistent_id=naming.persistent_id, replaced=self.replaced)
        return Pickled(data, naming.keys)


@dataclass(slots=True)
class _StorageNaming:
    """Gives each storage its key the first time that the pickle visits it."""

    wanted: Mapping[Storage, str] | None
    devices: Mapping[str, str]
    end: tuple[None, ...]
    keys: dict[Storage, str] = field(default_factory=dict)
    _classes: dict[str, Global] = field(default_factory=dict)
    _locations: dict[str, str] = field(default_factory=dict)
    _kind: Node = None

    def persistent_id(self, node: PersistentId) -> Node:
        storage = node.target
        if not isinstance(storage, Storage):
            raise LossyEditError("a reference to something outside the file cannot be written")
        key = self.keys.get(storage)
        if key is None:
            key = str(len(self.keys)) if self.wanted is None else self.wanted[storage]
            self.keys[storage] = key
        pid = None if storage.device in self.devices else node.pid
        if isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[3], str):
            is_same = pid[5:] == self.end and pid[2] == key and pid[4] == storage.numel
            if is_same and self._kind is not _STORAGE:
                self._kind = self._kind or pid[0]
                return pid
            kind = self._shared_kind(pid[0])
            return (kind, pid[1], key, pid[3], storage.numel, *self.end)
        kind, location = self._shared_kind(), self._location(storage)
        return (kind, self._class(storage), key, location, storage.numel, *self.end)

    def _shared_kind(self, own: Node = None) -> str:
        """Return the text ``storage``: one object in all ids, as torch has it, the first one."""
        if not isinstance(self._kind, str):
            self._kind = own if isinstance(own, str) else _STORAGE
        return self._kind

    def _location(self, storage: Storage) -> str:
        location = self.devices.get(storage.device, storage.device)
        return self._locations.setdefault(location, location)  # one object in all of them

    def _class(self, storage: Storage) -> Global:
        name = storage.dtype.storage_class
        if storage.untyped or name is None:
            return self._classes.setdefault("", Global("torch.storage", "UntypedStorage"))
        return self._classes.setdefault(name, Global("torch", name))


def lower(checkpoint: Checkpoint) -> Lowered:
    """Return the graph of an edited checkpoint: what it was read from, with the edits put in."""
    replaced: dict[int, Node] = dict(checkpoint.replaced)
    if checkpoint.container is None:
        replaced.update(_classes_with_source(checkpoint.root))
        replaced.update(modern_texts(checkpoint.root))
    for node_id, tensor in checkpoint.moved.items():
        if isinstance(tensor.node, Object) and tensor.storage is not None:
            place = PersistentId(_storage_id(tensor.node, tensor.storage), tensor.storage)
            replaced[node_id] = relocated(tensor.node, place, tensor)
    for node_id, node in checkpoint.replaced.items():  # an old form's new one may have moved
        replaced[node_id] = replaced.get(id(node), node)
    if checkpoint.root is None and checkpoint.state_dicts:  # a format without a graph
        return Lowered(_without_graph(checkpoint.state_dicts), replaced, checkpoint.devices)
    for state_dict in checkpoint.state_dicts:
        if not stays_module(checkpoint, state_dict) and not _is_unchanged(state_dict):
            replaced[id(state_dict.node)] = lower_state_dict(state_dict)
    for node_id, node in checkpoint.replaced.items():  # a module in another's place
        if id(node) in checkpoint.modules:
            replaced[node_id] = replaced.get(id(node), node)
    _drop_others(checkpoint, replaced)
    return Lowered(checkpoint.root, replaced, checkpoint.devices)


def settled(lowered: Lowered) -> Node:
    """Return a graph with what is replaced in its place, as reading its pickle would give it.

    Its storages are those of the graph, with their bytes where they were.
    """
    pickled = lowered.emit()
    storages = {key: storage for storage, key in pickled.keys.items()}

    def load(pid: Node) -> PersistentId:
        wanted = parse_storage_id(pid)
        if wanted is None:
            raise LossyEditError("a reference to something outside the file cannot be written")
        return PersistentId(pid, storages[wanted.key])

    return parse(pickled.data, persistent_load=load).root


def _without_graph(state_dicts: Sequence[StateDict]) -> Node:
    """Return the state dict of a format without a graph, or several
    in a dictionary by their paths.
    """
    if len(state_dicts) == 1 and not state_dicts[0].path:
        return lower_state_dict(state_dicts[0])
    items: list[Node] = []
    for state_dict in state_dicts:
        items += (state_dict.path, lower_state_dict(state_dict))
    return Dict(items)


def _storage_id(node: Object, storage: Storage) -> Node:
    """Return the id by which `node` refers to its storage, if one of
    the same kind can take it over.

    What it is made of is then still the same objects, which a pickle writes once.
    """
    old = node.args[0] if isinstance(node.args, tuple) and node.args else None
    if not isinstance(old, PersistentId) or not isinstance(old.target, Storage):
        return None
    was, now = old.target, storage
    alike = (was.dtype, was.untyped, was.device) == (now.dtype, now.untyped, now.device)
    return old.pid if alike else None


def _classes_with_source(root: Node) -> Iterator[tuple[int, Node]]:
    """Yield the ids of the legacy container that name a class and quote
    its source; an archive has none.

    torch uses the source only to warn if it has changed since.
    """
    for node in walk(root):
        if isinstance(node, PersistentId) and node.target is None and isinstance(node.pid, tuple):
            kind, *rest = node.pid
            if text(kind) == "module" and rest:
                yield id(node), rest[0]


def is_module_state(state_dict: StateDict) -> bool:
    """Return whether a state dict was read from a module, whose place it takes when written."""
    node = state_dict.node
    return node is not None and (is_module(node) or mapping_pairs(node) is None)


def stays_module(checkpoint: Checkpoint, state_dict: StateDict) -> bool:
    """Return whether a state dict was read from a module that is written as it is: nothing in it
    was changed.
    """
    module = checkpoint.modules.get(id(state_dict.node))
    if module is None:
        return False
    read = module.state_dict
    return (
        len(read.entries) == len(state_dict.entries)
        and _are_same(read.metadata, state_dict.metadata)
        and all(
            old.name == new.name and old.node is new.node and old.tensor == new.tensor
            for old, new in zip(read.entries, state_dict.entries, strict=True)
        )
    )


def _is_unchanged(state_dict: StateDict) -> bool:
    pairs = mapping_pairs(state_dict.node)
    if pairs is None or is_module(state_dict.node) or len(pairs) != len(state_dict.entries):
        return False
    if not _are_same(metadata_of(state_dict.node), state_dict.metadata):
        return False
    return all(
        text(key) == entry.name and value is entry.node
        for (key, value), entry in zip(pairs, state_dict.entries, strict=True)
    )


def _are_same(old: Mapping[str, Node] | None, new: Mapping[str, Node] | None) -> bool:
    """Return whether two ``_metadata`` have the same modules, with the same nodes."""
    old, new = old or {}, new or {}
    return list(old) == list(new) and all(old[module] is new[module] for module in old)


def lower_state_dict(state_dict: StateDict) -> Node:
    """Return the mapping to write for a state dict: of the class it was, or an ``OrderedDict``."""
    items: list[Node] = []
    for entry in state_dict.entries:
        items += (_key(entry), _value(entry))
    node = state_dict.node
    if isinstance(node, Dict) and state_dict.metadata is None:  # a plain one has no attributes
        return Dict(items)
    if isinstance(node, Object) and mapping_pairs(node) is not None and not is_module(node):
        return with_items(node, items, state=_state(node, state_dict))
    attributes: Node = NO_STATE
    if state_dict.metadata is not None:
        attributes = Dict(["_metadata", _metadata(None, state_dict.metadata)])
    return Object("REDUCE", _ordered_dict(), (), items=items, state=attributes)


def _state(node: Object, state_dict: StateDict) -> Node:
    """Return the attributes of a mapping: `_metadata` as the state dict
    has it, the others as they are.
    """
    old = metadata_node(node)
    if old is None and state_dict.metadata is None:
        return node.state
    items: list[Node] = []
    for key, value in mapping_pairs(state_of(node)) or ():
        if value is not old:
            items += (key, value)
        elif state_dict.metadata is not None:
            items += (key, _metadata(old, state_dict.metadata))
    if old is None and state_dict.metadata is not None:
        items += ("_metadata", _metadata(None, state_dict.metadata))
    return Dict(items)


def _metadata(old: Node | None, metadata: Mapping[str, Node]) -> Node:
    items: list[Node] = []
    for name, value in metadata.items():
        items += (name, value)
    if isinstance(old, Dict):
        return Dict(items)
    if isinstance(old, Object):
        return Object(old.op, old.callee, (), items=items, state=old.state)
    return Object("REDUCE", _ordered_dict(), (), items=items)


def _key(entry: Entry) -> Node:
    return entry.key_node if text(entry.key_node) == entry.name else own_text(entry.name)


def _value(entry: Entry) -> Node:
    if entry.node is not None or entry.tensor is None or entry.tensor.storage is None:
        return entry.node
    return build(PersistentId(None, entry.tensor.storage), entry.tensor)


def _ordered_dict() -> Global:
    return Global("collections", "OrderedDict")


def _drop_others(checkpoint: Checkpoint, replaced: dict[int, Node]) -> None:
    """Leave the dropped entries out of the mappings that hold them."""
    by_parent: dict[int, list[Other]] = {}
    for other in checkpoint.dropped:
        by_parent.setdefault(id(other.parent), []).append(other)
    for parent_id, others in by_parent.items():
        parent = replaced.get(parent_id, others[0].parent)
        replaced[parent_id] = _without(parent, others)


def _without(parent: Node, others: Sequence[Other]) -> Node:
    left = {(id(other.key_node), id(other.node)): other for other in others}
    kept: list[Node] = []
    for key, value in mapping_pairs(parent) or ():
        if left.pop((id(key), id(value)), None) is None:
            kept += (key, value)
    for other in left.values():
        raise LossyEditError("only an entry of a dictionary can be dropped", entry=other.path)
    return with_items(parent, kept)
