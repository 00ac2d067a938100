"""Walk through what a graph holds: places with their paths, and what lies below each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.pickles import NO_STATE, Dict, Node, Object
from ckpt_surgery.torch_objects.kinds import printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of
from ckpt_surgery.torch_objects.module_nodes import SETS
from ckpt_surgery.torch_objects.storages import text

SHOWN_PATH = 200  # characters


@dataclass(slots=True)
class Place:
    """A node on the way: its key's text, and the places that lead to it.

    Its path is made only where it is needed: a file can nest long keys, and have any number of
    objects below them. `path_length` counts its characters.
    """

    name: str
    node: Node
    parent: Place | None
    depth: int = 0
    path_length: int = 0

    def child(self, name: str, node: Node) -> Place:
        """Return the place of what `node`, an item or element called `name`, is."""
        return Place(name, node, self, self.depth + 1, self.path_length + len(name) + 1)

    @property
    def path(self) -> str:
        """Return the whole path, its names joined by slashes."""
        return "/".join(self._names())

    @property
    def shown(self) -> str:
        """The start of the path, for messages; nothing longer is made."""
        start = ""
        for name in self._names():
            start = join_path(start, name[:SHOWN_PATH])[:SHOWN_PATH]
            if len(start) == SHOWN_PATH:
                break
        return start

    def _names(self) -> list[str]:
        names: list[str] = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        while names and not names[-1]:  # what `join_path` does with the empty path
            names.pop()
        return names[::-1]


def distinct(path: str, taken: dict[str, int]) -> str:
    """`path`, numbered if it is taken: keys may hold a slash, or look alike (``1`` and ``"1"``).

    `taken` counts how often each occurred, and learns what is returned.
    """
    candidate, number = path, taken.get(path, 0)
    while candidate in taken:
        number += 1
        candidate = f"{path}#{number}"
    taken[path] = number or 1
    taken.setdefault(candidate, 1)
    return candidate


def children(node: Node) -> Iterator[tuple[str, Node, Node]]:
    """Yield what a container holds: name, node and key (or index)
    of items, elements, attributes.
    """
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield str(index), child, index
        return
    for key, child in mapping_pairs(node) or ():
        yield printed_key(key), child, key
    if isinstance(node, Object):
        # which elements are left where items are set as well only its class knows
        for index, child in enumerate(node.elements or () if node.items is None else ()):
            yield str(index), child, index
        for key, child in mapping_pairs(state_of(node)) or ():
            if text(key) != "_metadata":
                yield printed_key(key), child, key


def holds_more(node: Node) -> bool:
    """Return whether `node` may lead to others: numbers, texts and what is empty do not.

    A file may have millions of them, none of which needs a place of its own.
    """
    if isinstance(node, Object):
        return True
    return bool(node.items if isinstance(node, Dict) else isinstance(node, (list, tuple)) and node)


def is_empty(node: Dict | Object | list[Node] | tuple[Node, ...]) -> bool:
    """Return whether a container holds nothing that could be a
    state dict: there may be millions.
    """
    if isinstance(node, Dict):
        return not node.items
    if not isinstance(node, Object):
        return not node
    is_given = node.items is not None or node.elements is not None or node.state is not NO_STATE
    return not is_given and (node.args == () or node.name in SETS)
