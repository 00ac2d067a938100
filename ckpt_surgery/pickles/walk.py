"""Visit every node of a graph, in the order in which it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles.limits import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.nodes import NO_STATE, Dict, Node, Object, PersistentId

NOTHING_REPLACED: Final[Mapping[int, Node]] = MappingProxyType({})
SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})


def walk(
    root: Node,
    *,
    limits: Limits = DEFAULT_LIMITS,
    replaced: Mapping[int, Node] = NOTHING_REPLACED,
) -> Iterator[Node]:
    """Yield each node below `root` once, `root` first; those that are plain scalars are left out.

    The order is that in which `emit` first comes to them, with the same `replaced`. Hence a tuple
    or call that is part of itself is gone through again where it occurs inside, as the pickler
    does: it is in the memo only when it is complete, a list or dictionary from the start.

    Raises `LimitExceededError` if there is more to visit, or a longer path, than `limits` allow.
    """
    complete: dict[int, bool] = {}
    left = limits.operations
    path: list[tuple[Iterator[Node], Node]] = []
    nodes: Iterator[Node] = iter((root,))
    unfinished: Node = None
    while True:
        for node in nodes:
            left -= 1
            if left < 0:
                raise too_many_nodes(limits)
            if replaced:
                node = replaced.get(id(node), node)  # noqa: PLW2901 (what it is for)
            if type(node) in SCALARS:
                continue
            known = complete.get(id(node))
            if known:
                continue
            if known is None:
                yield node
            parts, is_complete = _first_parts(node)
            complete[id(node)] = is_complete
            if not parts:
                continue
            path.append((nodes, unfinished))
            if len(path) > limits.depth:
                raise too_deep(limits)
            nodes, unfinished = iter(parts), None if is_complete else node
            break
        else:
            made, unfinished = unfinished, None
            if made is not None and not complete[id(made)]:
                complete[id(made)] = True
                nodes = iter(_contents(made))
            elif path:
                nodes, unfinished = path.pop()
            else:
                return


def _first_parts(node: Node) -> tuple[tuple[Node, ...] | list[Node], bool]:
    """Return what is written of `node` first, and whether it can
    already be referred to before that.
    """
    if isinstance(node, Object):
        return (node.callee, node.args), False
    if isinstance(node, tuple):
        return node, not node
    if isinstance(node, list):
        return node, True
    if isinstance(node, Dict):
        return node.items, True
    if isinstance(node, PersistentId):
        return (node.pid,), False
    return (), True


def _contents(node: Node) -> list[Node]:
    """Return what is given to the object that the call `node` made."""
    if not isinstance(node, Object):
        return []
    contents = [*(node.elements or ()), *(node.items or ())]
    if node.state is not NO_STATE:
        contents.append(node.state)
    return contents


def too_many_nodes(limits: Limits) -> LimitExceededError:
    return LimitExceededError(f"the pickle has more than {limits.operations} nodes to visit")


def too_deep(limits: Limits) -> LimitExceededError:
    return LimitExceededError(f"the pickle is nested more than {limits.depth} levels deep")
