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


def from_type(state: bytes) -> bytes:
    place = b"(" + storage() + number(0) + numbers([4]) + numbers([1]) + b"\x89" + ODICT + b"t"
    function, cls = name("torch._utils", "_rebuild_tensor_v2"), name("torch", "Tensor")
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
    "MAPPINGS",
    "read_by_presence",
    "tar_and_legacy",
    "with_contents",
]
