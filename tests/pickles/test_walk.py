"""Walking visits what is written, in the order in which it is written."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from picklable import OBJECTS

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import (
    ByteString,
    Dict,
    Extension,
    Global,
    Limits,
    Node,
    Object,
    PersistentId,
    parse,
    walk,
)
from ckpt_surgery.pickles.emit import emit


class Watch(Mapping[int, Node]):
    """Replaces nothing (or a few), and remembers what was asked for."""

    def __init__(self, replaced: dict[int, Node] | None = None) -> None:
        self.replaced = replaced or {}
        self.asked: list[int] = []

    def __getitem__(self, key: int) -> Node:
        self.asked.append(key)
        return self.replaced[key]

    def get(self, key: int, default: Node = None) -> Node:
        self.asked.append(key)
        found = self.replaced.get(key, default)
        self.asked[-1] = id(found)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self.replaced)

    def __len__(self) -> int:
        return 1


def first_visits(
    root: Node, replaced: dict[int, Node] | None = None
) -> tuple[list[int], list[int]]:
    """The nodes in the order in which `walk` yields them, and in which `emit` comes to them."""
    walked = list(walk(root, replaced=replaced or {}))
    watch = Watch(replaced)
    emit(root, replaced=watch)
    known = {id(node) for node in walked}
    return [id(node) for node in walked], [i for i in dict.fromkeys(watch.asked) if i in known]


@given(OBJECTS)
def test_walk_is_in_the_order_of_writing(value: object) -> None:
    walked, written = first_visits(parse(pickle.dumps(value, 2)).root)
    assert walked == written
    assert len(set(walked)) == len(walked)


def cycles() -> dict[str, Node]:
    held: list[Node] = []
    call = Object("REDUCE", Global("m", "f"), (held, PersistentId((1,)), ["late"]), state=["state"])
    held += [call, ["between"]]
    inner: list[Node] = []
    pair = (inner, (["second"],))
    inner += [pair, ["third"]]
    pid: list[Node] = []
    outside = PersistentId((pid, ["of the id"]))
    pid += [outside, ["beside"]]
    deep: list[Node] = []
    chain: Node = (deep, ["end"])
    for _ in range(4):
        chain = Object("NEWOBJ", Global("m", "C"), (chain, ["arg"]), items=[["k"], ["v"]])
    deep += [chain, chain, ["x"]]
    old = Object("OBJ", Global("m", "C"), (held, call), elements=[["e"]])
    return {
        "call": call,
        "tuple": pair,
        "persistent id": outside,
        "chain": [chain],
        "python 2": old,
        "all": [call, pair, outside, chain, old, ByteString(b"s"), Extension(3), Dict([old, call])],
    }


@pytest.mark.parametrize("name", cycles())
def test_walk_of_cycles_is_in_the_order_of_writing(name: str) -> None:
    root = cycles()[name]
    # A Python 2 instance's arguments are written one by one, not as the tuple that they are in.
    spread = {id(node.args) for node in walk(root) if isinstance(node, Object) and node.op == "OBJ"}
    walked, written = first_visits(root)
    assert [key for key in walked if key not in spread] == [
        key for key in written if key not in spread
    ]


def test_everything_but_scalars_is_visited_once() -> None:
    name, text, extension = Global("m", "f"), ByteString(b"a"), Extension(1)
    pid = PersistentId((name, 1))
    items = Dict(["k", [1.5, None]])
    call = Object(
        "REDUCE", name, (text, "s", b"b"), elements=[extension], items=[1, pid], state=items
    )
    root = [call, call, True, items]
    assert list(walk(root)) == [
        root,
        call,
        name,
        call.args,
        text,
        extension,
        pid,
        pid.pid,
        items,
        items.items[1],
    ]


def test_replaced_nodes_are_walked_in_place_of_the_others() -> None:
    old, new = ["old"], Dict(["key", ["new"]])
    root = [old, (old,)]
    assert list(walk(root, replaced={id(old): new})) == [root, new, new.items[1], root[1]]
    assert next(walk(old, replaced={id(old): new})) is new
    walked, written = first_visits(root, {id(old): new})
    assert walked == written


def nested(levels: int) -> Node:
    node: Node = []
    for level in range(levels - 1):
        node = [lambda n: [n], lambda n: (n,), lambda n: Dict([1, n])][level % 3](node)
    return node


def test_limit_of_depth() -> None:
    assert len(list(walk(nested(10), limits=Limits(depth=10)))) == 10
    with pytest.raises(LimitExceededError, match="nested more than 10 levels"):
        list(walk(nested(12), limits=Limits(depth=10)))


def test_limit_of_operations() -> None:
    assert len(list(walk([1] * 9, limits=Limits(operations=10)))) == 1
    with pytest.raises(LimitExceededError, match="more than 10 nodes"):
        list(walk([1] * 10, limits=Limits(operations=10)))


def test_shared_nodes_are_not_visited_again() -> None:
    node: Node = ()
    for _ in range(200):
        node = (node, node)
    assert len(list(walk(node, limits=Limits(operations=1000)))) == 201
