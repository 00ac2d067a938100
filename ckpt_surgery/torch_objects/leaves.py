"""What lies beside the weights as a tree of paths, so that two files can be compared."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from ckpt_surgery.checkpoint.description import Other, Tensor, join_path
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import (
    DEFAULT_LIMITS,
    NO_STATE,
    ByteString,
    Dict,
    Extension,
    Global,
    Limits,
    Node,
    Object,
    PersistentId,
)
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import printed_key, type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader

_PATH_SHARE: Final = 2  # characters of all paths, as a share of the operations of `Limits`
_STATE: Final = "<state>"
_ARGUMENTS: Final = "<arguments>"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value at a path: equal ones have the same `type` and `value`. `shown` is for reports.

    Of a container, the type is its class and there is no value: what it holds has paths below.
    """

    type: str
    value: object = None

    @property
    def shown(self) -> str | int | float | bool | None:
        """The value if it is a plain one, otherwise the type."""
        if self.type == "NoneType" or isinstance(self.value, str | int | float | bool):
            return self.value  # type: ignore[return-value]
        return self.type


def leaves_of(other: Other, limits: Limits = DEFAULT_LIMITS) -> dict[str, Leaf | Tensor]:
    """Return everything in an entry by its path, which begins with the entry's.

    Raises `LimitExceededError` if the paths are too long together.
    """
    if other.node is None and isinstance(other.value, Mapping):
        found: dict[str, Leaf | Tensor] = {other.path: Leaf("dict")}
        found |= {join_path(other.path, k): _leaf(v) for k, v in other.value.items()}
        return found
    if other.node is None:
        return {other.path: _leaf(other.value) if other.value is not None else Leaf(other.type)}
    return leaves(other.node, other.path, limits)


def leaves(node: Node, path: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Leaf | Tensor]:
    """Return everything at and below a node of a graph by its path, which begins with `path`."""
    reader = TensorReader(limits)
    seen: dict[int, str] = {}
    found: dict[str, Leaf | Tensor] = {}
    room = limits.operations // _PATH_SHARE
    waiting = [(path, node)]
    while waiting:
        place, current = waiting.pop()
        room -= len(place) + 1
        if room < 0:
            raise LimitExceededError("the paths of what lies beside the weights are too long")
        tensor = reader.describe(current)
        if tensor is not None:
            found[place] = tensor
            continue
        below = list(_below(current))
        if below and id(current) in seen:
            found[place] = Leaf("same object", seen[id(current)])
            continue
        seen[id(current)] = place
        found[place] = _leaf(current)
        waiting.extend((join_path(place, name), child) for name, child in reversed(below))
    return found


def _below(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield what a container holds, with the last part of its path."""
    if isinstance(node, tuple | list):
        yield from ((f"[{index}]", child) for index, child in enumerate(node))
        return
    if not isinstance(node, Dict | Object):
        return
    pairs = mapping_pairs(node)
    if pairs is not None:
        yield from ((printed_key(key), value) for key, value in pairs)
    if isinstance(node, Dict):
        return
    if pairs is None:
        yield from _parts(node)
    if node.state is not NO_STATE:
        attributes = mapping_pairs(node.state)
        if attributes is None:
            yield _STATE, node.state
        else:
            yield from ((f".{printed_key(key)}", value) for key, value in attributes)


def _parts(node: Object) -> Iterator[tuple[str, Node]]:
    """Yield what an object was made of that is no mapping."""
    if node.args != ():
        yield _ARGUMENTS, node.args
    yield from ((f"[{index}]", child) for index, child in enumerate(node.elements or ()))
    yield from ((printed_key(key), value) for key, value in node.pairs())


def _leaf(node: Node) -> Leaf:
    if (string := text(node)) is not None:
        return Leaf("str", string)
    if isinstance(node, bool | int | bytes | None):
        return Leaf(type(node).__name__, node)
    if isinstance(node, float):
        # NaN is no number equal to itself, and 0.0 is equal to -0.0
        return Leaf("float", node if node == node and node else struct.pack("<d", node))
    if isinstance(node, ByteString):
        return Leaf("bytes", node.data)
    if isinstance(node, Global):
        return Leaf("class or function", node.qualified)
    if isinstance(node, PersistentId | Extension):
        return Leaf(type_name(node), None)
    return Leaf(type_name(node))
