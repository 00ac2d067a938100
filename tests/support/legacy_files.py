"""Legacy files built piece by piece, right and wrong ones."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ckpt_surgery.fileio import FileSource

MAGIC = 0x1950A86A20F9469CFC6C


class Reference:
    """Pickled as a persistent id."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class Raw(bytes):
    """A pickle that is written as it is."""


# A call whose result is thrown away, to put in front of what a pickle is about.
THROWN_AWAY = b"\x80\x02cposix\nsystem\nU\x02ls\x85R0"


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Reference) else None


def dumps(value: Any, protocol: int = 2) -> bytes:
    if isinstance(value, Raw):
        return value
    buffer = io.BytesIO()
    LegacyPickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def reference(
    key: str = "7", numel: Any = 4, *, view: Any = None, kind: Any = torch.FloatStorage
) -> Reference:
    return Reference("storage", kind, key, "cpu", numel, view)


def tensor(storage: Reference, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    hooks: OrderedDict[str, Any] = OrderedDict()
    args = (storage, offset, size, stride, False, hooks)
    return Call(torch._utils._rebuild_tensor_v2, *args)


def legacy(
    root: Any,
    keys: Any,
    *storages: tuple[int, bytes],
    magic: Any = MAGIC,
    version: Any = 1001,
    system: Any = None,
) -> bytes:
    """A legacy file, each storage given as its element count and its bytes."""
    system = {"little_endian": True} if system is None else system
    heads = [dumps(part) for part in (magic, version, system, root, keys)]
    return b"".join(heads) + b"".join(struct.pack("<q", n) + data for n, data in storages)


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def plain(**changes: Any) -> bytes:
    """A correct file of one tensor of four numbers, but for the `changes`."""
    parts = {"root": {"w": tensor(reference(), 0, (4,), (1,))}, "keys": ["7"], **changes}
    count = parts.pop("count", 4)
    data = parts.pop("data", FLOATS)
    return legacy(parts.pop("root"), parts.pop("keys"), (count, data), **parts)


def write(path: Path, data: bytes) -> FileSource:
    path.write_bytes(data)
    return FileSource.open(path)


def view_file(*views: tuple[str, int, int], bare: bool = False) -> bytes:
    """A file of one storage of four numbers, and one value for each (key, offset, size)."""
    storages = [reference(view=view) for view in views]
    if bare:
        return legacy(storages, ["7"], (4, FLOATS))
    items = {
        f"w{index}": tensor(storage, 0, (view[2],), (1,))
        for index, (storage, view) in enumerate(zip(storages, views, strict=True))
    }
    return legacy(items, ["7"], (4, FLOATS))
