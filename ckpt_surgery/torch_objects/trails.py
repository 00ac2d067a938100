"""Visit every object of a graph together with the way that leads to it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import DEFAULT_LIMITS, NO_STATE, Dict, Node, Object, PersistentId
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.places import holds_more

_CONTAINERS = (Dict, Object, PersistentId, list, tuple)


@dataclass(frozen=True, slots=True, eq=False)
class Trail:
    """The way to a node: its name in what holds it. Its path is made only where it is needed."""

    name: str = ""
    above: Trail | None = None
    depth: int = 0

    def child(self, name: str) -> Trail:
        return Trail(name, self, self.depth + 1)

    @property
    def path(self) -> str:
        names: list[str] = []
        trail = self
        while trail.above is not None:
            names.append(trail.name)
            trail = trail.above
        path = ""
        for name in reversed(names):
            path = join_path(path, name)
        return path


def trails(
    root: Node, *, replaced: Mapping[int, Node], without: Container[int] = frozenset()
) -> Iterator[tuple[Trail, Node]]:
    """Yield each object at and below `root` once, with the first way to it; no empty container.

    `replaced` maps the identity of a node to what takes its place. Nodes whose identity is in
    `without` are left out with all below them. What a call is made of counts as the object itself.

    Raises `LimitExceededError` if it is nested too deeply.
    """
    seen: set[int] = set()
    waiting: list[Iterator[tuple[Trail, Node]]] = [iter([(Trail(), root)])]
    while waiting:
        for trail, reached in waiting[-1]:
            node = replaced.get(id(reached), reached)
            if id(node) in seen or not isinstance(node, _CONTAINERS) or id(node) in without:
                continue
            seen.add(id(node))
            yield trail, node
            if len(waiting) > DEFAULT_LIMITS.depth:
                raise LimitExceededError("the objects in it are nested too deeply")
            waiting.append(_below(trail, node, replaced))
            break
        else:
            waiting.pop()


def _below(trail: Trail, node: Node, replaced: Mapping[int, Node]) -> Iterator[tuple[Trail, Node]]:
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            if _may_hold(child):
                yield trail.child(str(index)), child
    elif isinstance(node, PersistentId):
        yield trail, node.pid
    elif isinstance(node, Dict):
        yield from _items(trail, node)
    elif isinstance(node, Object):
        yield trail, node.callee
        arguments = node.args if isinstance(node.args, tuple) else (node.args,)
        for child in arguments:
            yield trail, child
        for index, child in enumerate(node.elements or ()):
            yield trail.child(str(index)), child
        yield from _items(trail, Dict(node.items or []))
        state = replaced.get(id(node.state), node.state)
        if isinstance(state, Dict):
            yield from _items(trail, state)
        elif state is not NO_STATE:
            yield trail, state


def _items(trail: Trail, node: Dict) -> Iterator[tuple[Trail, Node]]:
    for key, child in mapping_pairs(node) or ():
        if isinstance(key, _CONTAINERS):
            yield trail, key
        if _may_hold(child):
            yield trail.child(printed_key(key)), child


def _may_hold(node: Node) -> bool:
    """Return whether a node is an object or may lead to one: millions of empty ones may not."""
    return holds_more(node) or isinstance(node, PersistentId)
