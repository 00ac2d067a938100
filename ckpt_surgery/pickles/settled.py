"""Tell whether a call is written with what it was given when it was read.

A pickle may make a call and afterwards change a list, dictionary or object that it was given. The
graph holds all of them as they are in the end, and writes them so, before the call: the call would
get something else. Picklers do that in one case alone, that of a container which holds the call
itself: then it is still empty when the call is made, when it is read as when it is written again.
(If it has more than a thousand elements it may have some of them by then. How many is not known of
what was read, and such a call is refused.)
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.pickles.limits import Limits
from ckpt_surgery.pickles.nodes import NO_STATE, Dict, List, Node, Object
from ckpt_surgery.pickles.walk import SCALARS, too_many_nodes


class Begun:
    """The containers and objects whose contents are being written, by identity.

    The value tells whether something of them has been written. `replaced` and `limits` are those
    of `emit`.
    """

    __slots__ = ("_left", "_limits", "_nodes", "_replaced")

    def __init__(self, replaced: Mapping[int, Node], limits: Limits) -> None:
        self._nodes: dict[int, bool] = {}
        self._replaced = replaced
        self._limits = limits
        self._left = limits.operations

    def go_on(self, node: Node) -> None:
        """Take notice that a batch of the contents of `node` is next."""
        self._nodes[id(node)] = id(node) in self._nodes

    def end(self, node: Node) -> None:
        """Take notice that all of `node` is written; raise what `require_settled` raises."""
        self._nodes.pop(id(node), None)
        if isinstance(node, Object) and node.at and node.state is not NO_STATE:
            self._require(node, (node.state,), node.changed)

    def require_settled(self, call: Object) -> None:
        """Refuse a call that would be given another thing than it was when the pickle was read.

        Raises `LossyEditError`, or `LimitExceededError` if too much was given to all of them.
        """
        if call.at:  # it was read
            self._require(call, (call.callee, call.args), call.at)

    def _require(self, call: Object, given: tuple[Node, ...], at: int) -> None:
        same = self._are_same(given, at)
        if self._left < 0:
            raise too_many_nodes(self._limits)
        if not same:
            raise LossyEditError(
                f"'{call.name or 'a call'}' is given something that is changed after the call",
                hint="'ckpt convert --tensors-only' leaves out all that is no tensor",
            )

    def _are_same(self, given: tuple[Node, ...], at: int) -> bool:
        """Return whether nodes are what they were at `at`.

        Tuples, lists and dictionaries are gone through; an object is looked at itself.
        """
        replaced = self._replaced
        waiting: list[Node] = [*given]
        seen: set[int] = set()
        while waiting and self._left >= 0:
            node = waiting.pop()
            if replaced:
                node = replaced.get(id(node), node)
            if isinstance(node, (List, Dict, Object)) and not self._is_same(node, at):
                return False
            if not isinstance(node, (tuple, list, Dict)) or id(node) in seen:
                continue
            if id(node) in self._nodes:  # empty when the call was made
                continue
            seen.add(id(node))
            parts = node.items if isinstance(node, Dict) else node
            self._left -= len(parts)
            waiting += [part for part in parts if type(part) not in SCALARS]
        return True

    def _is_same(self, node: List | Dict | Object, at: int) -> bool:
        if not node.changed:  # made by an edit
            return True
        is_begun = self._nodes.get(id(node))
        if is_begun is None:
            return node.changed <= at
        # what an object was given before its state is not known in time
        return node.changed > at if isinstance(node, Object) else not is_begun and node.began > at
