"""Dictionaries in a pickle graph, in every form that a pickle gives them."""

from __future__ import annotations

from ckpt_surgery.pickles import Dict, Node, Object
from ckpt_surgery.torch_objects.storages import text


def mapping_pairs(node: Node) -> list[tuple[Node, Node]] | None:
    """The items of a dictionary or of an object that is one (an ``OrderedDict``); else None."""
    if isinstance(node, Dict):
        return list(node.pairs())
    if not isinstance(node, Object):
        return None
    if node.items is not None:
        return list(node.pairs())
    if node.name == "collections.OrderedDict":
        return _python2_pairs(node.args)
    return None


def mapping_length(node: Node) -> int | None:
    """The number of items of a dictionary, in whatever form; None if `node` is none."""
    if isinstance(node, Dict):
        return len(node.items) // 2
    if isinstance(node, Object) and node.items is not None:
        return len(node.items) // 2
    pairs = mapping_pairs(node)
    return None if pairs is None else len(pairs)


def _python2_pairs(args: Node) -> list[tuple[Node, Node]] | None:
    """``OrderedDict([[key, value], …])``, as Python 2 pickles one."""
    if args == ():
        return []
    if not isinstance(args, tuple) or len(args) != 1 or not isinstance(args[0], list):
        return None
    pairs = args[0]
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return [(pair[0], pair[1]) for pair in pairs]
    return None


def named_items(node: Node) -> dict[str, Node] | None:
    """The items of a mapping whose keys are all text, as a dictionary would keep them; else None.

    Of items with one key the last counts, in the place of the first.
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
