"""Zip archives written field by field, so that a test can make any of them wrong."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

FULL = 0xFFFFFFFF
PICKLE = b"\x80\x02}q\x00."


@dataclass
class Part:
    """A record, written by this file's own builder; `local` and `central` overrule fields."""

    name: bytes = b"a/data.pkl"
    data: bytes = PICKLE
    stored: bytes | None = None
    flags: int = 0x0808
    method: int = 0
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes | None = None
    gap: bytes = b""


def local_header(part: Part, stored: bytes) -> bytes:
    streamed = bool(part.flags & 8)
    fields = {
        "magic": b"PK\3\4",
        "flags": part.flags,
        "method": part.method,
        "crc": 0 if streamed else zlib.crc32(part.data),
        "stored": 0 if streamed else len(stored),
        "nbytes": 0 if streamed else len(part.data),
        "name": part.name,
        "extra": b"",
    } | part.local
    name, extra = fields["name"], fields["extra"]
    return (
        struct.pack(
            "<4s5H3I2H",
            *(fields["magic"], 0, fields["flags"], fields["method"], 0, 0),
            *(fields["crc"], fields["stored"], fields["nbytes"], len(name), len(extra)),
        )
        + name
        + extra
    )


def central_header(part: Part, stored: bytes, offset: int) -> bytes:
    fields = {
        "magic": b"PK\1\2",
        "flags": part.flags,
        "method": part.method,
        "crc": zlib.crc32(part.data),
        "stored": len(stored),
        "nbytes": len(part.data),
        "name": part.name,
        "extra": b"",
        "comment": b"",
        "disk": 0,
        "offset": offset,
    } | part.central
    name, extra, comment = fields["name"], fields["extra"], fields["comment"]
    return (
        struct.pack(
            "<4s6H3I5H2I",
            *(fields["magic"], 0, 0, fields["flags"], fields["method"], 0, 0),
            *(fields["crc"], fields["stored"], fields["nbytes"]),
            *(len(name), len(extra), len(comment), fields["disk"], 0, 0, fields["offset"]),
        )
        + name
        + extra
        + comment
    )


def build(
    *parts: Part,
    zip64: bool = True,
    end: dict[str, int] | None = None,
    end64: dict[str, Any] | None = None,
    locator: dict[str, int] | None = None,
    after_directory: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """An archive of `parts`; the dictionaries overrule fields of its end records."""
    out = b""
    directory = b""
    for part in parts:
        stored = part.data if part.stored is None else part.stored
        out += part.gap
        directory += central_header(part, stored, len(out))
        out += local_header(part, stored) + stored
        if part.descriptor is not None:
            out += part.descriptor
        elif part.flags & 8:
            crc = zlib.crc32(part.data)
            out += struct.pack("<4s3I", b"PK\7\10", crc, len(stored), len(part.data))
    place = {"count": len(parts), "nbytes": len(directory), "offset": len(out)}
    out += directory + after_directory
    if zip64:
        e = place | {"magic": b"PK\6\6", "size": 44, "disk": 0, "here": len(parts)} | (end64 or {})
        at = {"disk": 0, "offset": len(out), "disks": 1} | (locator or {})
        out += struct.pack(
            "<4sQHHIIQQQQ",
            *(e["magic"], e["size"], 0, 45, e["disk"], 0, e["here"]),
            *(e["count"], e["nbytes"], e["offset"]),
        ) + struct.pack("<4sIQI", b"PK\6\7", at["disk"], at["offset"], at["disks"])
    e = place | {"disk": 0, "here": len(parts), "comment": 0} | (end or {})
    out += struct.pack(
        "<4s4HIIH",
        *(b"PK\5\6", e["disk"], 0, e["here"], e["count"], e["nbytes"], e["offset"], e["comment"]),
    )
    return out + tail


def zip64_extra(*values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)


def deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def descriptor(crc: int, stored: int, nbytes: int) -> bytes:
    return struct.pack("<4s3I", b"PK\7\10", crc, stored, nbytes)
