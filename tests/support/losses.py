"""Kinds of what an edit might lose: a file with it, and how to see whether another has it still.

The oracles are torch, the safetensors library and torch.distributed.checkpoint: `opened` is what
they make of a file, `Kind.of` what there is of the kind in that.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import nn
from torch_checks import bits, quiet, sparse_parts

from ckpt_surgery.cli.main import cli

KEPT_ROOM = ("a.weight", "a.bias", "gone.weight")


@dataclass
class Opened:
    """A file, or a directory, as its own library reads it.

    `value` is the object, `devices` the tags of its storages, `texts` what a safetensors file
    says beside the tensors, `records` the names in an archive.
    """

    path: Path
    value: Any
    devices: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[str, Any]]:
        """Yield every value by its path, in order."""
        yield from _walk("", self.value)

    def last(self, name: str, below: str = "") -> Any:
        """Return what lies under a path that ends with `name`, the first; None if nothing does."""
        for path, value in self.walk():
            if path.endswith(name) and below in path:
                return value
        return None


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{path}/{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _walk(f"{path}/{number}", item)


def opened(path: Path) -> Opened:
    """Read `path` with the library that its format is of."""
    if path.is_dir():
        return _of_directory(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":
        found = Opened(path, {})
        with safe_open(path, "pt") as file:
            found.texts = dict(file.metadata() or {})
            found.value = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found
    devices: set[str] = set()

    def place(storage: Any, tag: str) -> Any:
        devices.add(tag)
        return storage

    with quiet():
        value = torch.load(path, map_location=place, weights_only=False)
    records: dict[str, bytes] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                short = name.partition("/")[2]
                records[short] = b"" if short.startswith("data/") else archive.read(name)
    return Opened(path, value, devices, records=records)


def _of_directory(path: Path) -> Opened:
    if (path / ".metadata").exists():
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        with quiet():
            dcp_to_torch_save(path, path.with_suffix(".back"))
        return Opened(path, opened(path.with_suffix(".back")).value)
    shards = [opened(each) for each in sorted(path.iterdir()) if each.suffix != ".json"]
    whole = Opened(path, OrderedDict())
    for shard in shards:
        whole.value.update(shard.value)
        whole.devices |= shard.devices
        whole.texts |= shard.texts
        if hasattr(shard.value, "_metadata"):
            whole.value._metadata = shard.value._metadata
    for index in path.glob("*.json"):
        whole.texts |= json.loads(index.read_text()).get("metadata", {})
    return whole


@dataclass(frozen=True)
class Kind:
    """Something that may be lost.

    `make` gives what is saved (or writes the file itself, and gives None); `of` what there is of
    the kind in an opened file, to be compared before and after; `said` is what a report or an
    error has to say of a loss, one of these words.
    """

    make: Callable[[Path], Any]
    of: Callable[[Opened], Any]
    said: tuple[str, ...]
    suffix: str = ".pth"


def state(**more: Any) -> OrderedDict[str, Any]:
    """A plain state dict of one layer, and an entry that the verbs work on."""
    generator = torch.Generator().manual_seed(0)
    found: OrderedDict[str, Any] = OrderedDict(
        (name, torch.rand(4, 4, generator=generator) if "weight" in name else torch.ones(4))
        for name in KEPT_ROOM
    )
    found.update(more)
    return found


def beside(**others: Any) -> dict[str, Any]:
    return {"state_dict": state(), **others}


def fact(value: Any) -> Any:
    """Return a value as something that can be compared."""
    if isinstance(value, torch.Tensor):
        if value.is_nested:
            return [fact(part) for part in value.unbind()]
        parts = sparse_parts(value)
        content = [fact(part) for part in parts] if parts else bits(value)
        return str(value.dtype), tuple(value.shape), content
    if isinstance(value, Mapping):
        return [(key, fact(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [fact(item) for item in value]
    if isinstance(value, argparse.Namespace):
        return "Namespace", fact(vars(value))
    return type(value).__name__, repr(value)


def at(name: str, below: str = "") -> Callable[[Opened], Any]:
    return lambda found: fact(found.last(name, below))


def entry(name: str, value: Callable[[], Any]) -> Callable[[Path], Any]:
    def make(path: Path) -> Any:
        del path
        with quiet():
            return state(**{name: value()})

    return make


def _optimizer(path: Path) -> Any:
    del path
    parameters = [nn.Parameter(each) for each in state().values()]
    made = torch.optim.Adam(parameters)
    sum(each.sum() for each in parameters).backward()
    made.step()
    return beside(optimizer=made.state_dict())


def _scheduler(path: Path) -> Any:
    del path
    made = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    return beside(lr_scheduler=torch.optim.lr_scheduler.StepLR(made, 3).state_dict())


def _average(path: Path) -> Any:
    del path
    return beside(state_dict_ema=OrderedDict((k, v * 0.5) for k, v in state().items()))


def _metadata(path: Path) -> Any:
    del path
    found = state()
    found._metadata = OrderedDict({"": {"version": 1}, "a": {"version": 7}, "gone": {"version": 1}})
    return found


def _versions(found: Opened) -> Any:
    known = [getattr(each, "_metadata", None) for _, each in found.walk()]
    return [record for each in known if each for name, record in each.items() if name[-1:] == "a"]


def _tied(path: Path) -> Any:
    del path
    found = state()
    found["a.tied"] = found["a.weight"]
    return found


def _is_tied(found: Opened) -> Any:
    first, second = found.last("a.weight"), found.last("a.tied")
    if first is None or second is None:  # safetensors names the other one in a text
        return any(name.endswith(("a.tied", "a.weight")) for name in found.texts)
    return first.data_ptr() == second.data_ptr()


def _overlapping(path: Path) -> Any:
    del path
    base = torch.arange(16.0)
    return state(**{"a.head": base[:10], "a.tail": base[6:]})


def _do_overlap(found: Opened) -> Any:
    first, second = found.last("a.head"), found.last("a.tail")
    if first is None or second is None:
        return None
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _noted(path: Path) -> Any:
    del path
    tensor = torch.ones(4)
    tensor.note = "kept by hand"  # type: ignore[attr-defined]
    return state(**{"a.noted": tensor})


class Hooked(nn.Linear):
    """A module that is pickled whole, with a hook and a value of its own."""


def hook(*_: object) -> None:
    """Do nothing, after every pass."""


def _module(path: Path) -> Any:
    del path
    made = nn.Module()
    made.a, made.gone = Hooked(4, 4), nn.Linear(4, 4, bias=False)
    made.a.register_forward_hook(hook)
    return made


def _hooks(found: Opened) -> Any:
    modules = [m for _, each in found.walk() if isinstance(each, nn.Module) for m in each.modules()]
    return [type(each).__name__ for each in modules if each._forward_hooks]


def _on_gpu(path: Path) -> Any:
    with mock.patch.object(torch.serialization, "location_tag", return_value="cuda:1"):
        torch.save(state(), path)


def _texts(path: Path) -> Any:
    from safetensors.torch import save_file

    save_file(dict(state()), path, metadata={"license": "MIT", "format": "pt"})


def _foreign(path: Path) -> Any:
    torch.save(state(), path)
    root = path.stem
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/notes.txt", "mine")


def _wrong_sum(path: Path) -> Any:
    torch.save(state(), path)
    data = bytearray(path.read_bytes())
    at = data.index(bits(state()["a.weight"]))
    data[at] ^= 1
    path.write_bytes(bytes(data))


def _has_wrong_sums(found: Opened) -> Any:
    files = sorted(found.path.iterdir()) if found.path.is_dir() else [found.path]
    if any(each.suffix == ".distcp" for each in files):  # archives one after the other
        return CliRunner().invoke(cli, ["verify", str(found.path)]).exit_code == 1
    for each in filter(zipfile.is_zipfile, files):
        with zipfile.ZipFile(each) as archive:
            return archive.testzip() is not None
    return None


def _compressed(path: Path) -> Any:
    import gzip

    buffer = io.BytesIO()
    torch.save(state(), buffer)
    path.write_bytes(gzip.compress(buffer.getvalue()))


def _provenance(path: Path) -> Any:
    torch.save(state(old=torch.ones(1)), path.with_suffix(".in"))
    line = ("strip", path.with_suffix(".in"), "old", "--provenance", "-q", "--force", "-o", path)
    done = CliRunner().invoke(cli, [str(word) for word in line])
    assert done.exit_code == 0, done.output


def _story(found: Opened) -> Any:
    records = (data.decode("utf-8", "replace") for data in found.records.values())
    return any('"strip"' in text for text in (*found.texts.values(), *records))


def _quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(3.0), 0.5, 2, torch.quint8)


def _scale(tensor: Any) -> Any:
    return tensor.q_scale() if getattr(tensor, "is_quantized", False) else None


def _odd_bits() -> torch.Tensor:
    numbers = [0x7FC01234, 0x80000000, 0x00000001, 0x7F800000]
    return torch.tensor(numbers, dtype=torch.uint32).view(torch.float32)


def _shared(path: Path) -> Any:
    del path
    record = {"lr": 0.1, "seen": [1]}
    return beside(config=record, same=record)


def _is_one_object(found: Opened) -> Any:
    return found.last("config") is not None and found.last("config") is found.last("same")


PLAIN: dict[str, Any] = {
    "epoch": 3, "big": 1 << 80, "loss": float("nan"), "done": True, "nothing": None,
    "name": "r34", "bytes": b"\x00\xff", "lists": [1, (2.5, [3])], "set": {1}, "complex": 2j,
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "optimizer": Kind(_optimizer, at("exp_avg"), ("optimizer",)),
    "scheduler": Kind(_scheduler, at("_last_lr"), ("lr_scheduler",)),
    "moving average": Kind(_average, at("a.weight", "ema"), ("state_dict_ema",)),
    "plain values": Kind(
        lambda _: beside(**PLAIN), lambda f: [at("/" + name)(f) for name in PLAIN], ("epoch",)
    ),
    "objects": Kind(
        lambda _: beside(args=argparse.Namespace(lr=0.1, layers=[1, 2])), at("args"), ("args",)
    ),
    "arrays of numpy": Kind(
        lambda _: beside(score=np.arange(3.0)), lambda f: str(f.last("score")), ("score",)
    ),
    "tensors beside": Kind(lambda _: beside(rng=torch.arange(8)), at("rng"), ("rng",)),
    "one object twice": Kind(_shared, _is_one_object, ("config", "same")),
    "versions of modules": Kind(_metadata, _versions, ("_metadata",)),
    "ties": Kind(_tied, _is_tied, ("a.tied",)),
    "overlaps": Kind(_overlapping, _do_overlap, ("a.head", "a.tail")),
    "strides": Kind(
        entry("a.strided", lambda: torch.rand(4, 3).t()),
        lambda f: getattr(f.last("a.strided"), "stride", tuple)(),
        ("a.strided",),
    ),
    "parameters": Kind(
        entry("a.extra", lambda: nn.Parameter(torch.ones(4))),
        lambda f: type(f.last("a.extra")).__name__,
        ("a.extra",),
    ),
    "requires_grad": Kind(
        entry("a.extra", lambda: torch.ones(4, requires_grad=True)),
        lambda f: getattr(f.last("a.extra"), "requires_grad", None),
        ("a.extra",),
    ),
    "attributes": Kind(_noted, lambda f: getattr(f.last("a.noted"), "note", None), ("a.noted",)),
    "modules and hooks": Kind(_module, _hooks, ("module", "no tensor")),
    "devices": Kind(_on_gpu, lambda f: "cuda:1" in f.devices, ("cuda:1",)),
    "texts of safetensors": Kind(
        _texts, lambda f: f.texts.get("license"), ("license", "__metadata__"), ".safetensors"
    ),
    "foreign records": Kind(_foreign, lambda f: f.records.get("notes.txt"), ("notes.txt",)),
    "provenance": Kind(_provenance, _story, ("provenance",)),
    "wrong checksum": Kind(_wrong_sum, _has_wrong_sums, ("checksum",)),
    "compression": Kind(
        _compressed,
        lambda f: f.path.is_file() and f.path.read_bytes()[:2] == b"\x1f\x8b",
        ("compressed", "no archive"),
        ".pth.gz",
    ),
    "extra state": Kind(entry("a._extra_state", lambda: {"scale": 2}), at("_extra_state"),
                        ("_extra_state",)),
    "numbers among weights": Kind(entry("a.steps", lambda: 7), at("a.steps"), ("a.steps",)),
    "numbers as keys": Kind(
        lambda _: beside(labels={0: "cat", 1: "dog"}), at("labels"), ("labels",)
    ),
    "keys of one text": Kind(
        lambda _: OrderedDict([*state().items(), (1, torch.ones(1)), ("1", torch.zeros(1))]),
        lambda f: sorted(float(v) for p, v in f.walk() if p.endswith("/1") and v.numel() == 1),
        ("two entries would have this name", "no state dict", "1#2"),
    ),
    "odd bits": Kind(entry("a.odd", _odd_bits), at("a.odd"), ("a.odd",)),
    "complex128": Kind(
        entry("a.wave", lambda: torch.tensor([1 + 2j], dtype=torch.complex128)),
        at("a.wave"),
        ("a.wave",),
    ),
    "conjugates": Kind(
        entry("a.wave", lambda: torch.tensor([1 + 2j, 3j]).conj()), at("a.wave"), ("a.wave",)
    ),
    "quantised": Kind(
        entry("a.q", _quantized), lambda f: _scale(f.last("a.q")), ("a.q", "quint8")
    ),
    "sparse": Kind(
        entry("a.sparse", lambda: torch.eye(3).to_sparse()), at("a.sparse"), ("a.sparse", "sparse_")
    ),
    "nested": Kind(
        entry("a.ragged", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])),
        at("a.ragged"),
        ("a.ragged", "nested"),
    ),
    "without data": Kind(
        entry("a.meta", lambda: torch.empty(3, device="meta")),
        lambda f: str(getattr(f.last("a.meta"), "device", None)),
        ("a.meta",),
    ),
    "float8": Kind(
        entry("a.small", lambda: torch.arange(4.0).to(torch.float8_e4m3fn)),
        at("a.small"),
        ("a.small",),
    ),
    "unsigned": Kind(
        entry("a.count", lambda: torch.tensor([65535], dtype=torch.uint16)),
        at("a.count"),
        ("a.count",),
    ),
    "empty tensors": Kind(entry("a.none", lambda: torch.empty(0, 3)), at("a.none"), ("a.none",)),
    "order of names": Kind(
        lambda _: OrderedDict([("z.count", torch.tensor(3)), *state().items()]),
        lambda f: [
            path.rpartition("/")[2].removeprefix("m.")
            for path, value in f.walk()
            if isinstance(value, torch.Tensor) and "gone" not in path
        ],
        ("the order of the names", "z.count"),
    ),
}  # fmt: skip
"""Each kind of loss by its name, as docs/safety.md lists them."""


def save(kind: Kind, folder: Path, name: str = "in") -> Path:
    """Write the file of a kind."""
    path = folder / f"{name}{kind.suffix}"
    value = kind.make(path)
    if value is not None:
        with quiet():
            torch.save(value, path)
    return path
