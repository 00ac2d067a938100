"""Entries beside the weights: where each stands in the graph, however deep, after edits.

The graph is never changed; what an edit puts in a node's place is in `Checkpoint.replaced`. So an
entry is found by going down through what takes the places of nodes by now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor, join_path
from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.pickles import Dict, Node, Object, children
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of, with_items
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader

_CONTAINERS: Final = (Dict, Object, list, tuple)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where an entry stands: under `key` in the mapping `holder`, which is None in a list.

    `node` and `holder` are nodes as the graph has them; `is_weights` says that it is a state dict.
    """

    path: str
    name: str
    node: Node
    key: Node
    holder: Node
    above: Place | None
    is_weights: bool = False

    @property
    def identity(self) -> tuple[int, int, str]:
        """What no other place has."""
        return id(self.holder), id(self.key), self.path


class Entries:
    """What lies in a checkpoint beside its weights; state dicts are entries that hold none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._root = checkpoint.root
        self._replaced = checkpoint.replaced
        self._gone = {(id(o.parent), id(o.key_node)) for o in checkpoint.dropped}
        self._paths = {(id(o.parent), id(o.key_node)): o.path for o in checkpoint.others}
        self._weights = {id(s.node): s.path for s in checkpoint.state_dicts}

    def now(self, node: Node) -> Node:
        """Return what takes the place of `node` by now."""
        return self._replaced.get(id(node), node)

    def top(self) -> Iterator[Place]:
        """Yield the entries of the root."""
        return self._below(self._root, None)

    def below(self, place: Place) -> Iterator[Place]:
        """Yield the entries of a container."""
        if not place.is_weights:
            yield from self._below(place.node, place)

    def items(self, holder: Node) -> list[tuple[Node, Node]]:
        """Return the items of a mapping, those that were dropped included."""
        return mapping_pairs(self.now(holder)) or []

    def remains(self, holder: Node, key: Node) -> bool:
        """Return whether the item of `holder` under `key` was not dropped."""
        return (id(holder), id(key)) not in self._gone

    def all(self) -> Iterator[Place]:
        """Yield every entry; what lies below an object comes once, though several hold it."""
        waiting = [self.top()]
        seen: set[int] = set()
        while waiting:
            for place in waiting.pop():
                yield place
                if isinstance(place.node, _CONTAINERS) and id(place.node) not in seen:
                    seen.add(id(place.node))
                    waiting.append(self.below(place))

    def find(self, paths: Collection[str]) -> dict[str, Place]:
        """Return the places at those of the paths where there is one."""
        found: dict[str, Place] = {}
        leading = {path[:end] for path in paths for end in _slashes(path)}
        waiting = [self.top()]
        seen: set[int] = set()
        while waiting:
            for place in waiting.pop():
                if place.path in paths:
                    found.setdefault(place.path, place)
                if place.path in leading and id(place.node) not in seen:
                    seen.add(id(place.node))
                    waiting.append(self.below(place))
        return found

    def _below(self, node: Node, above: Place | None) -> Iterator[Place]:
        path = "" if above is None else above.path
        for name, child, key, holder in self._parts(node):
            if not self.remains(node, key):
                continue
            joined = join_path(path, name)
            weights = self._weights.get(id(child))
            known = self._paths.get((id(node), id(key)))
            if weights is not None and weights.partition("#")[0] == joined:
                known = weights  # numbered where two paths look alike; else it is there as well
            yield Place(known or joined, name, child, key, holder, above, weights is not None)

    def _parts(self, node: Node) -> Iterator[tuple[str, Node, Node, Node]]:
        """Yield what a container holds: name, node, key, and the mapping that it is an item of.

        `_metadata` is no entry.
        """
        now = self.now(node)
        if isinstance(now, (list, tuple)):
            for index, child in enumerate(now):
                yield str(index), child, index, None
            return
        for key, child in mapping_pairs(now) or ():
            yield printed_key(key), child, key, node
        if isinstance(now, Object):
            for index, child in enumerate(now.elements or ()):
                yield str(index), child, index, None
            state = state_of(now)
            for key, child in mapping_pairs(self.now(state)) or ():
                if text(key) != "_metadata":
                    yield printed_key(key), child, key, state


def without_places(checkpoint: Checkpoint, places: Sequence[Place]) -> Mapping[int, Node]:
    """Return what is to be `replaced` so that entries are gone.

    Raises `LossyEditError` for one that is neither an item of a dictionary nor an attribute.
    """
    entries = Entries(checkpoint)
    by_holder: dict[int, list[Place]] = {}
    for place in places:
        if place.holder is None:
            raise LossyEditError("only an entry of a dictionary can be dropped", entry=place.path)
        by_holder.setdefault(id(place.holder), []).append(place)
    replaced: dict[int, Node] = {}
    for holder_id, gone in by_holder.items():
        keys = {id(place.key) for place in gone}
        items = [n for k, v in entries.items(gone[0].holder) if id(k) not in keys for n in (k, v)]
        replaced[holder_id] = with_items(entries.now(gone[0].holder), items)
    return replaced


def with_counted_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the tensors below each other entry as they are after edits."""
    known = {id(t.node): t for other in checkpoint.others for t in other.tensors}
    reader, seen = TensorReader(), set[int]()

    def below(node: Node) -> Iterator[Tensor]:
        waiting = [node]
        while waiting:
            found = waiting.pop()
            found = checkpoint.replaced.get(id(found), found)
            if id(found) in seen or not isinstance(found, _CONTAINERS):
                continue
            seen.add(id(found))
            tensor = known.get(id(found)) or reader.describe(found)
            if tensor is not None:
                yield tensor
            else:
                waiting += reversed(children(found))

    others = tuple(replace(o, tensors=tuple(below(o.node))) for o in checkpoint.others)
    return replace(checkpoint, others=others)


def _slashes(path: str) -> Iterator[int]:
    """Yield where each of the entries above the one at `path` ends."""
    end = path.find("/")
    while end >= 0:
        yield end
        end = path.find("/", end + 1)
