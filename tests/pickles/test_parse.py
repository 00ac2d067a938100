"""What each opcode becomes, and how malformed pickles are refused."""

from __future__ import annotations

import copyreg
import gc
import pickle
import pickletools
import struct

import pytest

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import (
    NO_STATE,
    ByteString,
    Dict,
    Extension,
    Global,
    Limits,
    Node,
    Object,
    PersistentId,
    TruncatedPickleError,
    children,
    parse,
)


def described(node: Node) -> object:
    """A node as a literal that a test can spell; not for cyclic graphs."""
    if isinstance(node, tuple):
        return tuple(described(part) for part in node)
    if isinstance(node, list):
        return [described(part) for part in node]
    if isinstance(node, Dict):
        return {"dict": [(described(k), described(v)) for k, v in node.pairs()]}
    if isinstance(node, Global):
        return f"<{node.qualified}>"
    if isinstance(node, ByteString):
        return {"str": node.data}
    if isinstance(node, PersistentId):
        return {"pid": described(node.pid)}
    if isinstance(node, Extension):
        return {"ext": node.code}
    if isinstance(node, Object):
        said: dict[str, object] = {node.op: (described(node.callee), described(node.args))}
        if node.elements is not None:
            said["elements"] = described(node.elements)
        if node.items is not None:
            said["items"] = [(described(k), described(v)) for k, v in node.pairs()]
        if node.state is not NO_STATE:
            said["state"] = described(node.state)
        return said
    return node


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


OPCODES: dict[str, tuple[bytes, object]] = {
    "INT": (b"I-12\n", -12),
    "INT False": (b"I00\n", False),
    "INT True": (b"I01\n", True),
    "INT zero": (b"I0\n", 0),
    "BININT": (b"J\xfe\xff\xff\xff", -2),
    "BININT1": (b"K\xff", 255),
    "BININT2": (b"M\xff\xff", 65535),
    "LONG": (b"L123L\n", 123),
    "LONG without L": (b"L-123\n", -123),
    "LONG1": (b"\x8a\x02\x00\xff", -256),
    "LONG1 zero": (b"\x8a\x00", 0),
    "LONG4": (b"\x8b\x01\x00\x00\x00\x80", -128),
    "STRING": (rb"S'a\x41\101\'\\\n\q'" + b"\n", {"str": b"aAA'\\\n\\q"}),
    "STRING in double quotes": (b'S"it\'s"\n', {"str": b"it's"}),
    "STRING octal above a byte": (rb"S'\777'" + b"\n", {"str": b"\xff"}),
    "BINSTRING": (b"T\x02\x00\x00\x00\xff\x00", {"str": b"\xff\x00"}),
    "SHORT_BINSTRING": (b"U\x01\xff", {"str": b"\xff"}),
    "BINBYTES": (b"B\x02\x00\x00\x00ab", b"ab"),
    "SHORT_BINBYTES": (b"C\x02ab", b"ab"),
    "BINBYTES8": (b"\x8e" + u64(2) + b"ab", b"ab"),
    "BYTEARRAY8": (b"\x96" + u64(2) + b"ab", {"REDUCE": ("<__builtin__.bytearray>", (b"ab",))}),
    "BYTEARRAY8 empty": (b"\x96" + u64(0), {"REDUCE": ("<__builtin__.bytearray>", ())}),
    "NONE": (b"N", None),
    "NEWTRUE": (b"\x88", True),
    "NEWFALSE": (b"\x89", False),
    "UNICODE": (b"V\\u00e9\xe8\n", "éè"),
    "SHORT_BINUNICODE": (b"\x8c\x02\xc3\xa9", "é"),
    "BINUNICODE": (b"X\x02\x00\x00\x00\xc3\xa9", "é"),
    "BINUNICODE surrogate": (b"X\x03\x00\x00\x00\xed\xb3\xbf", "\udcff"),
    "BINUNICODE8": (b"\x8d" + u64(2) + b"\xc3\xa9", "é"),
    "FLOAT": (b"F-1.5\n", -1.5),
    "FLOAT inf": (b"Finf\n", float("inf")),
    "BINFLOAT": (b"G?\xf8\x00\x00\x00\x00\x00\x00", 1.5),
    "EMPTY_LIST": (b"]", []),
    "APPEND": (b"]K\x01a", [1]),
    "APPENDS": (b"](K\x01K\x02e", [1, 2]),
    "LIST": (b"(K\x01K\x02l", [1, 2]),
    "EMPTY_TUPLE": (b")", ()),
    "TUPLE": (b"(K\x01K\x02t", (1, 2)),
    "TUPLE1": (b"K\x01\x85", (1,)),
    "TUPLE2": (b"K\x01K\x02\x86", (1, 2)),
    "TUPLE3": (b"K\x01K\x02K\x03\x87", (1, 2, 3)),
    "EMPTY_DICT": (b"}", {"dict": []}),
    "DICT": (b"(K\x01K\x02d", {"dict": [(1, 2)]}),
    "SETITEM": (b"}K\x01K\x02s", {"dict": [(1, 2)]}),
    "SETITEMS": (b"}(K\x01K\x02K\x01K\x03u", {"dict": [(1, 2), (1, 3)]}),
    "EMPTY_SET": (b"\x8f", {"REDUCE": ("<__builtin__.set>", ([],))}),
    "ADDITEMS": (b"\x8f(K\x01\x90(K\x02\x90", {"REDUCE": ("<__builtin__.set>", ([1, 2],))}),
    "FROZENSET": (b"(K\x01\x91", {"REDUCE": ("<__builtin__.frozenset>", ([1],))}),
    "POP": (b"K\x01K\x020", 1),
    "POP of a mark": (b"K\x01(0", 1),
    "POP_MARK": (b"K\x01(K\x02K\x031", 1),
    "DUP": (b"K\x012\x86", (1, 1)),
    "GET": (b"K\x07p5\nK\x010g5\n\x86", (7, 7)),
    "BINGET": (b"K\x07q\x05h\x05\x86", (7, 7)),
    "LONG_BINGET": (b"K\x07r" + u32(500) + b"j" + u32(500) + b"\x86", (7, 7)),
    "MEMOIZE": (b"K\x07\x94K\x08\x94\x86h\x01\x86", ((7, 8), 8)),
    "EXT1": (b"\x82\xff", {"ext": 255}),
    "EXT2": (b"\x83\xff\xff", {"ext": 65535}),
    "EXT4": (b"\x84\xff\xff\xff\x7f", {"ext": 2**31 - 1}),
    "GLOBAL": (b"ca.b\nc\n", "<a.b.c>"),
    "STACK_GLOBAL": (b"\x8c\x03a.b\x8c\x03c.d\x93", "<a.b.c.d>"),
    "REDUCE": (b"cm\nf\nK\x01\x85R", {"REDUCE": ("<m.f>", (1,))}),
    "NEWOBJ": (b"cm\nC\n)\x81", {"NEWOBJ": ("<m.C>", ())}),
    "NEWOBJ_EX": (
        b"cm\nC\n)}\x92",
        {"REDUCE": ("<copy_reg.__newobj_ex__>", ("<m.C>", (), {"dict": []}))},
    ),
    "OBJ": (b"(cm\nC\nK\x01o", {"OBJ": ("<m.C>", (1,))}),
    "INST": (b"(K\x01im\nC\n", {"OBJ": ("<m.C>", (1,))}),
    "BUILD": (b"cm\nC\n)\x81Nb", {"NEWOBJ": ("<m.C>", ()), "state": None}),
    "an object's contents": (
        b"cm\nC\n)RK\x01a(K\x02K\x03e(K\x04K\x05uK\x06K\x07sK\x08b",
        {
            "REDUCE": ("<m.C>", ()),
            "elements": [1, 2, 3],
            "items": [(4, 5), (6, 7)],
            "state": 8,
        },
    ),
    "PERSID": (b"Pkey\n", {"pid": "key"}),
    "BINPERSID": (b"K\x01\x85Q", {"pid": (1,)}),
    "PROTO": (b"\x80\x05N", None),
    "FRAME": (b"\x95" + u64(2) + b"N", None),
}


@pytest.mark.parametrize("name", OPCODES)
def test_each_opcode_becomes_its_node(name: str) -> None:
    code, expected = OPCODES[name]
    parsed = parse(code + b".")
    assert described(parsed.root) == expected
    assert type(described(parsed.root)) is type(expected)
    assert parsed.end == len(code) + 1
    assert parsed.lost == ()


@pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")
def test_every_opcode_of_every_protocol_is_read_or_refused_by_name() -> None:
    """`pickletools` lists them; only the out-of-band buffers of protocol 5 are refused."""
    codes = [code for name, (code, _) in OPCODES.items() if name != "STRING octal above a byte"]
    said = {op.name for code in codes for op, _, _ in pickletools.genops(code + b".")}
    unread = {op.name for op in pickletools.opcodes} - said
    assert unread == {"NEXT_BUFFER", "READONLY_BUFFER"}
    for buffer in (b"\x97.", b"N\x98."):
        with pytest.raises(DamagedFileError, match="not in the file"):
            parse(buffer)


@pytest.mark.parametrize("name", OPCODES)
def test_every_truncation_is_called_a_truncation(name: str) -> None:
    code, _ = OPCODES[name]
    for length in range(len(code) + 1):
        with pytest.raises(TruncatedPickleError) as caught:
            parse(code[:length])
        assert caught.value.entry is not None


MALFORMED: dict[str, tuple[bytes, str]] = {
    "unknown opcode": (b"N\xff.", "opcode 0xff does not exist"),
    "unknown protocol": (b"\x80\x06N.", "protocol 6 does not exist"),
    "empty stack": (b".", "more than there is on the stack"),
    "value below the mark": (b"K\x01(0(K\x02\x86.N", "more than there is on the stack"),
    "no mark": (b"K\x01t.", "more than there is on the stack"),
    "append to nothing": (b"K\x01a.", "more than there is on the stack"),
    "memo of nothing": (b"\x94N.", "more than there is on the stack"),
    "memo entry never written": (b"h\x05.", "memo entry 5 was never written"),
    "long memo entry never written": (b"j" + u32(2**31) + b".", "memo entry 2147483648"),
    "text memo entry never written": (b"g77\n.", "memo entry 77"),
    "negative memo index": (b"Np-1\n.", "a memo index is"),
    "memo index that is no number": (b"Np\xb2\n.", "a memo index is"),
    "bad UTF-8": (b"X\x01\x00\x00\x00\xff.", "utf-8"),
    "bad short UTF-8": (b"\x8c\x01\xff.", "utf-8"),
    "bad raw escape": (b"V\\u12\n.", "rawunicodeescape"),
    "persistent id that is not ASCII": (b"P\xff\n.", "ascii"),
    "integer that is none": (b"Iabc\n.", "invalid literal"),
    "octal": (b"I010\n.", "invalid literal"),
    "float that is none": (b"Fabc\n.", "could not convert"),
    "float with an underscore": (b"F1_0\n.", "a number is"),
    "float of endless digits": (b"F" + b"1" * 5000 + b"\n.", "a number is"),
    "string without quotes": (b"Sabc\n.", "no quotes"),
    "string with one quote": (b"S'\n.", "no quotes"),
    "string that ends in a backslash": (b"S'a\\'\n.", "inside an escape"),
    "string with half an escape": (b"S'\\x1'\n.", "inside an escape"),
    "negative length": (b"T\xff\xff\xff\xff.", "a length is -1"),
    "negative integer length": (b"\x8b\xff\xff\xff\xff.", "a length is -1"),
    "extension code zero": (b"\x82\x00.", "extension code is 0"),
    "negative extension code": (b"\x84\xff\xff\xff\xff.", "extension code is -1"),
    "class named by a number": (b"K\x01\x8c\x01a\x93.", "by something that is no text"),
    "class named by bytes": (b"\x8c\x01aU\x01a\x93.", "by something that is no text"),
    "line break in a name": (b"\x8c\x03os\n\x8c\x01a\x93.", "can be named"),
    "surrogate in a name": (b"\x8c\x03\xed\xb3\xbf\x8c\x01a\x93.", "can be named"),
    "endlessly dotted name": (b"cm\n" + b"a." * 500 + b"a\n.", "can be named"),
    "instance of nothing": (b"(o.", "no class"),
    "append to a tuple": (b")Na.", "no list"),
    "appends to a dictionary": (b"}(Ne.", "no list"),
    "item set on a list": (b"]NNs.", "no dictionary"),
    "items set on text": (b"\x8c\x01a(NNu.", "no dictionary"),
    "odd number of items": (b"}(Nu.", "key without a value"),
    "odd number of items in DICT": (b"(Nd.", "key without a value"),
    "state of a dictionary": (b"}Nb.", "no object"),
    "two states": (b"cm\nC\n)RNbNb.", "twice"),
    "items after the state": (b"cm\nC\n)RNbNNs.", "items after its state"),
    "elements after the state": (b"cm\nC\n)RNbNa.", "elements after"),
    "elements after items": (b"cm\nC\n)RNNsNa.", "elements after"),
    "element of a list": (b"](N\x90.", "no set"),
    "element of another call": (b"cm\nC\n]\x85R(N\x90.", "no set"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickle_is_refused_where_it_is_wrong(name: str) -> None:
    code, message = MALFORMED[name]
    with pytest.raises(DamagedFileError, match=message) as caught:
        parse(code)
    assert not isinstance(caught.value, TruncatedPickleError)
    assert caught.value.entry is not None
    assert caught.value.entry.startswith("byte ")
    assert len(str(caught.value)) < 400


def test_error_names_the_byte_of_the_opcode() -> None:
    with pytest.raises(DamagedFileError) as caught:
        parse(b"NNNN\x80\x02h\x07NN.")
    assert caught.value.entry == "byte 6"
    with pytest.raises(DamagedFileError) as caught:
        parse(b"junkNh\x07NN.", start=4)
    assert caught.value.entry == "byte 5"


def test_error_of_the_caller_passes_through() -> None:
    def refuse(pid: Node) -> Node:
        raise LimitExceededError("no more storages", entry="storage 3")

    with pytest.raises(LimitExceededError, match="no more storages") as caught:
        parse(b"NQ.", persistent_load=refuse)
    assert caught.value.entry == "storage 3"


def test_huge_announced_lengths_are_truncations() -> None:
    huge = b"\xff" * 8
    for code in (b"\x8d", b"\x8e", b"\x96", b"\x95"):
        with pytest.raises(TruncatedPickleError):
            parse(code + huge + b"a.")
    for code in (b"X\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff"):
        with pytest.raises(TruncatedPickleError):
            parse(code + b"a.")


def test_pickles_are_read_one_after_the_other() -> None:
    data = b"junk" + pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 1) + b"more"
    first = parse(data, start=4)
    second = parse(data, start=first.end)
    assert first.root == [1]
    assert first.protocol == 2
    assert described(second.root) == {"dict": [("a", 2)]}
    assert second.protocol == 0
    assert data[second.end :] == b"more"


def test_start_behind_the_data_is_a_truncation() -> None:
    with pytest.raises(TruncatedPickleError):
        parse(b"N.", start=7)


@pytest.mark.parametrize("protocol", range(6))
def test_identity_and_cycles_are_kept(protocol: int) -> None:
    shared = ["shared"]
    cyclic: list[object] = [shared, {"again": shared}]
    cyclic.append(cyclic)
    root = parse(pickle.dumps(cyclic, protocol)).root
    assert isinstance(root, list)
    assert isinstance(root[1], Dict)
    assert root[1].items[1] is root[0]
    assert root[2] is root


def test_two_equal_characters_that_are_two_objects_stay_two() -> None:
    """torch names storages by ``str(index)``, which CPython does not share with literals."""
    for character in map(chr, range(128)):
        data = b"(X\1\0\0\0%bq\0X\1\0\0\0%bq\1h\0t." % ((character.encode(),) * 2)
        one, other, again = parse(data).root  # type: ignore[misc]
        assert one == other == character
        assert one is again
        assert one is not other


def test_persistent_load_makes_the_node() -> None:
    seen: list[Node] = []

    def load(pid: Node) -> Node:
        seen.append(pid)
        return PersistentId(pid, target="found")

    root = parse(b"K\x01QPname\n\x86.", persistent_load=load).root
    assert isinstance(root, tuple)
    assert seen == [1, "name"]
    assert [part.target for part in root] == ["found", "found"]


def test_names_are_reported_even_if_nothing_is_left_of_them() -> None:
    parsed = parse(b"cos\nsystem\nS'id'\n\x85R0cm\nf\n.")
    assert [name.qualified for name in parsed.globals] == ["os.system", "m.f"]
    assert described(parsed.root) == "<m.f>"
    assert [call.name for call in parsed.lost] == ["os.system"]


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n)R0N.",
        b"(cos\nsystem\n)R1N.",
        b"cos\nsystem\n)RN.",
        b"cos\nsystem\n)R(N.",
        b"cos\nsystem\n)Rq\x000N.",
        b"cos\nsystem\n)R\x850N.",
        b"cos\nsystem\n)R0g\n.",
        b"cos\nsystem\n)R0h\x00.",
        b"cm\nf\nq\x00)Rq\x01cos\nsystem\n)R0h\x01.",
        b"cm\nf\nq\x00)Rq\x01cos\nsystem\n)R0j\x01\x00\x00\x00.",
        b"cm\nf\nq\x00)Rq\x01cos\nsystem\n)R0g1\n.",
    ],
)
def test_call_that_the_graph_does_not_hold_is_reported(code: bytes) -> None:
    try:
        parsed = parse(code)
    except DamagedFileError:
        assert code[-4:] == b"0g\n." or code[-3:] == b"h\x00."  # gets what was never filed
    else:
        assert [call.name for call in parsed.lost] == ["os.system"]


def test_call_that_was_popped_but_is_held_elsewhere_is_not_lost() -> None:
    parsed = parse(b"cm\nf\n)Rq\x000](K\x01h\x00e.")
    assert parsed.lost == ()


class _HoldsItself:
    """Pickled by a call whose argument holds the object (CPython issue 12687)."""

    def __init__(self) -> None:
        self.args: list[object] = [self]

    def __reduce__(self) -> tuple[object, ...]:
        return _HoldsItself, (self.args,)


@pytest.mark.parametrize("protocol", range(6))
def test_second_copy_of_a_call_that_holds_itself_is_not_lost(protocol: int) -> None:
    parsed = parse(pickle.dumps([_HoldsItself()], protocol))
    assert parsed.lost == ()


def test_protocol_is_the_one_the_pickle_says() -> None:
    assert [parse(pickle.dumps(None, protocol)).protocol for protocol in range(6)] == [
        0,
        0,
        2,
        3,
        4,
        5,
    ]


def test_nothing_is_imported_or_called() -> None:
    """The name does not exist and the arguments do not fit: nobody looks."""
    root = parse(b"cno_such_module_here\nf\n(K\x01K\x02tR.").root
    assert described(root) == {"REDUCE": ("<no_such_module_here.f>", (1, 2))}


def test_extension_registry_is_not_asked() -> None:
    copyreg.add_extension("collections", "OrderedDict", 240)
    try:
        assert described(parse(b"\x82\xf0.").root) == {"ext": 240}
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 240)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        parse(b"N.")
        assert gc.isenabled() == enabled
        with pytest.raises(CkptError):
            parse(b"")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_children_are_in_the_order_of_writing() -> None:
    called = Object("REDUCE", 1, 2, elements=[3], items=[4, 5], state=6)
    assert children(called) == [1, 2, 3, 4, 5, 6]
    assert children(Object("REDUCE", 1, 2)) == [1, 2]
    assert children((1, 2)) == [1, 2]
    assert children([1, 2]) == [1, 2]
    assert children(Dict([1, 2])) == [1, 2]
    assert children(PersistentId(1)) == [1]
    assert children("leaf") == []


def test_nodes_show_what_they_are() -> None:
    shown = repr((Global("m", "f"), Object("REDUCE", Global("m", "f"), ()), ByteString(b"a")))
    assert shown == "(Global('m.f'), Object(REDUCE, m.f), ByteString(b'a'))"
    assert repr(Object("OBJ", None, ())) == "Object(OBJ, ?)"
    assert repr(NO_STATE) == "NO_STATE"


# Limits: the last allowed value is read, the next is refused


def accepts(limits: Limits, data: bytes) -> bool:
    try:
        parse(data, limits=limits)
    except LimitExceededError:
        return False
    return True


def test_limit_of_operations() -> None:
    limits = Limits(operations=10)
    assert accepts(limits, b"N" * 9 + b".")
    assert not accepts(limits, b"N" * 10 + b".")


def test_filing_a_new_value_is_no_operation() -> None:
    assert accepts(Limits(operations=2), b"]q\x00.")
    assert not accepts(Limits(operations=2), b"Nq\x00q\x01.")


def test_limit_of_pickle_bytes() -> None:
    limits = Limits(pickle_bytes=10)
    assert accepts(limits, b"N" * 9 + b".")
    assert accepts(limits, b"N" * 9 + b"." + b"what follows does not count")
    assert not accepts(limits, b"N" * 10 + b".")
    assert not accepts(limits, b"N" * 11)
    with pytest.raises(TruncatedPickleError):
        parse(b"N" * 10, limits=limits)


@pytest.mark.parametrize(
    "put", [lambda i: b"q" + bytes([i]), lambda i: b"r" + u32(i), lambda i: b"p%d\n" % i]
)
def test_limit_of_memo(put: object) -> None:
    assert callable(put)
    limits = Limits(memo=100)
    for value in (b"]", b"N"):
        assert accepts(limits, value + put(99) + b".")
        assert not accepts(limits, value + put(100) + b".")


def test_limit_of_memo_in_memoize() -> None:
    limits = Limits(memo=3)
    assert accepts(limits, b"N\x94" * 3 + b".")
    assert not accepts(limits, b"N\x94" * 4 + b".")


@pytest.mark.parametrize("code", [b"I%s\n.", b"L%sL\n.", b"Np%s\n."])
def test_limit_of_digits(code: bytes) -> None:
    limits = Limits(digits=12)
    at_most = b"9" * 12 if b"p" not in code else b"0" * 20 + b"5"
    assert accepts(limits, code % at_most)
    assert not accepts(limits, code % (b"9" * 13))
