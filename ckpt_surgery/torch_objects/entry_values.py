"""The plain values in an entry beside the weights: hyperparameters, arguments, configurations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Other, join_path
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import Node, Object
from ckpt_surgery.torch_objects.kinds import plain_value, printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.simple import plain_form

_MOST: Final = 1000  # values
_DEEPEST: Final = 20
_LONGEST_LIST: Final = 16


def values_of_entries(others: Iterable[Other]) -> dict[str, Mapping[str, Any]]:
    """Return the plain values below entries: by the entry's path, by their paths in it.

    Those are numbers, truth values, None, short texts, and short lists of these, in dictionaries
    and Namespaces; scalars of numpy and paths are given as plain values. An entry with tensors has
    none that are shown, and only the first 1,000 are. What is a plain value itself has the path "".
    A dictionary that is in several entries is shown in the first, so that the time is linear.
    """
    seen: set[int] = set()
    found = {other.path: _values_of(other, seen) for other in others}
    return {path: values for path, values in found.items() if values}


def _values_of(other: Other, seen: set[int]) -> Mapping[str, Any]:
    if other.tensors:
        return {}
    known, value = _value(other.node)
    if known and isinstance(other.node, Object):  # a scalar of numpy, a path
        return {"": value}
    found: dict[str, Any] = {}
    if id(other.node) in seen:
        return found
    waiting: list[Iterator[tuple[str, Node]]] = [_parts("", other.node)]
    seen.add(id(other.node))
    while waiting and len(found) < _MOST:
        for path, node in waiting[-1]:
            known, value = _value(node)
            if known:
                found[path] = value
            elif id(node) not in seen and len(waiting) < _DEEPEST:
                seen.add(id(node))
                waiting.append(_parts(path, node))
            break
        else:
            waiting.pop()
    return found


def _parts(path: str, node: Node) -> Iterator[tuple[str, Node]]:
    """Yield what is in a dictionary or a Namespace; nothing of what is neither."""
    try:
        pairs = mapping_pairs(plain_form(node) if isinstance(node, Object) else node)
    except DamagedFileError:  # no dictionary that Python would make
        return
    for key, value in pairs or ():
        yield join_path(path, printed_key(key)), value


def _value(node: Node) -> tuple[bool, Any]:
    """Return whether a node is a plain value, and which."""
    if node is None:
        return True, None
    if isinstance(node, (list, tuple)):
        if len(node) > _LONGEST_LIST or any(isinstance(part, (list, tuple)) for part in node):
            return False, None
        values = [_value(part) for part in node]
        plain = all(known for known, _ in values)
        return plain, [value for _, value in values] if plain else None
    value = plain_value(plain_form(node) if isinstance(node, Object) else node)
    return value is not None, value
