"""Files whose containers lie: about sizes, places, names, or what they are."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

from bombs import (
    FLOATS,
    MILLION,
    archive,
    call,
    mapping,
    number,
    storage,
    tensor,
    text,
    weights,
    whole,
)

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


_OLD = mapping((text("w"), tensor(inside=storage(more=b"N"))))  # as the legacy format refers
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
    "zip: strong encryption": lambda: _patched(
        0, local={6: _short(0x40)}, central={8: _short(0x40)}
    ),
    "zip: storage marked as a folder": lambda: _patched(1, central={38: _word(0x10)}),
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
    "zip: 5000 records": lambda: archive(HONEST, {f"data/{i + 1}": b"" for i in range(5_000)}),
    "zip: alignment of a mebibyte": lambda: archive(
        HONEST, {".storage_alignment": b"1048576"} | {f"x/{i}": b"" for i in range(5_000)}
    ),
    "zip: alignment of 32 KiB for nothing": lambda: archive(
        HONEST, {".storage_alignment": b"32768"} | {f"x/{i}": b"" for i in range(5_000)}
    ),
    "zip: alignment of 10^9": lambda: archive(HONEST, {".storage_alignment": b"1000000000"}),
    "zip: alignment 0": lambda: archive(HONEST, {".storage_alignment": b"0"}),
    "zip: byte order of nobody": lambda: archive(HONEST, {"byteorder": b"middle"}),
    "zip: version of a megabyte": lambda: archive(HONEST, {"version": b"3" * MILLION}),
    "zip: version 10^9": lambda: archive(HONEST, {"version": b"1000000000"}),
    "zip: root above": lambda: archive(HONEST, root=".."),
    "zip: name with a null": lambda: archive(HONEST).replace(b"a/data/0", b"a/data\0\0"),
    "zip: code of 80 MB": lambda: _torchscript(bytes(80 << 20)),
    "zip: pickle is empty": lambda: archive(b""),
    "legacy: keys are a million": lambda: _legacy(_OLD, b"](" + text("0") * 100_000 + b"e"),
    "legacy: storage missing": lambda: _legacy(_OLD, b"]"),
    "legacy: storage of 2^62": lambda: _legacy(
        _OLD, b"]" + text("0") + b"a", struct.pack("<q", 1 << 62)
    ),
    "legacy: storage of -1": lambda: _legacy(
        _OLD, b"]" + text("0") + b"a", struct.pack("<q", -1)
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
        + b"N0" * 300_000
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
    "safetensors: overlap": lambda: _safetensors(
        _ONE + "," + _ONE[1:].replace('"a"', '"b"') + "}", bytes(4)
    ),
    "safetensors: hole": lambda: _safetensors(_ONE.replace("[0,4]", "[4,8]") + "}", bytes(8)),
    "safetensors: shape overflows": lambda: _safetensors(
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    ),
    "safetensors: many huge dimensions": lambda: _safetensors(
        _ONE.replace("[1]", "[" + "9223372036854775807," * 50_000 + "0]") + "}"
    ),
    "safetensors: escapes in a name": lambda: _safetensors(
        _ONE.replace('"a"', r'"\u001b[2J\ud800"') + "}", bytes(4)
    ),
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
