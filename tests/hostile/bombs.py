"""Hostile files, built from code: small, and meant to hang, crash, fill the memory, or mislead.

`ARCHIVES` holds pickles, each to be put into an archive of ``torch.save``; `FILES` whole files.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping

MILLION = 1_000_000

# --- Pieces of pickles -----------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def keep(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def fetch(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return (
        b"("
        + text("storage")
        + name("torch", kind)
        + text(key)
        + text("cpu")
        + number(numel)
        + b"tQ"
    )


ODICT = name("collections", "OrderedDict") + b")R"


def call(function: str, *args: bytes) -> bytes:
    module, _, attribute = function.rpartition(".")
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


def tensor(
    size: Iterable[int] = (4,),
    stride: Iterable[int] = (1,),
    offset: int = 0,
    *,
    inside: bytes | None = None,
) -> bytes:
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage() if inside is None else inside,
        number(offset),
        numbers(size),
        numbers(stride),
        b"\x89",
        ODICT,
    )


def mapping(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def weights(*pairs: tuple[str, bytes]) -> bytes:
    """A state dict: what the pairs say, beside one honest tensor."""
    found = [(text(key), value) for key, value in pairs]
    return mapping((text("w"), tensor()), *found)


def whole(code: bytes) -> bytes:
    return b"\x80\x02" + code + b"."


# --- Whole files -----------------------------------------------------------------------------

FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def archive(pickle: bytes, records: Mapping[str, bytes] | None = None, root: str = "a") -> bytes:
    """A zip as Python writes it, which torch and `ckpt` read like one of ``torch.save``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        held = {"data.pkl": pickle, "data/0": FLOATS, "version": b"3\n", **(records or {})}
        for key, data in held.items():
            out.writestr(zipfile.ZipInfo(f"{root}/{key}"), data)
    return buffer.getvalue()


def _put(index: int) -> bytes:
    return b"N" + keep(index)


def _nested(times: int, inner: bytes, outer: Callable[[bytes], bytes]) -> bytes:
    code = inner
    for _ in range(times):
        code = outer(code)
    return code


def _doubling(levels: int, first: bytes, twice: Callable[[bytes], bytes]) -> bytes:
    """`first`, then again and again what `twice` makes of the last one's memo entry."""
    code = first + keep(0) + b"0"
    for level in range(levels):
        code += twice(fetch(level)) + keep(level + 1) + b"0"
    return code + fetch(levels)


def _wrapped(times: int, before: bytes, inner: bytes, after: bytes) -> bytes:
    return before * times + inner + after * times


def _module(parameters: bytes, modules: bytes) -> bytes:
    state = mapping((text("_parameters"), parameters), (text("_modules"), modules))
    return name("torch.nn", "Sequential") + b")\x81" + state + b"b"


def _module_of(child: bytes) -> bytes:
    return _module(b"}", mapping((text("a"), child), (text("b"), child)))


def _sparse(indices: bytes, values: bytes) -> bytes:
    layout = call("torch.serialization._get_layout", text("torch.sparse_coo"))
    data = b"(" + indices + values + numbers([4]) + b"t"
    return call("torch._utils._rebuild_sparse_tensor", layout, data)


def _jagged(part: bytes) -> bytes:
    return call("torch.nested._internal.nested_tensor._rebuild_njt", part, part)


_FROM_TYPE_HEAD = name("torch._tensor", "_rebuild_from_type_v2") + b"("
_FROM_TYPE_TAIL = name("torch", "Tensor")


def _from_types(times: int) -> bytes:
    """A call whose first two arguments say to make the same call with the next one, and so on."""
    head = name("torch._tensor", "_rebuild_from_type_v2") + name("torch", "Tensor")
    inner = b"(" + storage() + number(0) + numbers([4]) + numbers([1]) + b"\x89" + ODICT + b"t"
    last = (
        b"(" + name("torch._utils", "_rebuild_tensor_v2") + name("torch", "Tensor") + inner + b"Nt"
    )
    return (
        name("torch._tensor", "_rebuild_from_type_v2")
        + _wrapped(times, b"(" + head, last, b"Nt")
        + b"R"
    )


def _many(count: int, item: Callable[[int], bytes]) -> bytes:
    return b"".join(map(item, range(count)))


def _entries(count: int, value: Callable[[int], bytes], key: str = "k{}") -> bytes:
    return b"}(" + _many(count, lambda i: text(key.format(i)) + value(i)) + b"u"


def _kept(index: int, code: bytes) -> bytes:
    """`code` put into the memo and taken off the stack."""
    return code + keep(index) + b"0"


BIG = "x" * MILLION
SOMEWHERE = 1000  # a memo index far from the others
SHARED = fetch(SOMEWHERE)

# Each is the code of one object, between PROTO and STOP.
ARCHIVES: dict[str, Callable[[], bytes]] = {
    # Memory for nothing
    "memo index 2^26": lambda: _put(1 << 26),
    "memo index 2^28": lambda: _put(1 << 28),
    "memo index 2^31": lambda: _put(1 << 31),
    "text of 2^63 bytes": lambda: b"\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes of 2^63": lambda: b"\x8e" + b"\xff" * 7 + b"\x7f",
    "bytearray of 3 GiB": lambda: b"\x96" + struct.pack("<Q", 3 << 30),
    "frame of 2^64 bytes": lambda: b"\x95" + b"\xff" * 8,
    "integer of 2 GiB": lambda: b"\x8b\xff\xff\xff\x7f",
    "bytearray(2**33)": lambda: weights(("b", call("builtins.bytearray", number(1 << 33)))),
    "torch.Tensor(2**33)": lambda: weights(("b", call("torch.Tensor", number(1 << 33)))),
    "integer of a million digits": lambda: b"I" + b"9" * MILLION + b"\n",
    "float of a million digits": lambda: b"F" + b"9" * MILLION + b"\n",
    "binary integer of 4 MB": lambda: mapping(
        (text("n"), b"\x8b" + struct.pack("<i", 4 << 20) + b"\x01" * (4 << 20))
    ),
    "text of 8 MB": lambda: mapping((text("n"), text("x" * (8 << 20)))),
    "five million DUP": lambda: b"N" + b"2" * 5 * MILLION,
    "five million marks": lambda: b"(" * 5 * MILLION + b"N",
    # Depth
    "deep tuple": lambda: weights(("t", b")" + b"\x85" * MILLION)),
    "deep tuple as key": lambda: b"})" + b"\x85" * MILLION + b"Ns",
    "deep tuple in a set": lambda: b"\x8f()" + b"\x85" * MILLION + b"\x90",
    "deep lists": lambda: b"]" * MILLION + b"a" * (MILLION - 1),
    "deep dictionaries": lambda: b"}X\1\0\0\0a" * 100_000 + b"N" + b"s" * 100_000,
    "deep states": lambda: (
        name("m", "C") + keep(0) + (fetch(0) + b")\x81") * 100_000 + b"b" * (100_000 - 1)
    ),
    "deep within the limit": lambda: weights(("t", b"]" * 9000 + b"a" * 8999)),
    "dictionaries within the limit": lambda: b"}X\1\0\0\0a" * 4000 + tensor() + b"s" * 4000,
    "parameters of parameters": lambda: weights(
        ("p", _nested(3000, tensor(), lambda c: call("torch._utils._rebuild_parameter", c, b"\x89", b"}")))
    ),
    "from_type of from_type": lambda: weights(("p", _from_types(3000))),
    "modules in modules": lambda: _nested(2000, _module(b"}", b"}"), _module_of_one),
    # Sharing that stands for more than anybody can hold
    "doubling tuple as key": lambda: b"}" + _doubling(40, b")", lambda c: c + c + b"\x86") + b"Ns",
    "doubling tuple": lambda: _doubling(60, b")", lambda c: c + c + b"\x86"),
    "doubling list": lambda: _doubling(60, b"]", lambda c: b"](" + c + c + b"e"),
    "doubling dictionaries": lambda: _doubling(
        60, b"}", lambda c: mapping((text("a"), c), (text("b"), c))
    ),
    "doubling modules": lambda: _doubling(40, _module(b"}", b"}"), _module_of),
    "doubling modules with a weight": lambda: _doubling(
        40, _module(mapping((text("w"), tensor())), b"}"), _module_of
    ),
    "doubling sparse tensors": lambda: weights(
        ("s", _doubling(60, tensor(), lambda c: _sparse(c, c)))
    ),
    "doubling jagged tensors": lambda: weights(("s", _doubling(60, tensor(), _jagged))),
    "one list below many entries": lambda: (
        _kept(SOMEWHERE, b"](" + b"K\1" * 50_000 + b"e")
        + _entries(20_000, lambda _: b"]" + SHARED + b"a")
    ),
    "one dictionary below many entries": lambda: (
        _kept(SOMEWHERE, _entries(20_000, lambda _: b"K\1")) + _entries(20_000, lambda _: SHARED)
    ),
    "one list below many tensors": lambda: (
        _kept(SOMEWHERE, b"](" + (tensor() + b"(") + b"]" * 20_000 + b"le")
        + _entries(5_000, lambda _: _jagged(SHARED))
    ),
    "one optimizer under many names": lambda: (
        _kept(SOMEWHERE, mapping((text("state"), b"}"), (text("param_groups"), b"]")))
        + _entries(50_000, lambda _: SHARED)
    ),
    "many optimizers": lambda: _entries(
        20_000, lambda _: mapping((text("state"), b"}"), (text("param_groups"), b"]"))
    ),
    "one state dict under many names": lambda: (
        _kept(SOMEWHERE, mapping((text("w"), tensor()))) + _entries(50_000, lambda _: SHARED)
    ),
    "one tensor under many names": lambda: (
        _kept(SOMEWHERE, tensor()) + _entries(20_000, lambda _: SHARED)
    ),
    "many state dicts": lambda: (
        _kept(SOMEWHERE, tensor()) + _entries(2_000, lambda _: mapping((text("w"), SHARED)))
    ),
    # Long texts that a small file repeats
    "long key above many numbers": lambda: mapping((text(BIG), b"](" + b"K\1" * 100_000 + b"e")),
    "long key above a state dict": lambda: (
        _kept(SOMEWHERE, tensor()) + mapping((text(BIG), _entries(20_000, lambda _: SHARED)))
    ),
    "long key above other entries": lambda: mapping(
        (text(BIG), _entries(20_000, lambda _: b"K\1")[:-1] + text("m") + weights() + b"u")
    ),
    "long keys nested": lambda: (
        _kept(SOMEWHERE, text("x" * 100_000)) + _wrapped(5000, b"}" + SHARED, tensor(), b"s")
    ),
    "long Python 2 key again and again": lambda: (
        _kept(SOMEWHERE, b"T" + struct.pack("<i", MILLION) + b"x" * MILLION)
        + b"}(" + (SHARED + b"K\1") * 20_000 + b"u"
    ),
    "long device again and again": lambda: (
        _kept(SOMEWHERE, b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text(BIG) + number(4) + b"tQ")
        + _entries(10_000, lambda _: tensor(inside=SHARED))
    ),
    "long class name again and again": lambda: (
        _kept(SOMEWHERE, name("m", BIG)) + _entries(20_000, lambda _: SHARED + b")\x81")
    ),
    "long names without a match": lambda: (
        _kept(SOMEWHERE, tensor())
        + _entries(300, lambda _: SHARED, "encoder.layer.{}." + "abcdefgh" * 1000)
    ),
    "long names in _metadata": lambda: _with_metadata(5_000),
    # Tensors that claim what is not there
    "expanded to 10^12 elements": lambda: weights(("e", tensor([10**12], [0]))),
    "expanded to 10^18 elements": lambda: weights(("e", tensor([10**9, 10**9], [0, 0]))),
    "negative size": lambda: weights(("e", tensor([-1], [1]))),
    "negative stride": lambda: weights(("e", tensor([2], [-1], 3))),
    "negative offset": lambda: weights(("e", tensor([2], [1], -1))),
    "offset 2^62": lambda: weights(("e", tensor([2], [1], 1 << 62))),
    "offset beyond an empty tensor": lambda: weights(("e", tensor([0], [1], 1 << 62))),
    "sizes whose product wraps to 4": lambda: weights(("e", tensor([1 << 62, 4, 1 << 62], [0] * 3))),
    "sizes beyond 64 bits": lambda: weights(("e", tensor([1 << 64], [0]))),
    "a million dimensions": lambda: weights(("e", tensor([1] * MILLION, [1] * MILLION))),
    "one element too many": lambda: weights(("e", tensor([5], [1]))),
    "more sizes than strides": lambda: weights(("e", tensor([2, 2], [1]))),
    "storage of 2^62 elements": lambda: weights(("e", tensor(inside=storage(numel=1 << 62)))),
    "storage of -1 elements": lambda: weights(("e", tensor(inside=storage(numel=-1)))),
    "storage of another type": lambda: weights(
        ("e", tensor([2], inside=storage(numel=2, kind="DoubleStorage")))
    ),
    "storage of an unknown type": lambda: weights(
        ("e", tensor(inside=storage(kind="EvilStorage")))
    ),
    "storage key with a path": lambda: weights(("e", tensor(inside=storage("../../etc/passwd")))),
    "storage key with a null": lambda: weights(("e", tensor(inside=storage("0\0")))),
    "storage key of a megabyte": lambda: weights(("e", tensor(inside=storage(BIG)))),
    "tensor in itself": lambda: (
        name("torch._utils", "_rebuild_parameter") + b"(]" + keep(1) + b"\x89}tR" + keep(2) + b"0"
        + fetch(1) + fetch(2) + b"a0" + weights(("e", fetch(2)))
    ),
    "meta tensor of 2^62 elements": lambda: weights(
        ("e", call("torch._utils._rebuild_meta_tensor_no_storage", name("torch", "float32"), numbers([1 << 62]), numbers([1]), b"\x89"))
    ),
    # Graphs that are not trees
    "list in itself": lambda: b"]" + keep(0) + fetch(0) + b"a",
    "dictionary in itself": lambda: b"}" + keep(0) + text("a") + fetch(0) + b"s",
    "tuple in itself": lambda: b"]" + keep(0) + fetch(0) + b"\x85" + keep(1) + b"a",
    "state of itself": lambda: name("m", "C") + b")\x81" + keep(0) + fetch(0) + b"b",
    "module in itself": lambda: (
        b"}" + keep(0) + text("_parameters") + b"}s" + text("_modules") + b"}" + keep(1) + b"s0"
        + name("torch.nn", "Sequential") + b")\x81" + keep(2) + fetch(0) + b"b0"
        + fetch(1) + text("a") + fetch(2) + b"s0" + fetch(2)
    ),
    # Names that speak to a terminal, or to nobody
    "terminal escapes": lambda: weights(
        ("\x1b]0;pwned\x07\x1b[2J", tensor()), ("a\r\nb\0c", tensor()), ("\u202egnp.exe", tensor())
    ),
    "lone surrogates": lambda: weights(("\ud800\udfff\udcff", tensor())),
    "one name twice": lambda: weights(("w", tensor())),
    "no name": lambda: weights(("", tensor())),
    "names that are paths": lambda: weights(("../../x", tensor()), ("/etc/passwd", tensor())),
    "keys of every kind": lambda: mapping(
        (b"N", tensor()), (b"K\1", tensor()), (b")", tensor()), (b"]", b"N"), (ODICT, tensor())
    ),
    # Code
    "call thrown away": lambda: call("os.system", text("true")) + b"0" + weights(),
    "call as a value": lambda: weights(("c", call("os.system", text("true")))),
    "call as a key": lambda: b"}" + call("os.system", text("true")) + tensor() + b"s",
    "call as a state dict": lambda: call("builtins.eval", text("1")) + text("w") + tensor() + b"s",
    "call of a call": lambda: weights(
        ("c", call("builtins.getattr", name("builtins", "eval"), text("x")) + b"(tR")
    ),
    "call with a state": lambda: weights(("c", call("builtins.exec", text("1")) + b"}b")),
    "class instance": lambda: b"(" + text("true") + b"ios\nsystem\n",
    "extension": lambda: b"\x84\xff\xff\xff\x7f",
    "name with its module taken from the stack": lambda: text("os") + text("system") + b"\x93)R",
    # Broken
    "no object": lambda: b"",
    "stack underflow": lambda: b"000",
    "mark missing": lambda: b"t",
    "items of nothing": lambda: b"(K\1K\2u",
    "odd items": lambda: b"}(K\1u",
    "unknown opcode": lambda: b"\xff",
    "memo entry missing": lambda: fetch(5),
    "build on a number": lambda: b"K\1}b",
    "persistent id of nothing": lambda: b"NQ",
    "persistent id in a persistent id": lambda: storage() + b"Q",
    "text persistent id": lambda: b"Pstorage\n",
    "trailing bytes": lambda: weights() + b"." + b"cos\nsystem\n",
}  # fmt: skip


def _module_of_one(child: bytes) -> bytes:
    return _module(b"}", mapping((text("a"), child)))


def _with_metadata(count: int) -> bytes:
    """An ``OrderedDict`` of as many weights as it has modules."""
    versions = _entries(count, lambda _: b"}", "block.{}.layer")
    entries = _many(count, lambda i: text(f"block.{i}.layer.weight") + SHARED)
    return (
        _kept(SOMEWHERE, tensor())
        + ODICT + b"(" + entries + b"u" + mapping((text("_metadata"), versions)) + b"b"
    )  # fmt: skip


# --- Archives that lie ------------------------------------------------------------------------

HONEST = whole(weights())


def _offsets(data: bytes) -> tuple[list[int], list[int], int]:
    """Where the local headers, the entries of the directory and the end record start."""
    end = data.rindex(b"PK\5\6")
    at = int.from_bytes(data[end + 16 : end + 20], "little")
    local, central = [], []
    while data[at : at + 4] == b"PK\1\2":
        central.append(at)
        local.append(int.from_bytes(data[at + 42 : at + 46], "little"))
        n, m, k = struct.unpack_from("<3H", data, at + 28)
        at += 46 + n + m + k
    return local, central, end


def _patched(
    record: int | None = None,
    *,
    local: Mapping[int, bytes] | None = None,
    central: Mapping[int, bytes] | None = None,
    end: Mapping[int, bytes] | None = None,
) -> bytes:
    """An honest archive with bytes at these places of a record's headers or the end record."""
    data = bytearray(archive(HONEST))
    locals_, centrals, tail = _offsets(bytes(data))
    starts = [(tail, end)]
    if record is not None:
        starts += [(locals_[record], local), (centrals[record], central)]
    for start, changes in starts:
        for at, new in (changes or {}).items():
            data[start + at : start + at + len(new)] = new
    return bytes(data)


def _compressed(key: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for record, data in (("data.pkl", HONEST), ("data/0", FLOATS), ("version", b"3\n")):
            kind = zipfile.ZIP_DEFLATED if record == key else zipfile.ZIP_STORED
            out.writestr(f"a/{record}", data, kind)
    return buffer.getvalue()


def _torchscript(code: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for record, data in (
            ("data.pkl", HONEST),
            ("constants.pkl", whole(b")")),
            ("version", b"3\n"),
        ):
            out.writestr(f"a/{record}", data)
        out.writestr("a/code/__torch__/m.py", code, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _renamed(old: bytes, new: bytes) -> bytes:
    data = archive(HONEST, {"data/1": FLOATS})
    return data.replace(old, new)


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _word(value: int) -> bytes:
    return struct.pack("<I", value)


def _safetensors(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def _legacy(root: bytes, keys: bytes, rest: bytes = b"") -> bytes:
    magic = whole(number(0x1950A86A20F9469CFC6C))
    return magic + whole(number(1001)) + whole(b"}") + whole(root) + whole(keys) + rest


def _tar(*members: tuple[str, bytes, bytes], size: int | None = None) -> bytes:
    out = b""
    for member, kind, data in members:
        head = bytearray(512)
        head[: len(member)] = member.encode()
        head[100:108] = b"0000644\0"
        head[124:136] = b"%011o\0" % (len(data) if size is None else size)
        head[156:157] = kind
        head[157:168] = b"/etc/passwd" if kind in b"12" else b"\0" * 11
        head[257:265] = b"ustar\x0000"
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        out += bytes(head) + data + bytes(-len(data) % 512)
    return out + bytes(1024)


_ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

FILES: dict[str, Callable[[], bytes]] = {
    "zip: one name twice": lambda: _renamed(b"a/data/1", b"a/data/0"),
    "zip: one name in two cases": lambda: _renamed(b"a/data/1", b"a/DATA/0"),
    "zip: two entries, one record": lambda: _patched(1, central={42: _word(0)}),
    "zip: local name differs": lambda: _patched(0, local={30: b"a/evil.pkl"}),
    "zip: compressed pickle": lambda: _compressed("data.pkl"),
    "zip: compressed storage": lambda: _compressed("data/0"),
    "zip: encrypted flag": lambda: _patched(0, local={6: _short(1)}, central={8: _short(1)}),
    "zip: encrypted in the directory only": lambda: _patched(0, central={8: _short(1)}),
    "zip: patch flag": lambda: _patched(0, local={6: _short(0x20)}, central={8: _short(0x20)}),
    "zip: strong encryption": lambda: _patched(0, local={6: _short(0x40)}, central={8: _short(0x40)}),
    "zip: method 99": lambda: _patched(0, local={8: _short(99)}, central={10: _short(99)}),
    "zip: size 2^32 - 2": lambda: _patched(1, central={20: _word(2**32 - 2) * 2}),
    "zip: 64-bit size without a field": lambda: _patched(1, central={20: _word(2**32 - 1) * 2}),
    "zip: stored size differs": lambda: _patched(1, central={20: _word(3)}),
    "zip: offset beyond the file": lambda: _patched(1, central={42: _word(2**31)}),
    "zip: 65535 entries claimed": lambda: _patched(end={8: _short(65535) * 2}),
    "zip: one entry fewer": lambda: _patched(end={8: _short(2) * 2}),
    "zip: directory elsewhere": lambda: _patched(end={16: _word(0)}),
    "zip: directory of 4 GiB": lambda: _patched(end={12: _word(2**32 - 1)}),
    "zip: comment that hides a second end": lambda: (
        _patched(end={20: _short(22)}) + b"PK\5\6" + bytes(18)
    ),
    "zip: two archives": lambda: archive(HONEST) + archive(whole(b"cos\nsystem\n)R")),
    "zip: trailing bytes": lambda: archive(HONEST) + b"junk",
    "zip: leading bytes": lambda: b"junk" + archive(HONEST),
    "zip: no records": lambda: b"PK\5\6" + bytes(18),
    "zip: 65000 records": lambda: archive(HONEST, {f"data/{i + 1}": b"" for i in range(20_000)}),
    "zip: alignment of a mebibyte": lambda: archive(
        HONEST, {".storage_alignment": b"1048576"} | {f"x/{i}": b"" for i in range(5_000)}
    ),
    "zip: alignment of 10^9": lambda: archive(HONEST, {".storage_alignment": b"1000000000"}),
    "zip: alignment 0": lambda: archive(HONEST, {".storage_alignment": b"0"}),
    "zip: byte order of nobody": lambda: archive(HONEST, {"byteorder": b"middle"}),
    "zip: version of a megabyte": lambda: archive(HONEST, {"version": b"3" * MILLION}),
    "zip: version 10^9": lambda: archive(HONEST, {"version": b"1000000000"}),
    "zip: root above": lambda: archive(HONEST, root=".."),
    "zip: name with a null": lambda: archive(HONEST).replace(b"a/data/0", b"a/data\0\0"),
    "zip: code of 300 MB": lambda: _torchscript(bytes(300 << 20)),
    "zip: pickle is empty": lambda: archive(b""),
    "legacy: keys are a million": lambda: _legacy(weights(), b"](" + text("0") * 100_000 + b"e"),
    "legacy: storage missing": lambda: _legacy(weights(), b"]"),
    "legacy: storage of 2^62": lambda: _legacy(
        weights(), b"]" + text("0") + b"a", struct.pack("<q", 1 << 62)
    ),
    "legacy: storage of -1": lambda: _legacy(
        weights(), b"]" + text("0") + b"a", struct.pack("<q", -1)
    ),
    "legacy: keys run code": lambda: _legacy(
        mapping((text("a"), b"N")), call("os.system", text("true"))
    ),
    "legacy: system runs code": lambda: (
        whole(number(0x1950A86A20F9469CFC6C)) + whole(number(1001))
        + whole(call("os.system", text("true"))) + whole(mapping((text("a"), b"N"))) + whole(b"]")
    ),
    "legacy: only a magic number": lambda: whole(number(0x1950A86A20F9469CFC6C)),
    "legacy: pickle that never ends": lambda: (
        whole(number(0x1950A86A20F9469CFC6C)) + whole(number(1001)) + whole(b"}") + b"\x80\x02"
        + b"N0" * MILLION
    ),
    "tar: link": lambda: _tar(("storages", b"2", b""), ("pickle", b"0", HONEST)),
    "tar: size of 8 GiB": lambda: _tar(("storages", b"0", b""), size=(8 << 30) - 1),
    "tar: parent folder": lambda: _tar(("../storages", b"0", b""), ("pickle", b"0", HONEST)),
    "tar: 2^60 storages": lambda: _tar(
        ("sys_info", b"0", whole(b"}")), ("pickle", b"0", HONEST),
        ("storages", b"0", whole(number(1 << 60))), ("tensors", b"0", whole(number(1 << 60))),
    ),
    "tar: device": lambda: _tar(("storages", b"3", b"")),
    "tar: many members": lambda: _tar(*((f"m{i}", b"0", b"") for i in range(5_000))),
    "safetensors: header of 2^64": lambda: b"\xff" * 8 + b"{}",
    "safetensors: header beyond the file": lambda: struct.pack("<Q", 10**8) + b"{}",
    "safetensors: nested": lambda: _safetensors('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "safetensors: many digits": lambda: _safetensors('{"a":' + "9" * 100_000 + "}"),
    "safetensors: NaN": lambda: _safetensors('{"a":NaN}'),
    "safetensors: one name twice": lambda: _safetensors(_ONE + "," + _ONE[1:] + "}", bytes(4)),
    "safetensors: overlap": lambda: _safetensors(_ONE + "," + _ONE[1:].replace('"a"', '"b"') + "}", bytes(4)),
    "safetensors: hole": lambda: _safetensors(_ONE.replace("[0,4]", "[4,8]") + "}", bytes(8)),
    "safetensors: shape overflows": lambda: _safetensors(
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    ),
    "safetensors: many huge dimensions": lambda: _safetensors(
        '{"a":{"dtype":"F32","shape":[' + "9223372036854775807," * 50_000 + '0],"data_offsets":[0,0]}}'
    ),
    "safetensors: escapes in a name": lambda: _safetensors(_ONE.replace('"a"', r'"\u001b[2J\ud800"') + "}", bytes(4)),
    "safetensors: escapes in the metadata": lambda: _safetensors(
        _ONE + r',"__metadata__":{"\u001b[2J":"\u001b]0;x\u0007"}}', bytes(4)
    ),
    "empty file": lambda: b"",
    "one byte": lambda: b"P",
    "a null": lambda: b"\0" * 4096,
    "a plain pickle": lambda: HONEST,
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(30),
    "deflate": lambda: zlib.compress(bytes(MILLION)),
}  # fmt: skip
