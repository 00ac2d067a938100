"""What is written: the same bytes as CPython's pickler, and what was asked to be written else."""

from __future__ import annotations

import argparse
import collections
import copyreg
import io
import math
import pickle
import pickletools
import struct

import pytest
from hypothesis import example, given
from picklable import OBJECTS, Keywords, Plain

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
)
from ckpt_surgery.pickles.emit import emit

WEIGHTS_ONLY = frozenset(
    """PROTO GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2
    TUPLE3 NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1
    BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT
    LONG1 STOP""".split()  # noqa: SIM905 (a list would take 34 lines)
)


def opcodes(data: bytes) -> list[str]:
    return [op.name for op, _, _ in pickletools.genops(data)]


def rewritten(value: object, protocol: int = 2) -> bytes:
    return emit(parse(pickle.dumps(value, protocol)).root)


# Identity with CPython's pickler


@given(OBJECTS)
@example(["5", str(5)])
def test_emit_of_parse_is_identity(value: object) -> None:
    data = pickle.dumps(value, 2)
    assert emit(parse(data).root) == data


@pytest.mark.parametrize("protocol", range(6))
@given(value=OBJECTS)
def test_every_protocol_is_written_as_an_equal_object(protocol: int, value: object) -> None:
    data = rewritten(value, protocol)
    assert pickle.loads(data) == value
    assert emit(parse(data).root) == data


class _List(list[object]):
    pass


class _Dict(dict[object, object]):
    pass


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 1002, 1999, 2000, 2001, 3000])
@pytest.mark.parametrize("kind", [list, _List, tuple, dict, _Dict, collections.OrderedDict, set])
def test_batches_are_those_of_the_pickler(kind: type, count: int) -> None:
    numbers = range(count)
    value = kind(zip(numbers, numbers, strict=True)) if issubclass(kind, dict) else kind(numbers)
    data = pickle.dumps(value, 2)
    assert emit(parse(data).root) == data


@pytest.mark.parametrize("count", [255, 256, 257, 300])
def test_memo_indices_grow_as_the_pickler_s(count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    data = pickle.dumps([texts, texts], 2)
    assert emit(parse(data).root) == data


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [7, 8, 15, 16, 31, 32, 63, 64, 2031, 2032, 2039, 2040, 2048])
def test_integers_are_as_short_as_the_pickler_s(bits: int, sign: int) -> None:
    values = [sign * 2**bits + delta for delta in (-1, 0, 1)]
    data = pickle.dumps(values, 2)
    assert emit(parse(data).root) == data


def test_payload_of_nan_is_kept() -> None:
    for bits in (b"\x7f\xf8\0\0\0\0\0\1", b"\xff\xf0\0\0\0\0\1\0", b"\x80" + bytes(7)):
        data = b"\x80\x02G" + bits + b"."
        assert emit(parse(data).root) == data
    assert math.isnan(parse(b"G\xff\xf0\0\0\0\0\1\0.").root)  # type: ignore[arg-type]


class _ReducedTo:
    """Pickled by a call that is given when it is made."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


def _make(*_: object) -> None:
    raise AssertionError("never called")


def _cyclic() -> dict[str, object]:
    lists: list[object] = []
    lists.append(lists)
    table: dict[object, object] = {}
    table["self"] = table
    in_tuples: list[object] = []
    tuples = {}
    for n in (1, 2, 3, 4, 7):
        held: list[object] = []
        tuples[n] = (held,) * n
        held.append(tuples[n])
        in_tuples.append(tuples[n])
    plain = Plain()
    plain.__dict__["self"] = plain
    call = _ReducedTo(_make, ())
    call.parts = (_make, ([call], "after"))
    with_contents = _ReducedTo(_make, ())
    contents = [with_contents]
    with_contents.parts = (_make, (contents,), {"s": 1}, iter([1, 2]), iter([(3, 4)]))
    shared_args = ([],)
    same_args = _ReducedTo(_make, shared_args, None, None, None)
    shared_args[0].append(same_args)  # type: ignore[attr-defined]
    table_of_tuple: dict[object, object] = {}
    table_of_tuple["t"] = (table_of_tuple, table_of_tuple)
    return {
        "list": lists,
        "dict": table,
        "tuples": in_tuples,
        "first in a tuple": tuples[4],
        "first in a pair": tuples[2],
        "object": plain,
        "call": call,
        "tuple in a dict": table_of_tuple,
        "call of shared arguments": same_args,
    }


@pytest.mark.parametrize("name", _cyclic())
def test_recursive_structures_are_written_as_the_pickler_does(name: str) -> None:
    value = _cyclic()[name]
    data = pickle.dumps(value, 2)
    again = emit(parse(data).root)
    if name == "call":  # the pickler asks twice for the arguments, and writes two tuples
        assert opcodes(again)[-4:-1] == opcodes(data)[-4:-1] == ["REDUCE", "POP", "BINGET"]
        assert emit(parse(again).root) == again
    else:
        assert again == data


def test_call_inside_its_own_arguments_keeps_its_contents_once() -> None:
    """The inner copy is complete before the outer one, which is thrown away."""
    held: list[Node] = []
    call = Object("REDUCE", Global("m", "f"), (held,), elements=[1], items=[2, 3], state=4)
    held.append(call)
    names = opcodes(emit(call))
    assert names.count("REDUCE") == 2
    assert names.count("POP") == 2  # of the tuple of arguments, and of the call
    assert names.count("BUILD") == names.count("SETITEM") == 1
    again = parse(emit(call))
    assert again.lost == ()
    assert emit(again.root) == emit(call)


# Values that protocol 2 says differently


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        bytes(range(256)),
        bytearray(),
        bytearray(b"\xff\x00"),
        {1},
        frozenset("a"),
        [b"", b"", b"a", b"b", bytearray(b"b"), {b"c"}],
    ],
)
def test_bytes_and_sets_of_every_protocol_become_those_of_protocol_2(
    value: object, protocol: int
) -> None:
    data = rewritten(value, protocol)
    assert pickle.loads(data) == value
    assert pickle.loads(pickle.dumps(value, 2)) == value
    if protocol >= 2 and not isinstance(value, list):  # which shares some strings by chance
        assert opcodes(data) == opcodes(pickle.dumps(value, 2))
    assert set(opcodes(data)) <= WEIGHTS_ONLY


@pytest.mark.parametrize("protocol", [2, 4])
def test_nested_classes_are_reached_by_getattr(protocol: int) -> None:
    classes = [Plain.Nested, Plain.Nested.Deeper, Plain.Nested.Deeper(), Plain]
    expected = pickle.dumps(classes, 2)
    assert rewritten(classes, protocol) == expected


def test_keyword_arguments_of_new_survive() -> None:
    data = rewritten(Keywords(key=[1]), 4)
    assert pickle.loads(data) == Keywords(key=[1])


def test_python_2_strings_stay_python_2_strings() -> None:
    for data in (b"", b"\xff", b"a" * 255, b"a" * 256):
        string = ByteString(data)
        written = emit([string, string])
        assert pickle.loads(written, encoding="bytes") == [data, data]
        assert opcodes(written).count("BINGET") == 1
        assert ("BINSTRING" in opcodes(written)) == (len(data) > 255)


def test_python_2_instances_are_written_by_obj() -> None:
    node = Object("OBJ", Global("argparse", "Namespace"), (), state=Dict(["a", 1]))
    written = emit([node, node])
    assert opcodes(written).count("OBJ") == 1
    first, second = pickle.loads(written)
    assert first is second
    assert first == argparse.Namespace(a=1)


def test_python_2_instance_inside_its_own_arguments() -> None:
    held: list[Node] = []
    node = Object("OBJ", Global("collections", "OrderedDict"), (1, held))
    held.append(node)
    data = emit(node)
    again = parse(data)
    assert again.lost == ()
    assert emit(again.root) == data
    assert opcodes(data)[-4:] == ["OBJ", "POP", "BINGET", "STOP"]


@pytest.mark.parametrize("code", [1, 255, 256, 65535, 65536, 2**31 - 1])
def test_extension_codes_are_as_short_as_they_can_be(code: int) -> None:
    copyreg.add_extension("picklable", "Plain", code)
    try:
        data = pickle.dumps([Plain, Plain], 2)
        assert emit(parse(data).root) == data
        assert emit([Extension(code), Extension(code)]) == data
    finally:
        copyreg.remove_extension("picklable", "Plain", code)


def test_name_written_twice_is_got_from_the_memo() -> None:
    data = emit([Global("m", "f"), Global("m", "f"), Global("m", "a.b"), Global("m", "a.b")])
    assert data.count(b"cm\n") == 2
    assert opcodes(data).count("REDUCE") == 1


@given(OBJECTS)
def test_weights_only_opcodes_suffice(value: object) -> None:
    """Of the rest, each has a value that only it can say."""
    names = set(opcodes(rewritten(value, 5)))
    assert names <= WEIGHTS_ONLY | {"LONG4"}


# Persistent ids


def stored(value: object) -> bytes:
    """A pickle in which each `Plain` is outside."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", Plain, str(id(obj))) if isinstance(obj, Plain) else None

    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def test_persistent_ids_are_kept() -> None:
    plain = Plain()
    data = stored([plain, plain, (Plain(), plain)])
    assert emit(parse(data).root) == data
    assert opcodes(data).count("BINPERSID") == 4


def test_persistent_id_is_asked_for_each_time() -> None:
    one = PersistentId(("storage", "a"))
    asked: list[PersistentId] = []

    def number(node: PersistentId) -> Node:
        asked.append(node)
        return ("storage", str(len(asked)))

    data = emit([one, PersistentId("b"), one, (one,)], persistent_id=number)
    read = parse(data).root
    assert isinstance(read, list)
    assert [node.pid for node in (*read[:3], read[3][0])] == [("storage", str(n)) for n in "1234"]
    assert asked[0] is asked[2] is asked[3] is one


def test_temporary_ids_do_not_take_each_other_s_place() -> None:
    """A new tuple may lie where a freed one lay, so none may be freed."""
    nodes: list[Node] = [PersistentId(n) for n in range(2000)]
    data = emit(nodes, persistent_id=lambda node: ("id", node.pid))
    read = parse(data).root
    assert isinstance(read, list)
    assert [node.pid for node in read] == [("id", n) for n in range(2000)]


def test_temporary_calls_do_not_take_each_other_s_place() -> None:
    values = [bytes([n % 256, n // 256]) for n in range(2000)]
    assert pickle.loads(emit(list(values))) == values


# Replacing


def test_replaced_node_is_written_in_place_of_the_other_everywhere() -> None:
    old, new = Dict(["old", 1]), Dict(["new", 2])
    graph = [
        old,
        (old, 1),
        Dict(["key", old]),
        Object("REDUCE", Global("m", "f"), (old,), state=old),
    ]
    said = emit(graph, replaced={id(old): new})
    assert b"old" not in said
    assert said.count(b"new") == 1
    assert emit(old, replaced={id(old): new}) == emit(new)
    assert emit(graph, replaced={}) == emit(graph)
    assert b"new" not in emit(graph)


def test_replacement_is_not_replaced_itself() -> None:
    a, b, c = ["a"], ["b"], ["c"]
    graph = [a, b, c]
    exchanged = emit(graph, replaced={id(a): b, id(b): a})
    assert pickle.loads(exchanged) == [["b"], ["a"], ["c"]]


def test_nodes_below_a_replacement_are_replaced() -> None:
    old, inner = ["old"], ["inner"]
    wrapper = (inner, 1)
    assert pickle.loads(emit([old], replaced={id(old): wrapper, id(inner): 5})) == [(5, 1)]


@pytest.mark.parametrize("op", ["REDUCE", "NEWOBJ", "OBJ"])
def test_every_part_of_a_call_can_be_replaced(op: str) -> None:
    parts = [Global("m", "f"), ("args",), ["element"], ["key"], ["value"], ["state"], ("pid",)]
    callee, args, element, key, value, state, pid = parts
    call = Object(
        op,  # type: ignore[arg-type] (a literal)
        callee,
        args,
        elements=[element],
        items=[key, value],
        state=state,
    )
    graph = [call, PersistentId(pid)]
    for part in parts:
        new: Node = ("new",)
        said = emit(graph, replaced={id(part): new})
        assert b"new" in said
        assert said != emit(graph)


# Limits and mistakes


def writes(root: Node, limits: Limits) -> bool:
    try:
        emit(root, limits=limits)
    except LimitExceededError:
        return False
    return True


def test_limit_of_depth() -> None:
    deep: Node = []
    for _ in range(9):
        deep = (deep,)
    assert writes(deep, Limits(depth=10))
    assert not writes([deep], Limits(depth=10))


def test_limit_of_operations() -> None:
    assert writes([1] * 9, Limits(operations=10))
    assert not writes([1] * 10, Limits(operations=10))


def test_limit_of_pickle_bytes() -> None:
    size = len(emit(["a" * 50]))
    assert writes(["a" * 50], Limits(pickle_bytes=size))
    assert not writes(["a" * 50], Limits(pickle_bytes=size - 1))


def test_integer_got_a_million_times_does_not_fill_the_memory() -> None:
    """An integer is never in the memo: each GET of a long one writes all of it."""
    size = 1 << 20
    data = (
        b"](\x8b" + struct.pack("<i", size) + b"\x01" * size + b"q\x00" + b"h\x00" * 10_000 + b"e."
    )
    root = parse(data).root
    with pytest.raises(LimitExceededError, match="longer than"):
        emit(root, limits=Limits(pickle_bytes=8 << 20))


def test_calls_nested_in_each_other_s_arguments_are_bounded() -> None:
    """A chain of calls is gone through again below each list that closes a cycle."""
    lists: list[list[Node]] = [[] for _ in range(300)]
    call: Node = tuple(lists)
    for _ in range(300):
        call = (call,)
    for closing in lists:
        closing.append(call)
    assert not writes(call, Limits(operations=10_000))
    assert not writes(call, Limits(depth=10_000))


def test_value_that_is_no_node_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="Plain is no node"):
        emit([Plain()])
