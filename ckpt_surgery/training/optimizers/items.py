"""The items of mappings and lists, with a bound on how often the same ones are gone through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import Node
from ckpt_surgery.torch_objects.mappings import mapping_length, mapping_pairs
from ckpt_surgery.torch_objects.storages import text

_MOST_REPEATED: Final = 500_000


class Items:
    """Gives the items of nodes. What a file holds once costs once; a node that thousands of others
    share would cost thousands of times its length, so that a few kilobytes keep a machine busy.

    Every method raises `LimitExceededError` when that goes too far.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._left = _MOST_REPEATED

    def pairs(self, node: Node) -> list[tuple[Node, Node]] | None:
        """Return the items of a mapping; None for what is none."""
        self._count(node, mapping_length(node) or 0)
        return mapping_pairs(node)

    def named(self, node: Node) -> dict[str, Node]:
        """Those that have a text for a key; empty for what is no mapping."""
        pairs = self.pairs(node) or []
        return {name: value for key, value in pairs if (name := text(key)) is not None}

    def listed(self, node: list[Node] | tuple[Node, ...]) -> Sequence[Node]:
        """Return the elements of a list."""
        self._count(node, len(node))
        return node

    def _count(self, node: Node, length: int) -> None:
        if id(node) not in self._seen:
            self._seen.add(id(node))
            return
        self._left -= length + 1
        if self._left < 0:
            raise LimitExceededError("too many parts of the training state are the same object")
