"""Dictionaries are recognised in every form that a pickle gives them."""

from __future__ import annotations

import pytest

from ckpt_surgery.pickles import ByteString, Dict, Global, Node, Object
from ckpt_surgery.torch_objects.mappings import mapping_pairs, named_items

ORDERED = Global("collections", "OrderedDict")
B = ByteString(b"b")


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


def test_names_are_those_that_a_dictionary_would_keep() -> None:
    assert named_items(Dict(["a", 1, B, 2, "a", 3])) == {"a": 3, "b": 2}
    assert list(named_items(Dict(["a", 1, B, 2, "a", 3])) or ()) == ["a", "b"]


@pytest.mark.parametrize("node", [Dict([1, 2]), Dict([("a",), 2]), "no mapping"])
def test_mapping_with_other_keys_has_no_names(node: Node) -> None:
    assert named_items(node) is None
