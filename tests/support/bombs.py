"""Pickles that are small, and meant to hang, crash, fill the memory, or mislead.

Each of `ARCHIVES` is to be put into an archive of ``torch.save`` by `archive`.
"""

from __future__ import annotations

import io
import struct
import zipfile
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


def storage(
    key: str = "0",
    numel: int = 4,
    kind: str = "FloatStorage",
    device: str = "cpu",
    more: bytes = b"",
) -> bytes:
    parts = (text("storage"), name("torch", kind), text(key), text(device), number(numel), more)
    return b"(" + b"".join(parts) + b"tQ"


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
    arguments = mapping((text("values"), part), (text("offsets"), part))
    return call("torch.nested._internal.nested_tensor._rebuild_njt", arguments)


def _parameter(data: bytes) -> bytes:
    return call("torch._utils._rebuild_parameter", data, b"\x89", b"}")


def _meta_tensor(numel: int) -> bytes:
    dtype = name("torch", "float32")
    function = "torch._utils._rebuild_meta_tensor_no_storage"
    return call(function, dtype, numbers([numel]), numbers([1]), b"\x89")


def _optimizer(state: bytes) -> bytes:
    return mapping((text("state"), state), (text("param_groups"), b"]"))


def _training(entries: bytes) -> bytes:
    """A training checkpoint: weights, and beside them these entries of a dictionary."""
    return entries[:-1] + text("state_dict") + weights() + b"u"


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
    "many DUP": lambda: b"N" + b"2" * 20 * MILLION,
    "many marks": lambda: b"(" * 20 * MILLION + b"N",
    # Depth
    "deep tuple": lambda: weights(("t", b")" + b"\x85" * 300_000)),
    "deep tuple as key": lambda: b"})" + b"\x85" * MILLION + b"Ns",
    "deep tuple in a set": lambda: b"\x8f()" + b"\x85" * 100_000 + b"\x90",
    "deep lists": lambda: b"]" * 100_000 + b"a" * 99_999,
    "deep dictionaries": lambda: b"}X\1\0\0\0a" * 30_000 + b"N" + b"s" * 30_000,
    "deep states": lambda: (
        name("m", "C") + keep(0) + (fetch(0) + b")\x81") * 30_000 + b"b" * 29_999
    ),
    "deep within the limit": lambda: weights(("t", b"]" * 9000 + b"a" * 8999)),
    "dictionaries within the limit": lambda: b"}X\1\0\0\0a" * 4000 + tensor() + b"s" * 4000,
    "parameters of parameters": lambda: weights(
        ("p", _nested(3000, tensor(), _parameter))
    ),
    "compiled modules of compiled modules": lambda: (
        _kept(0, name("torch._dynamo.eval_frame", "OptimizedModule"))
        + _wrapped(3000, fetch(0), _module(b"}", b"}"), b"\x85\x81")
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
    "doubling modules": lambda: _doubling(
        40, _module(mapping((text("w"), tensor())), b"}"), _module_of
    ),
    "doubling sparse tensors": lambda: weights(
        ("s", _doubling(60, tensor(), lambda c: _sparse(c, _parameter(c))))
    ),
    "doubling jagged tensors": lambda: weights(
        ("s", _doubling(60, tensor(), lambda c: _jagged(c + _parameter(c))))
    ),
    "one list below many entries": lambda: (
        _kept(SOMEWHERE, b"](" + b"K\1" * 50_000 + b"e")
        + _training(_entries(5_000, lambda _: b"]" + SHARED + b"a"))
    ),
    "one dictionary below many entries": lambda: (
        _kept(SOMEWHERE, _entries(10_000, lambda _: b"K\1"))
        + _training(_entries(10_000, lambda _: SHARED))
    ),
    "one state below many optimizers": lambda: (
        _kept(SOMEWHERE, _entries(20_000, lambda _: b"K\1"))
        + _training(_entries(5_000, lambda _: _optimizer(SHARED)))
    ),
    "one list below many tensors": lambda: (
        _kept(SOMEWHERE, b"](" + tensor() * 2 + b"]" * 500 + b"e")
        + _entries(5_000, lambda _: _jagged(SHARED))
    ),
    "tensors below many tensors": lambda: (
        _kept(SOMEWHERE, b"](" + tensor() * 1_000 + b"e")
        + _entries(2_000, lambda _: _jagged(SHARED))
    ),
    "one optimizer under many names": lambda: (
        _kept(SOMEWHERE, _optimizer(b"}"))
        + _training(_entries(10_000, lambda _: SHARED))
    ),
    "many optimizers": lambda: _training(
        _entries(5_000, lambda _: _optimizer(b"}"))
    ),
    "many keys that look alike": lambda: _training(
        b"}(" + _many(10_000, lambda i: number(i) + b"\x85K\1") + b"u"
    ),
    "one state dict under many names": lambda: (
        _kept(SOMEWHERE, mapping((text("w"), tensor()))) + _entries(10_000, lambda _: SHARED)
    ),
    "one tensor under many names": lambda: (
        _kept(SOMEWHERE, tensor()) + _entries(5_000, lambda _: SHARED)
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
    "long name in many state dicts": lambda: (
        _kept(SOMEWHERE, text(BIG))
        + _kept(SOMEWHERE + 1, tensor())
        + _entries(5_000, lambda _: b"}" + SHARED + fetch(SOMEWHERE + 1) + b"s")
    ),
    "long name of many optimizers": lambda: (
        _kept(SOMEWHERE, text(BIG)) + b"](" + (b"}" + SHARED + b"}s") * 5_000 + b"e"
    ),
    "long Python 2 key again and again": lambda: (
        _kept(SOMEWHERE, b"T" + struct.pack("<i", MILLION) + b"x" * MILLION)
        + b"}(" + (SHARED + b"K\1") * 20_000 + b"u"
    ),
    "long device again and again": lambda: (
        _kept(SOMEWHERE, storage(device=BIG))
        + _entries(10_000, lambda _: tensor(inside=SHARED))
    ),
    "long class name again and again": lambda: (
        _kept(SOMEWHERE, name("m", BIG)) + _entries(5_000, lambda _: SHARED + b")\x81")
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
    "sizes whose product wraps to 4": lambda: weights(
        ("e", tensor([1 << 62, 4, 1 << 62], [0, 0, 0]))
    ),
    "sizes beyond 64 bits": lambda: weights(("e", tensor([1 << 64], [0]))),
    "many dimensions": lambda: weights(("e", tensor([1] * 100_000, [1] * 100_000))),
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
        ("e", _meta_tensor(1 << 62))
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
