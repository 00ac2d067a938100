"""Dictionaries in a pickle graph, in every form that a pickle gives them.

What is read of one is what Python would make of it: the content that its class was called with and
the items set afterwards both count. Keys that are one to Python are refused, since only the last
value would be left.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, TypeGuard

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import NO_STATE, ByteString, Dict, Global, Node, Object
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.key_values import Elements, key_value
from ckpt_surgery.torch_objects.storages import text

_LARGEST_KEY: Final = 1000  # parts of a tuple
_SHOWN_KEY: Final = 80  # characters
_DEEPEST_KEY: Final = 20  # frozensets inside each other
_METHODS: Final = frozenset(dir(OrderedDict)) | frozenset(dir(Counter))
# Where each class takes its content, and whether that may be pairs as well as a dictionary.
_CONTENT: Final = {
    "collections.OrderedDict": (0, True),
    "builtins.dict": (0, True),
    "__builtin__.dict": (0, True),
    "collections.defaultdict": (1, True),
    "collections.Counter": (0, False),
}


def mapping_pairs(node: Node) -> list[tuple[Node, Node]] | None:
    """Return the items of a dictionary or of an object that is one (an ``OrderedDict``); else None.

    Raises `DamagedFileError` if two of the keys are one to Python.
    """
    if isinstance(node, Dict):
        pairs = list(node.pairs())
    elif isinstance(node, Object):
        content = _content(node)
        if content is None:
            return None
        pairs = [*content, *node.pairs()]
    else:
        return None
    _require_distinct([key for key, _ in pairs])
    return pairs


def mapping_length(node: Node) -> int | None:
    """Return the number of items of a dictionary, in whatever form; None if `node` is none."""
    if isinstance(node, Dict):
        return len(node.items) // 2
    if isinstance(node, Object) and node.items is not None and node.args == ():
        return len(node.items) // 2
    pairs = mapping_pairs(node)
    return None if pairs is None else len(pairs)


def named_items(node: Node) -> dict[str, Node] | None:
    """Return the items of a mapping whose keys are all text; else
    None. Raises like `mapping_pairs`.
    """
    pairs = mapping_pairs(node)
    if pairs is None:
        return None
    named: dict[str, Node] = {}
    for key, value in pairs:
        name = text(key)
        if name is None:
            return None
        named[name] = value
    return named


def with_items(node: Node, items: list[Node], **attributes: Node) -> Node:
    """Return a mapping like `node`, of the same class, that holds
    `items` (flat, as in `Dict`) instead.

    `attributes` may be a `state` to take the place of the old one.
    """
    if not isinstance(node, Object):
        return Dict(items)
    args = node.args
    if node.name in _CONTENT and isinstance(args, tuple):
        args = args[: _CONTENT[node.name][0]]
    return Object(
        node.op,
        node.callee,
        args,
        elements=node.elements,
        items=items,
        state=attributes.get("state", node.state),
    )


def state_of(node: Object) -> Node:
    """Return the state that was given to `node`, `NO_STATE` if none was.

    It is taken over at that moment: raises `DamagedFileError` if it is changed afterwards.
    """
    return Call(node, (node.state,), node.changed).settled(0)


def _content(node: Object) -> Sequence[tuple[Node, Node]] | None:
    """Return what a mapping was called with, before items were set on it; None if it is none."""
    where, allows_pairs = _CONTENT.get(node.name, (-1, False))
    if node.elements is not None:  # a list, say, whose elements are replaced by setting items
        return None
    if where >= 0 and node.state is not NO_STATE:
        _require_plain_attributes(node)
    if node.args == () and (node.items is not None or where >= 0):
        return ()
    if node.op != "REDUCE" or not isinstance(node.args, tuple) or where < 0:
        return None
    call = Call(node, node.args, node.at)
    if len(call) == where:
        return ()
    if len(call) != where + 1:
        return None
    given = call.settled(where)
    if isinstance(given, Dict) or (isinstance(given, Object) and given.args == ()):
        return mapping_pairs(given)
    if not allows_pairs or not isinstance(given, (list, tuple)):
        return None
    pairs = [pair for pair in given if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [(pair[0], pair[1]) for pair in pairs] if len(pairs) == len(given) else None


def attributes_of(node: Object) -> list[tuple[Node, Node]]:
    """Return the attributes that an object's state, a dictionary, gives
    it, those of slots included; none if it is anything else.
    """
    state = state_of(node)
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return [pair for part in parts for pair in mapping_pairs(part) or ()]


def require_own_methods(attributes: Iterable[tuple[Node, Node]]) -> None:
    """Refuse attributes of a mapping that hide what its entries are got by, such as ``items``."""
    for key, _ in attributes:
        if text(key) in _METHODS:
            raise DamagedFileError(f"the attribute '{text(key)}' hides a method")


def _require_plain_attributes(node: Object) -> None:
    """Refuse a state of Python's own mappings that torch's two unpicklers take in different ways,
    or whose attributes hide a method, by which the entries are got.
    """
    attributes = mapping_pairs(state_of(node))
    if attributes is None:
        raise DamagedFileError(f"the state of '{node.name}' is no dictionary")
    require_own_methods(attributes)


def _require_distinct(keys: list[Node]) -> None:
    known = keys if set(map(type, keys)) <= {str} else [_identity(key) for key in keys]
    if len(set(known)) == len(known):
        return
    twice = next(key for key, count in Counter(known).items() if count > 1)
    raise DamagedFileError(
        f"two keys of one dictionary are the same: {_shown(keys[known.index(twice)])!r}"
    )


def _shown(key: Node) -> str:
    if isinstance(key, (bool, float)) or (isinstance(key, int) and abs(key) < 2**63):
        return str(key)
    name = key.name if isinstance(key, Object) else type(key).__name__
    return (text(key) or (key.qualified if isinstance(key, Global) else name))[:_SHOWN_KEY]


def _identity(key: Node, depth: int = 0) -> Hashable:
    """Return a value that is equal for keys that are one to Python,
    of those that dictionaries have.

    It is made of text, since Python's hashes of numbers are known: a file could choose many that
    have the same, and of tuples, whose hashes take long where they are nested.
    """
    parts: list[Hashable] = []
    waiting: list[Node] = [key]
    while waiting:
        part = key_value(waiting.pop())
        if isinstance(part, Elements):
            if depth == _DEEPEST_KEY:
                raise LimitExceededError(f"a key has more than {_DEEPEST_KEY} sets in each other")
            parts += ("set", frozenset(_identity(node, depth + 1) for node in part))
            continue
        if _is_value(part):
            parts += ("call", part.name)
            part = part.args
        if isinstance(part, tuple):
            if len(waiting) + len(part) + len(parts) > _LARGEST_KEY:
                raise LimitExceededError(f"a key has more than {_LARGEST_KEY} parts")
            parts.append(f"{len(part)} parts")
            waiting += part
        else:
            parts.append(_scalar(part))
    return parts[0] if len(parts) == 1 else tuple(parts)


def _is_value(node: Node) -> TypeGuard[Object]:
    """Return whether `node` may equal another object made by the same call."""
    return (
        isinstance(node, Object)
        and node.op == "REDUCE"
        and bool(node.name)
        and isinstance(node.args, tuple)
        and node.state is NO_STATE
    )


def _scalar(node: Node) -> Hashable:
    if isinstance(node, str):
        return node
    if isinstance(node, ByteString):
        return node.text
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    if isinstance(node, int):
        return "number", f"{node:x}"
    if isinstance(node, float) and node == node:  # unequal: not a number
        return "number", repr(node)
    if isinstance(node, complex):
        return "number", repr(node)
    if isinstance(node, Global):
        return "class", node.qualified
    return ("bytes", node) if isinstance(node, bytes) else ("object", id(node))
