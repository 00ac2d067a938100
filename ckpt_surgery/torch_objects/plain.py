"""Values of a pickle that JSON can say: numbers, texts, lists and dictionaries of those."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from ckpt_surgery.pickles import Node
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.storages import text

_DEEPEST: Final = 50
_MOST_VALUES: Final = 1_000_000


class NotPlainError(Exception):
    """A value that JSON cannot say without changing what it is."""


def as_json(node: Node) -> Any:
    """Return a node as what `json.dumps` takes; a tuple becomes a list.

    Raises `NotPlainError` for anything else than None, truth values, finite numbers, texts, and
    lists, tuples and dictionaries of these with texts for keys; also for values that are nested
    too deeply or that are too many.
    """
    return _Converter().convert(node, 0)


class _Converter:
    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def convert(self, node: Node, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise NotPlainError
        if node is None or type(node) in (bool, int):
            return node
        if isinstance(node, float):
            return _finite(node)
        if isinstance(node, list | tuple):
            return [self.convert(child, depth + 1) for child in node]
        if (shown := text(node)) is not None:
            return shown
        return self._mapping(node, depth)

    def _mapping(self, node: Node, depth: int) -> dict[str, Any]:
        pairs = mapping_pairs(node)
        if pairs is None:
            raise NotPlainError
        found: dict[str, Any] = {}
        for key, value in pairs:
            name = text(key)
            if name is None or name in found:
                raise NotPlainError
            found[name] = self.convert(value, depth + 1)
        return found


def _finite(number: float) -> float:
    if not isfinite(number):
        raise NotPlainError
    return number
