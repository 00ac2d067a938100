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
        b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"
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
        for key, data in {"data.pkl": pickle, "data/0": FLOATS, "version": b"3\n"}.items() | (
            records or {}
        ).items():
            out.writestr(zipfile.ZipInfo(f"{root}/{key}"), data)
    return buffer.getvalue()
