"""Small files of which torch loads something else than their first reading says.

All are made here, opcode by opcode, and run nothing: torch may load them.
"""

from __future__ import annotations

import struct
import tarfile
from typing import NamedTuple

from bombs import (
    ODICT,
    archive,
    call,
    fetch,
    keep,
    mapping,
    name,
    number,
    numbers,
    storage,
    tensor,
    text,
    whole,
)

OTHER = struct.pack("<4f", 666, 777, 888, 999)


class Lie(NamedTuple):
    """A file, what `ckpt` says when it refuses it, and which of torch's unpicklers loads it."""

    data: bytes
    refusal: str
    weights_only: bool = True


def shown() -> bytes:
    return tensor()


def hidden() -> bytes:
    return tensor(inside=storage("1"))


def ordered(*pairs: tuple[str, bytes], state: bytes = b"") -> bytes:
    return ODICT + b"(" + b"".join(text(key) + value for key, value in pairs) + b"u" + state


def rebuilt(
    *,
    size: bytes | None = None,
    stride: bytes | None = None,
    hooks: bytes = ODICT,
    more: bytes = b"",
) -> bytes:
    """Like `shown`, with a size, a stride or further arguments as these opcodes make them."""
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(),
        number(0),
        numbers([4]) if size is None else size,
        numbers([1]) if stride is None else stride,
        b"\x89",
        hooks,
        more,
    )


def two(root: bytes) -> bytes:
    """An archive of two storages, the second of which nothing honest refers to."""
    return archive(whole(root), {"data/1": OTHER})


def later(entry: bytes, change: bytes) -> bytes:
    """A state dict whose attributes change, by opcodes, what its entry was made of."""
    return ordered(("w", entry), ("v", hidden()), state=b"}(" + text("z") + change + b"ub")


def from_type(state: bytes, kind: bytes | None = None) -> bytes:
    place = b"(" + storage() + number(0) + numbers([4]) + numbers([1]) + b"\x89" + ODICT + b"t"
    function, cls = name("torch._utils", "_rebuild_tensor_v2"), kind or name("torch", "Tensor")
    return call("torch._tensor._rebuild_from_type_v2", function, cls, place, state)


def _parameter() -> bytes:
    return call("torch._utils._rebuild_parameter", shown(), b"\x89", ODICT)


def _of_storage(change: bytes) -> bytes:
    """A tensor of a storage that opcodes change between its making and its use."""
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage() + change,
        number(0),
        numbers([4]),
        numbers([1]),
        b"\x89",
        ODICT,
    )


_STATE = b"(" + storage("1") + number(0) + numbers([4]) + numbers([1]) + b"t"
_NEGATED = b"}" + keep(60)
_OTHER = name("collections", "UserDict")
_VIEW = name("types", "MappingProxyType")
_PARAMETERS = ("torch.nn.parameter", "Parameter")

CALLS = {
    "a tensor is given a state": Lie(
        two(ordered(("w", shown() + _STATE + b"b"))), "is given a state or items"
    ),
    "a tensor is given an item": Lie(
        two(ordered(("w", shown() + number(0) + b"G" + struct.pack(">d", 666) + b"s"))),
        "is given a state or items",
        weights_only=False,
    ),
    "a tensor that its class makes is given an item": Lie(
        two(
            ordered(
                (
                    "w",
                    name("torch", "FloatTensor")
                    + b"]"
                    + b"("
                    + b"G"
                    + struct.pack(">d", 1)
                    + b"e"
                    + b"\x85R"
                    + number(0)
                    + b"G"
                    + struct.pack(">d", 666)
                    + b"s",
                ),
                ("v", shown()),
            )
        ),
        "is given a state or items",
        weights_only=False,
    ),
    "a parameter is given a state": Lie(
        two(ordered(("w", _parameter() + _STATE + b"b"))), "is given a state or items"
    ),
    "a parameter is given items": Lie(
        two(ordered(("w", _parameter() + b"(" + number(0) + b"G" + struct.pack(">d", 666) + b"u"))),
        "is given a state or items",
        weights_only=False,
    ),
    "an attribute requires a gradient": Lie(
        two(ordered(("w", from_type(mapping((text("requires_grad"), b"\x88")))))),
        "sets a tensor's own attribute 'requires_grad'",
    ),
    "an attribute replaces the values": Lie(
        two(ordered(("w", from_type(mapping((text("data"), hidden())))))),
        "sets a tensor's own attribute 'data'",
    ),
    "an attribute in a slot replaces the values": Lie(
        two(ordered(("w", from_type(b"N" + mapping((text("data"), hidden())) + b"\x86")))),
        "sets a tensor's own attribute 'data'",
    ),
    "an attribute of a parameter replaces the values": Lie(
        two(
            ordered(
                (
                    "w",
                    call(
                        "torch._utils._rebuild_parameter_with_state",
                        shown(),
                        b"\x89",
                        ODICT,
                        mapping((text("data"), hidden())),
                    ),
                )
            )
        ),
        "sets a tensor's own attribute 'data'",
    ),
    "attributes in a mapping of another class replace the values": Lie(
        two(ordered(("w", from_type(_OTHER + mapping((text("data"), hidden())) + b"\x85R")))),
        "arguments of the wrong form",
        weights_only=False,
    ),
    "attributes of a parameter in a view of a dictionary": Lie(
        two(
            ordered(
                (
                    "w",
                    call(
                        "torch._utils._rebuild_parameter_with_state",
                        shown(),
                        b"\x89",
                        ODICT,
                        _VIEW + mapping((text("data"), hidden())) + b"\x85R",
                    ),
                )
            )
        ),
        "arguments of the wrong form",
        weights_only=False,
    ),
    "a tensor of the class of parameters": Lie(
        two(ordered(("w", from_type(mapping((text("a"), number(1))), name(*_PARAMETERS))))),
        "arguments of the wrong form",
    ),
    "a parameter of the class of tensors": Lie(
        two(
            ordered(
                (
                    "w",
                    call(
                        "torch._tensor._rebuild_from_type_v2",
                        name("torch._utils", "_rebuild_parameter"),
                        name("torch", "Tensor"),
                        b"(" + shown() + b"\x88" + ODICT + b"t",
                        mapping((text("a"), number(1))),
                    ),
                )
            )
        ),
        "arguments of the wrong form",
    ),
    "an attribute is another class": Lie(
        two(ordered(("w", from_type(mapping((text("__class__"), name("torch.nn", "Parameter"))))))),
        "sets a tensor's own attribute '__class__'",
        weights_only=False,
    ),
    "a shape grows after the call": Lie(
        two(
            later(
                rebuilt(size=b"]" + keep(60) + b"K\2a", stride=b"]" + keep(61) + b"K\1a"),
                fetch(60) + b"K\2a" + text("z2") + fetch(61) + b"K\2a",
            )
        ),
        "is changed after the call",
    ),
    "a torch.Size grows after the call": Lie(
        two(
            later(
                rebuilt(
                    size=name("torch", "Size") + b"]" + keep(60) + b"K\2a\x85R",
                    stride=b"]" + keep(61) + b"K\1a",
                ),
                fetch(60) + b"K\2a" + text("z2") + fetch(61) + b"K\2a",
            )
        ),
        "is changed after the call",
    ),
    "a tensor is negated after the call": Lie(
        two(later(rebuilt(more=_NEGATED), fetch(60) + text("neg") + b"\x88s")),
        "is changed after the call",
    ),
    "hooks are of another class": Lie(
        two(ordered(("w", rebuilt(hooks=name("torch", "Size") + b")R")))),
        "has arguments of the wrong form",
        weights_only=False,
    ),
    "an attribute is set after the call": Lie(
        two(later(from_type(_NEGATED), fetch(60) + text("grad") + b"Ns")),
        "is changed after the call",
    ),
}

# Another tensor of the same storage, of which one element is set; only the full unpickler does.
_SET = shown() + number(0) + b"G" + struct.pack(">d", 666) + b"s"
_MODEL = (text("m"), ordered(("w", shown())))


def _elsewhere(inside: bytes) -> Lie:
    """Beside a model, whose elements it changes."""
    root = mapping(_MODEL, (text("x"), inside))
    return Lie(two(root), "is given a state or items", weights_only=False)


SHARED = {
    "a tensor of the same storage is changed and thrown away": _elsewhere(_SET + b"0N"),
    "one that its class makes is changed and thrown away": _elsewhere(
        name("torch", "FloatTensor") + storage() + b"\x85R"
        + number(0) + b"G" + struct.pack(">d", 666) + b"s0N"
    ),
    "a tensor is changed that is a key": _elsewhere(b"}" + _SET + number(1) + b"s"),
    "a tensor is changed in the hooks of another": _elsewhere(
        rebuilt(hooks=ODICT + text("a") + _SET + b"s")
    ),
    "a tensor is changed in the versions of modules": _elsewhere(
        ordered(("v", shown()), state=b"}" + text("_metadata") + b"}" + text("a") + _SET + b"ssb")
    ),
    "a tensor is changed in the arguments of what is not read": _elsewhere(
        name("builtins", "tuple") + b"](" + _SET + b"e\x85R"
    ),
}  # fmt: skip


def _scalar(kind: str, content: str, state: bytes) -> bytes:
    """A number or text as numpy pickles it."""
    dtype = name("numpy", "dtype") + text(kind) + b"\x89\x88\x87R(K\3" + text("<") + state + b"tb"
    data = call("_codecs.encode", text(content), text("latin1"))
    return name("numpy.core.multiarray", "scalar") + dtype + data + b"\x86R"


def _equal(*keys: bytes, weights_only: bool = False) -> Lie:
    """Models of keys that are one to Python."""
    models = (ordered(("w", shown())), ordered(("w", hidden())))
    root = mapping(*zip(keys, models, strict=True))
    return Lie(two(root), "two keys of one dictionary are the same", weights_only=weights_only)


def _made(kind: str, *args: bytes) -> bytes:
    return call(f"builtins.{kind}", *args)


KEYS = {
    "1 and numpy's 1": _equal(
        number(1), _scalar("i8", "\1" + 7 * "\0", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0")
    ),
    "a text and numpy's": _equal(
        text("ab"), _scalar("U2", "a\0\0\0b\0\0\0", b"NNNK\x08K\4K\x08")
    ),
    "a text and one that is made": _equal(text("model"), _made("str", text("model"))),
    "a text and one that is made of bytes": _equal(
        text("model"),
        _made("str", call("_codecs.encode", text("model"), text("latin1")), text("utf8")),
    ),
    "1 and one that is made of a text": _equal(number(1), _made("int", text("1"))),
    "1 and one that is made of a number": _equal(number(1), _made("float", number(1))),
    "1 and a complex 1": _equal(number(1), _made("complex", number(1)), weights_only=True),
    "1 and a complex 1 of a text": _equal(
        number(1), _made("complex", text("1+0j")), weights_only=True
    ),
    "a size of a list and a tuple": _equal(
        call("torch.Size", b"](K\1e"), b"K\1\x85", weights_only=True
    ),
    "a tuple that is made and one": _equal(_made("tuple", b"](K\1e"), b"K\1\x85"),
    "frozen sets of 1 and True": _equal(
        _made("frozenset", b"](K\1K\2e"), _made("frozenset", b"](K\2\x88e")
    ),
    "a device in two spellings": _equal(
        call("torch.device", text("cuda:0")), call("torch.device", text("cuda"), number(0)),
        weights_only=True,
    ),
    "an element type under two names": _equal(name("torch", "float"), name("torch", "float32")),
    "a layout in two ways": _equal(
        call("torch.serialization._get_layout", text("torch.strided")), name("torch", "strided")
    ),
}  # fmt: skip
_PAIR = b"(" + text("hidden") + hidden() + b"t"
_COUNTER = name("collections", "Counter")
MAPPINGS = {
    "two models": Lie(
        two(
            mapping(
                (text("model"), ordered(("w", shown()))), (text("model"), ordered(("w", hidden())))
            )
        ),
        "two keys of one dictionary are the same: 'model'",
    ),
    "two models, one in bytes": Lie(
        two(
            mapping(
                (text("model"), ordered(("w", shown()))), (b"U\5model", ordered(("w", hidden())))
            )
        ),
        "two keys of one dictionary are the same: 'model'",
    ),
    "one weight twice, below": Lie(
        two(
            mapping(
                (text("model"), mapping((text("w"), shown()), (text("w"), hidden())))
            )
        ),
        "two keys of one dictionary are the same: 'w'",
    ),
    "1 and True, below": Lie(
        two(mapping((text("model"), mapping((b"K\1", shown()), (b"\x88", hidden()))))),
        "two keys of one dictionary are the same: '1'",
    ),
    "a storage is given a state": Lie(
        two(ordered(("w", _of_storage(mapping((text("x"), number(1))) + b"b")))),
        "a state is given to something that is no object",
    ),
    "a storage is given an item": Lie(
        two(ordered(("w", _of_storage(number(0) + b"G" + struct.pack(">d", 666) + b"s")))),
        "an item is set on something that is no dictionary",
        weights_only=False,
    ),
    "models of 1 and True": Lie(
        two(mapping((b"K\1", ordered(("w", shown()))), (b"\x88", ordered(("w", hidden()))))),
        "two keys of one dictionary are the same: '1'",
    ),
    "models of 1 and 1.0": Lie(
        two(
            mapping(
                (b"G" + struct.pack(">d", 1), ordered(("w", shown()))),
                (b"K\1", ordered(("w", hidden()))),
            )
        ),
        "two keys of one dictionary are the same: '1.0'",
    ),
    "one weight in the arguments and in the items": Lie(
        two(
            name("collections", "OrderedDict") + b"](" + _PAIR + b"e\x85R"
            + text("hidden") + shown() + b"s"
        ),
        "two keys of one dictionary are the same: 'hidden'",
    ),
    "an argument gets items after the call": Lie(
        two(
            name("collections", "OrderedDict") + b"]" + keep(60) + _PAIR + b"a\x85R"
            + b"}" + text("z") + fetch(60) + b"(" + text("more") + shown() + b"tasb"
        ),
        "changed after the call",
    ),
    "an attribute hides a method": Lie(
        two(ordered(("w", shown()), state=b"}" + text("items") + ODICT + b"sb")),
        "the attribute 'items' hides a method",
    ),
    "an attribute in a slot hides a method": Lie(
        two(ordered(("w", shown()), state=b"N" + mapping((text("items"), ODICT)) + b"\x86b")),
        "the state of 'collections.OrderedDict' is no dictionary",
        weights_only=False,
    ),
    "an attribute hides a method above the model": Lie(
        two(ordered(("m", ordered(("w", shown()))), state=b"}" + text("get") + ODICT + b"sb")),
        "the attribute 'get' hides a method",
    ),
    "attributes change after they were given": Lie(
        two(
            ordered(("w", shown()))
            + b"}" + keep(60) + b"b" + keep(61)
            + b"0" + fetch(60) + text("_metadata") + b"}s0" + fetch(61)
        ),
        "changed after the call",
        weights_only=False,
    ),
}  # fmt: skip
_NAMED = archive(whole(ordered(("w", shown()))))
_VERSION = _NAMED.replace(b"a/version", b"a/Version")
_BEFORE = b"}(" + text("w") + shown() + text("v") + shown() + text("x") + b"charmless_"
FILES = {
    "a byte order under another name": Lie(
        archive(whole(ordered(("w", shown()))), {"BYTEORDER": b"big"}),
        "torch would take the record for 'byteorder'",
    ),
    "a version under another name": Lie(_VERSION, "torch would take the record for 'version'"),
    "an alignment under another name": Lie(
        archive(whole(ordered(("w", shown()))), {".Storage_Alignment": b"64"}),
        "torch would take the record for '.storage_alignment'",
    ),
    "a format under another name": Lie(
        archive(whole(ordered(("w", shown()))), {".FORMAT_VERSION": b"1"}),
        "torch would take the record for '.format_version'",
    ),
    "a storage under another name": Lie(
        _NAMED.replace(b"a/data/0", b"a/DATA/0"), "torch would take the record for 'data/0'"
    ),
    "a frame hides what a name begins with": Lie(
        archive(
            b"\x80\x04\x95" + struct.pack("<Q", len(_BEFORE)) + _BEFORE
            + b"math\nsqrt\nG" + struct.pack(">d", 16) + b"\x85Ru."
        ),
        "an opcode reaches beyond its frame",
        weights_only=False,
    ),
}  # fmt: skip
# Mappings of which the arguments count as well as the items.
CONTENTS = {
    "ordered": name("collections", "OrderedDict") + b"](" + _PAIR + b"e\x85R",
    "ordered, of a dictionary": (
        name("collections", "OrderedDict") + mapping((text("hidden"), hidden())) + b"\x85R"
    ),
    "counter": _COUNTER + mapping((text("hidden"), hidden())) + b"\x85R",
}


def with_contents(content: bytes) -> bytes:
    return two(content + text("w") + shown() + b"s")


def read_by_presence(value: bytes) -> bytes:
    """A tensor whose metadata say `value` of "neg": torch negates it whatever that is."""
    return archive(whole(ordered(("w", rebuilt(more=b"}" + text("neg") + value + b"s")))))


def tar_and_legacy() -> bytes:
    """A legacy file of [1, 2] whose first block is a tar header: torch extracts [666, 777]."""
    kind = name("torch", "FloatStorage")
    tail = _archived(
        storages=_one() + whole(b"(K\1" + text("cpu") + kind + b"t")
        + struct.pack("<qff", 2, 666, 777) + whole(b"]"),
        tensors=_one() + whole(b"(K\2K\1" + name("torch", "FloatTensor") + b"t")
        + struct.pack("<iiqqq", 1, 0, 2, 1, 0),
        pickle=whole(ordered(("w", text("2") + b"Q"))),
        sys_info=whole(b"}"),
    )  # fmt: skip
    numel, rest = 0, b""
    for _ in range(4):  # the last storage holds the tail, and its length is written before it
        pad = tensor((numel,), inside=storage("1", numel, "ByteStorage", more=b"N"))
        root = ordered(("w", tensor((2,), inside=storage("0", 2, more=b"N"))), ("pad", pad))
        rest = b"." + whole(root) + whole(b"](" + text("0") + text("1") + b"e")
        rest += struct.pack("<qffq", 2, 1, 2, numel)
        numel = -len(rest) % 512 + len(tail)
    start = whole(number(0x1950A86A20F9469CFC6C)) + whole(number(1001)) + b"\x80\x02T"
    start += struct.pack("<i", 512 - len(start) - 4)  # the system is the rest of the header
    header = bytearray(_header("x", len(rest)))
    header[:100] = start.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + rest + bytes(-len(rest) % 512) + tail


def _one() -> bytes:
    return whole(b"K\1")


def _header(member: str, size: int) -> bytes:
    info = tarfile.TarInfo(member)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _archived(**members: bytes) -> bytes:
    packed = (
        _header(key, len(data)) + data + bytes(-len(data) % 512) for key, data in members.items()
    )
    return b"".join(packed) + bytes(1024)


__all__ = [
    "CALLS",
    "CONTENTS",
    "FILES",
    "KEYS",
    "MAPPINGS",
    "SHARED",
    "read_by_presence",
    "tar_and_legacy",
    "with_contents",
]
