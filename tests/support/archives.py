"""Archives of older torch versions and wrong ones, made by rewriting the records of a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from legacy_files import Call, Reference, dumps
from torch_checks import save

from ckpt_surgery.fileio import Bytes, FileSource, read_zip
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.zip_write import Derived, lay_out
from ckpt_surgery.formats.serialization_id import serialization_id as make_id
from ckpt_surgery.pickles import Node, PersistentId, parse
from ckpt_surgery.pickles.emit import emit

Records = list[tuple[str, bytes]]
ID = ".data/serialization_id"


def read_records(path: Path) -> Records:
    with FileSource.open(path) as file:
        return [(record.name, record.data.read()) for record in read_zip(file).records]


def names_in(path: Path) -> list[str]:
    return [name for name, _ in read_records(path)]


def write_records(
    path: Path,
    records: Sequence[tuple[str, bytes]],
    *,
    root: str | None = None,
    alignment: int = 64,
) -> Path:
    """An archive of `records`; the serialization id is made anew."""
    items = [(n, Derived(40, make_id) if n == ID else Bytes(data)) for n, data in records]
    with atomic_output(path, force=True) as sink:
        lay_out(path.stem, items).write(sink)
    return path


def rewrite(path: Path, edit: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> Path:
    return write_records(path, list(edit(dict(read_records(path))).items()))


def _rekeyed(data: bytes, names: Mapping[str, str]) -> bytes:
    def renamed(node: PersistentId) -> Node:
        assert isinstance(node.pid, tuple)
        kind, storage_class, key, *rest = node.pid
        return (kind, storage_class, names[key], *rest)

    return emit(parse(data).root, persistent_id=renamed)


def _split(records: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    storages = {name: data for name, data in records.items() if name.startswith("data/")}
    return storages, {name: data for name, data in records.items() if name not in storages}


def torch_1_6(records: dict[str, bytes]) -> dict[str, bytes]:
    """Nothing but the pickle, the storages sorted by name as text, and the version."""
    storages, rest = _split(records)
    return {"data.pkl": rest["data.pkl"], **dict(sorted(storages.items())), "version": b"3\n"}


def torch_1_6_pointers(records: dict[str, bytes]) -> dict[str, bytes]:
    """The first 1.6 files name each storage after its address."""
    old = torch_1_6(records)
    count = len([name for name in old if name.startswith("data/")])
    names = {str(i): str(94_823_094_000 - 64 * i) for i in range(count)}
    storages = {f"data/{names[n[5:]]}": d for n, d in old.items() if n.startswith("data/")}
    return {
        "data.pkl": _rekeyed(old["data.pkl"], names),
        **dict(sorted(storages.items())),
        "version": b"3\n",
    }


def torch_2_1(records: dict[str, bytes]) -> dict[str, bytes]:
    old = torch_1_6(records)
    start = {"data.pkl": old.pop("data.pkl"), "byteorder": b"little"}
    return start | old | {ID: b""}


def torch_mobile(records: dict[str, bytes]) -> dict[str, bytes]:
    """The version where early files of torch.jit have it."""
    old = torch_1_6(records)
    del old["version"]
    return old | {".data/version": b"3\n"}


def with_extras(records: dict[str, bytes]) -> dict[str, bytes]:
    """Records of somebody else, in front of the storages and behind them."""
    storages, rest = _split(records)
    end = {name: rest.pop(name) for name in ("version", ID)}
    return {**rest, "extra/info.json": b"{}", **storages, "notes.txt": b"kept", **end}


def big_endian(records: dict[str, bytes]) -> dict[str, bytes]:
    """All elements are of four bytes here."""
    swapped = {
        name: b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
        if name.startswith("data/")
        else data
        for name, data in records.items()
    }
    return swapped | {"byteorder": b"big"}


GENERATIONS: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "torch 1.6": torch_1_6,
    "torch 1.6 with pointers": torch_1_6_pointers,
    "torch 2.1": torch_2_1,
    "torch mobile": torch_mobile,
    "torch 2.13": dict,
    "with extras": with_extras,
    "big endian": big_endian,
}


def state_dict() -> dict[str, torch.Tensor]:
    """Twelve storages (so that their numbers sort differently as text), a tie and an empty one."""
    made = {f"layer.{i}": torch.arange(4.0 + i) for i in range(11)}
    return {**made, "empty": torch.empty(0), "tie": made["layer.1"]}


def generation(name: str, path: Path) -> Path:
    return rewrite(save(state_dict(), path), GENERATIONS[name])


# --- archives built piece by piece


def reference(key: Any = "0", numel: Any = 4, kind: Any = torch.FloatStorage) -> Reference:
    return Reference("storage", kind, key, "cpu", numel)


def tensor(storage: Any, *, offset: int = 0, size: Any = (4,), stride: Any = (1,)) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def archive(
    path: Path, root: Any, records: Mapping[str, bytes | None] = MappingProxyType({})
) -> Path:
    """One storage of four numbers and `root`; a record given as None is missing."""
    data = root if isinstance(root, bytes) else dumps(root)
    found = {"data.pkl": data, "data/0": bytes(16), "version": b"3\n", **records}
    return write_records(path, [(name, d) for name, d in found.items() if d is not None])
