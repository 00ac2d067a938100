"""Refuse a pickle that sets items on a tensor or storage: it would change elements after all.

What is read of a tensor are its arguments and its storage's bytes. An item that is set on it, or on
another tensor of that storage, be it thrown away afterwards or hidden in a hook, changes what
unpickling gives. So it is refused here, where every pickle passes, whoever reads the graph.
"""

from __future__ import annotations

from typing import Final

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles.nodes import ByteString, Dict, Global, Node, Object, children
from ckpt_surgery.pickles.walk import SCALARS

_OF_TENSORS: Final = ("Tensor", "Storage", "Parameter", "Variable", "Buffer")
_REBUILDS: Final = "_rebuild"
_SHOWN: Final = 80  # characters of a key


def is_of_tensors(callee: Node) -> bool:
    """Return whether `callee` is one of torch's tensors, storages,
    parameters or variables, or makes one.
    """
    if not isinstance(callee, Global) or callee.module.partition(".")[0] != "torch":
        return False
    return callee.name.endswith(_OF_TENSORS) or callee.name.startswith(_REBUILDS)


def refuse_changed(changed: Object, root: Node) -> DamagedFileError:
    """Return the error for a tensor, `changed`, that is given items;
    it names where it lies below `root`, or its byte if it is thrown away.
    """
    return DamagedFileError(
        f"the result of '{changed.name}' is given a state or items",
        entry=_place(changed, root) or f"byte {changed.at}",
    )


def _place(wanted: Object, root: Node) -> str:
    """Return the texts and indices that lead from `root` to a node; empty if nothing does."""
    above: dict[int, tuple[Node, str]] = {}  # by identity: what it was found in, and its name there
    seen = {id(root)}
    waiting = [root]
    for node in waiting:
        if node is wanted:
            break
        for name, child in _named(node):
            if type(child) not in SCALARS and id(child) not in seen:
                seen.add(id(child))
                above[id(child)] = node, name
                waiting.append(child)
    parts: list[str] = []
    node = wanted
    while id(node) in above:
        node, name = above[id(node)]
        parts.append(name)
    return "/".join(part for part in reversed(parts) if part)


def _named(node: Node) -> list[tuple[str, Node]]:
    """Return what a node is made of; values of a dictionary have their
    keys for names, and elements of a list their index.
    """
    if isinstance(node, (tuple, list)):
        return [(str(index), child) for index, child in enumerate(node)]
    if not isinstance(node, Dict | Object):
        return [("", child) for child in children(node)]
    pairs = list(node.pairs())
    found = [(_text(key), value) for key, value in pairs] + [(_text(key), key) for key, _ in pairs]
    if isinstance(node, Object):
        found += [("", child) for child in (node.args, node.state)]
        found += [(str(index), child) for index, child in enumerate(node.elements or ())]
    return found


def _text(key: Node) -> str:
    if isinstance(key, ByteString):
        key = key.text
    return key[:_SHOWN] if isinstance(key, str) else ""
