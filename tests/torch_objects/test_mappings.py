"""Dictionaries are recognised in every form that a pickle gives them."""

from __future__ import annotations

from time import process_time

import pytest

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import ByteString, Dict, Global, List, Node, Object
from ckpt_surgery.torch_objects.mappings import (
    mapping_pairs,
    named_items,
    state_of,
    with_items,
)

ORDERED = Global("collections", "OrderedDict")
COUNTER = Global("collections", "Counter")
DEFAULT = Global("collections", "defaultdict")
B = ByteString(b"b")


def made(name: str, *args: Node) -> Object:
    module, _, attribute = name.rpartition(".")
    return Object("REDUCE", Global(module, attribute), args)


@pytest.mark.parametrize(
    ("node", "pairs"),
    [
        (Dict(), []),
        (Dict(["a", 1, B, 2]), [("a", 1), (B, 2)]),
        (Object("REDUCE", ORDERED, ()), []),
        (Object("REDUCE", ORDERED, (), items=["a", 1]), [("a", 1)]),
        (Object("REDUCE", Global("mine", "Dict"), (), items=["a", 1]), [("a", 1)]),
        (Object("REDUCE", ORDERED, ([["a", 1], (B, 2)],)), [("a", 1), (B, 2)]),
        (Object("REDUCE", ORDERED, ([],)), []),
        (Object("REDUCE", ORDERED, ([["a"]],)), None),
        (Object("REDUCE", ORDERED, ([["a", 1]],), items=["b", 2]), [("a", 1), ("b", 2)]),
        (Object("REDUCE", ORDERED, ((("a", 1),),)), [("a", 1)]),
        (Object("REDUCE", ORDERED, (Dict(["a", 1]),)), [("a", 1)]),
        (Object("REDUCE", ORDERED, (Object("REDUCE", ORDERED, (), items=["a", 1]),)), [("a", 1)]),
        (Object("REDUCE", COUNTER, (Dict(["a", 1]),), items=["b", 2]), [("a", 1), ("b", 2)]),
        (Object("REDUCE", COUNTER, ()), []),
        (Object("REDUCE", DEFAULT, (Global("m", "f"),), items=["a", 1]), [("a", 1)]),
        (Object("REDUCE", DEFAULT, (None, Dict(["a", 1])), items=["b", 2]), [("a", 1), ("b", 2)]),
        (Object("NEWOBJ", Global("mine", "Dict"), (), items=["a", 1]), [("a", 1)]),
        # what a class makes of arguments that it is not known to take cannot be told
        (Object("REDUCE", Global("mine", "Dict"), (1,), items=["a", 1]), None),
        (Object("NEWOBJ", Global("mine", "Dict"), ([["a", 1]],), items=["b", 1]), None),
        (Object("NEWOBJ", ORDERED, ([["a", 1]],), items=["b", 1]), None),
        (Object("REDUCE", COUNTER, ([["a", 1]],)), None),
        (Object("REDUCE", ORDERED, (Object("REDUCE", ORDERED, ([],)),)), None),
        (Object("REDUCE", ORDERED, (["ab"],)), None),
        (Object("REDUCE", ORDERED, ([], [])), None),
        (Object("REDUCE", ORDERED, ("ab",)), None),
        (Object("REDUCE", ORDERED, []), None),
        (Object("REDUCE", Global("mine", "Dict"), ()), None),
        ([("a", 1)], None),
        (None, None),
    ],
)
def test_pairs_are_the_items_of_a_mapping(node: Node, pairs: list[tuple[Node, Node]]) -> None:
    assert mapping_pairs(node) == pairs


def test_names_are_those_of_a_dictionary() -> None:
    assert named_items(Dict(["a", 1, B, 2])) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "keys",
    [
        ("a", "a"),
        ("b", B),
        (ByteString(b"\xe9"), "é"),
        (1, True),
        (1, 1.0),
        (0, -0.0),
        (2**80, float(2**80)),
        (1, made("builtins.complex", 1, 0)),
        (None, None),
        (float("inf"), float("inf")),
        (b"a", b"a"),
        (b"a", made("_codecs.encode", "a", "latin1")),
        ((), ()),
        ((1, ("a", 2.0)), (True, (ByteString(b"a"), 2))),
        ((2, 3), made("torch.Size", (2, 3))),
        (made("torch.device", "cpu"), made("torch.device", "cpu")),
        (Global("m", "C"), Global("m", "C")),
    ],
)
def test_keys_that_a_dictionary_would_merge_are_refused(keys: tuple[Node, Node]) -> None:
    first, second = keys
    for node in (
        Dict([first, 1, "other", 2, second, 3]),
        Object("REDUCE", ORDERED, ([[first, 1]],), items=[second, 2]),
    ):
        with pytest.raises(DamagedFileError, match="two keys of one dictionary are the same"):
            mapping_pairs(node)


@pytest.mark.parametrize(
    "keys",
    [
        ("a", b"a"),
        ("1", 1),
        (1, -1),
        (1, 1.5),
        (0, None),
        (float("nan"), float("nan")),
        ((1,), 1),
        ((1, 2), (2, 1)),
        ((1, (2,)), ((1,), 2)),
        ((), ((),)),
        ("number", 1),
        (made("torch.device", "cpu"), made("torch.device", "cuda")),
        (made("torch.device", "cpu"), made("other.device", "cpu")),
        (made("torch.device", "cpu"), ("torch.device", "cpu")),
        (Object("REDUCE", "?", 1), Object("REDUCE", "?", 1)),
        (Global("m", "C"), Global("m", "D")),
        (List(), List()),
    ],
)
def test_other_keys_are_different(keys: tuple[Node, Node]) -> None:
    assert len(mapping_pairs(Dict([keys[0], 1, keys[1], 2])) or ()) == 2


def test_keys_that_would_take_long_to_compare_are_refused() -> None:
    wide: Node = (0,) * 2000
    doubling: Node = ()
    for _ in range(60):
        doubling = (doubling, doubling)
    for key in (wide, doubling):
        with pytest.raises(LimitExceededError, match="more than 1000 parts"):
            mapping_pairs(Dict([key, 1]))


def test_numbers_with_one_hash_take_no_longer_than_others() -> None:
    """CPython's hash of an integer is its remainder by 2**61 - 1."""
    keys = [number * (2**61 - 1) for number in range(1, 50_000)]
    items = [part for key in keys for part in (key, None)]
    before = process_time()
    assert len(mapping_pairs(Dict(items)) or ()) == len(keys)
    assert process_time() - before < 2  # as keys of a dictionary, they take minutes


def test_content_that_changed_after_the_call_is_refused() -> None:
    for content in (List([List(["a", 1])]), Dict(["a", 1]), List([List(["a", 1], 11)])):
        for node in (content, *content) if isinstance(content, List) else (content,):
            node.changed = max(node.changed, 11)
            with pytest.raises(DamagedFileError, match="changed after the call"):
                mapping_pairs(Object("REDUCE", ORDERED, (content,), 10))
            node.changed = 9


def test_state_that_changed_after_it_was_given_is_refused() -> None:
    state = Dict(["_metadata", Dict()])
    node = Object("REDUCE", ORDERED, (), 10, items=["a", 1], state=state)
    node.changed = 20
    state.changed = 20
    assert state_of(node) is state
    state.changed = 21
    with pytest.raises(DamagedFileError, match="changed after the call"):
        state_of(node)


@pytest.mark.parametrize(
    ("node", "args"),
    [
        (Object("REDUCE", ORDERED, ([["a", 1]],), items=["b", 2]), ()),
        (Object("REDUCE", COUNTER, (Dict(["a", 1]),)), ()),
        (Object("REDUCE", DEFAULT, (None, Dict(["a", 1]))), (None,)),
        (Object("REDUCE", DEFAULT, ()), ()),
        (Object("NEWOBJ", Global("mine", "Dict"), (), items=["a", 1]), ()),
    ],
)
def test_mapping_with_other_items_has_no_others(node: Object, args: Node) -> None:
    edited = with_items(node, ["c", 3])
    assert mapping_pairs(edited) == [("c", 3)]
    assert isinstance(edited, Object)
    assert (edited.callee, edited.op, edited.args) == (node.callee, node.op, args)


@pytest.mark.parametrize("node", [Dict([1, 2]), Dict([("a",), 2]), "no mapping"])
def test_mapping_with_other_keys_has_no_names(node: Node) -> None:
    assert named_items(node) is None
