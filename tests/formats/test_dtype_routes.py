"""Every element type, from every format, through every verb: bit for bit, or refused by name.

torch and the safetensors library are the oracles: each source is written by one of them, and what
comes out is read by one of them. A type that they cannot write there is left out of the source.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.distributed.checkpoint as dcp
from bombs import name as qualified
from bombs import number, text, whole
from click.testing import CliRunner
from lies import ordered
from opcode_mutations import tar_of
from safetensors.torch import load_file, save_file
from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_checks import bits, quiet

from ckpt_surgery.cli.main import cli
from ckpt_surgery.dtypes import BY_NAME, DType

Tensors = dict[str, torch.Tensor]
ALL = [dtype for name, dtype in BY_NAME.items() if dtype.name == name and dtype.in_torch]
# int1 … uint7, of which torch makes tensors that only TorchScript saves.
ODD = [dtype for dtype in ALL if re.fullmatch("u?int[1-7]", dtype.name)]
SAVED = [dtype for dtype in ALL if dtype not in ODD]
QUANTIZED = {dtype.name for dtype in ALL if dtype.kind == "quantized"}
PACKED = {"float4_e2m1fn_x2", "bits1x8", "bits2x4", "bits4x2"} | {dtype.name for dtype in ODD}
"""Types of several elements in a byte, or of a part of one."""


def tensor(dtype: DType) -> torch.Tensor:
    """3 × 2 elements of whatever bits, NaN among them, or what a quantised type can hold."""
    kind = getattr(torch, dtype.name)
    if dtype.name == "quint2x4":
        return torch._empty_affine_quantized((2, 4), scale=1.0, zero_point=0, dtype=kind)
    if dtype.name == "quint4x2":
        values = torch.arange(8.0).view(4, 2)
        return torch.quantize_per_channel(values, torch.ones(4), torch.zeros(4), 0, kind)
    if dtype.kind == "quantized":
        return torch.quantize_per_tensor(torch.arange(6.0).view(3, 2), 0.5, 0, kind)
    if dtype.kind == "bool":
        return torch.tensor([[True, False], [False, True], [True, True]])
    generator = torch.Generator().manual_seed(ALL.index(dtype))
    raw = torch.randint(0, 256, (6 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(kind).view(3, 2)


def state(types: Iterable[DType]) -> Tensors:
    with quiet():
        found = OrderedDict((f"t_{dtype.name}", tensor(dtype)) for dtype in types)
    return found | {"gone": torch.ones(2)}


# --- Sources, each as the library of its format writes it -----------------------------------------


class Net(torch.nn.Module):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _saved(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def _scripted(path: Path, tensors: Tensors) -> Path:
    torch.jit.save(torch.jit.script(Net(tensors)), path)
    return path


def _exported(path: Path, tensors: Tensors) -> Path:
    torch.export.save(torch.export.export(Net(tensors), (torch.ones(2),)), path)
    return path


def _distributed(path: Path, tensors: Tensors) -> Path:
    dcp.save(tensors, checkpoint_id=path, no_dist=True)
    return path


def _distributed_safetensors(path: Path, tensors: Tensors) -> Path:
    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    return path


def _safetensors(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


def _shards(path: Path, tensors: Tensors, stem: str, suffix: str, save: Any) -> Path:
    """Two shards and their index, as huggingface_hub names them."""
    path.mkdir()
    names, files = list(tensors), {}
    for index, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{index:05}-of-00002{suffix}"
        save({name: tensors[name] for name in part}, path / file)
        files |= dict.fromkeys(part, file)
    (path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": files}))
    return path


def _arrays(path: Path, tensors: Tensors) -> Path:
    np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    return path


def _pickled_arrays(path: Path, tensors: Tensors) -> Path:
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}, 4))
    return path


def _tar(path: Path, tensors: Tensors) -> Path:
    """An archive of torch 0.1.12, which nobody writes any more; torch still reads it."""
    storages, places, entries = b"", b"", []
    for index, (name, value) in enumerate(tensors.items()):
        kind = torch.storage._dtype_to_storage_type_map()[value.dtype]
        key = number(index)
        head = b"(" + key + text("cpu") + qualified("torch", kind) + b"t"
        storages += whole(head) + struct.pack("<q", value.numel()) + bits(value)
        cls = qualified("torch", kind.replace("Storage", "Tensor"))
        places += whole(b"(" + number(1000 + index) + key + cls + b"t")
        size, stride = value.shape, value.stride()
        places += struct.pack(f"<ii{2 * len(size) + 1}q", len(size), 0, *size, *stride, 0)
        entries.append((name, text(str(1000 + index)) + b"Q"))
    count = whole(number(len(tensors)))
    members = {"sys_info": whole(b"}"), "storages": count + storages + whole(b"]")}
    members |= {"tensors": count + places, "pickle": whole(ordered(*entries))}
    path.write_bytes(tar_of(members))
    return path


WITH_CLASS = [dtype for dtype in SAVED if dtype.storage_class]
OF_2017 = [d for d in WITH_CLASS if d.kind in {"float", "int"} and d.name != "bfloat16"]
IN_SAFETENSORS = [dtype for dtype in SAVED if dtype.safetensors]
IN_NUMPY = [
    dtype
    for dtype in SAVED
    if dtype.name in {"complex128", "complex64", "bool", "uint16", "uint32", "uint64"}
    or (dtype in WITH_CLASS and dtype.kind in {"float", "int"} and dtype.name != "bfloat16")
]
IN_DCP = [d for d in SAVED if d.kind in {"float", "complex", "int", "bool"}]
IN_EXPORT = [d for d in IN_DCP if getattr(torch, d.name) in _TORCH_TO_SERIALIZE_DTYPE]
SOURCES: dict[str, tuple[str, list[DType], Callable[[Path, Tensors], Path]]] = {
    "torch-zip": ("a.pth", SAVED, _saved),
    "torch-legacy": ("a.pth", WITH_CLASS, lambda p, t: _saved(p, t, legacy=True)),
    "torch-tar": ("a.pth", OF_2017, _tar),
    "module": ("a.pth", SAVED, lambda p, t: _saved(p, Net(t))),
    "legacy module": ("a.pth", WITH_CLASS, lambda p, t: _saved(p, Net(t), legacy=True)),
    "torchscript": ("a.ts", [d for d in ALL if d.name not in {"quint4x2", "quint2x4"}], _scripted),
    "torch-export": ("a.pt2", IN_EXPORT, _exported),
    "safetensors": ("a.safetensors", IN_SAFETENSORS, _safetensors),
    "safetensors-index": (
        "shards", IN_SAFETENSORS, lambda p, t: _shards(p, t, "model", ".safetensors", save_file)
    ),
    "torch-index": (
        "bins", SAVED, lambda p, t: _shards(p, t, "pytorch_model", ".bin", torch.save)
    ),
    "dcp": ("dcp", IN_DCP, _distributed),
    "dcp-safetensors": ("dcp", IN_SAFETENSORS, _distributed_safetensors),
    "npz": ("a.npz", IN_NUMPY, _arrays),
    "pickle": ("a.pkl", IN_NUMPY, _pickled_arrays),
}  # fmt: skip
# What each format that is written holds of the types.
HELD: dict[str, tuple[str, Callable[[DType], object]]] = {
    "torch-zip": ("out.pth", lambda _: True),
    "torch-legacy": ("out.pth", lambda dtype: dtype.storage_class),
    "safetensors": ("out.safetensors", lambda dtype: dtype.safetensors),
    "safetensors-index": ("out", lambda dtype: dtype.safetensors),
    "torch-index": ("out", lambda _: True),
    "dcp": ("out", lambda dtype: dtype.kind != "quantized" and dtype not in ODD),
}


# --- What is done and what must come of it --------------------------------------------------------


def ckpt(*words: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code in {0, 2}, done.output
    return done.exit_code, json.loads(done.stdout)


def loaded(path: Path, kind: str, *, as_module: bool = False) -> Mapping[str, torch.Tensor]:
    with quiet():
        if kind in {"torch-zip", "torch-legacy"}:
            found = torch.load(path, weights_only=not as_module)
            return found.state_dict() if isinstance(found, torch.nn.Module) else found
        if kind == "safetensors":
            return load_file(path)
        if kind == "dcp":
            dcp_to_torch_save(path, path.with_name("of dcp.pth"))
            return torch.load(path.with_name("of dcp.pth"), weights_only=True)
        found: Tensors = {}
        for shard in path.iterdir():
            if shard.suffix in {".safetensors", ".bin"}:
                found |= load_file(shard) if shard.suffix != ".bin" else torch.load(shard)
        return found


def kept_bits(value: torch.Tensor) -> object:
    if not value.is_quantized:
        return bits(value)
    if value.qscheme() == torch.per_tensor_affine:
        return bytes(value.untyped_storage()), value.q_scale(), value.q_zero_point()
    scales, zeros = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    return bytes(value.untyped_storage()), bits(scales), bits(zeros)


def assert_same(found: Mapping[str, torch.Tensor], expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    with quiet():
        for name, value in expected.items():
            told = (found[name].dtype, found[name].shape, kept_bits(found[name]))
            assert told == (value.dtype, value.shape, kept_bits(value)), name


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def reshaped(tensors: Tensors) -> Tensors:
    return {name: value.view(-1) for name, value in tensors.items()}


def prefixed(tensors: Tensors) -> Tensors:
    return {f"x.{name}": value for name, value in tensors.items()}


def without(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name != "gone"}


def same(tensors: Tensors) -> Tensors:
    return tensors


# Each verb that writes: the words after the file, what comes of the tensors, which types it refuses
# by name. "FILE" is the file once more.
VERBS: dict[str, tuple[str, tuple[str, ...], Callable[[Tensors], Tensors], set[str]]] = {
    "strip": ("strip", ("--name", "gone"), without, set()),
    "compact": ("strip", ("--compact",), same, set()),
    "rename": ("rename", ("--add-prefix", "x."), prefixed, set()),
    "tensors": ("convert", ("--tensors-only",), same, QUANTIZED),
    "clone": ("edit", ("--clone", "**"), same, QUANTIZED),
    "reshape": ("edit", ("--reshape", "**=-1"), reshaped, QUANTIZED | PACKED),
    "fit": ("fit", ("--like", "FILE"), same, set()),
    "overlay": ("merge", ("FILE",), same, set()),
    "average": ("merge", ("FILE", "-m", "average", "--allow-nonfinite"), same, set()),
    "passthrough": ("merge", ("-m", "passthrough"), same, set()),
    "consolidate": ("consolidate", (), same, QUANTIZED),
}
NO_RANKS = {"module", "legacy module", "torchscript", "safetensors-index"}
NO_RANKS |= {"torch-index"}
"""What holds no file of a rank; `consolidate` says so."""


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Any]:
    name, types, write = SOURCES[request.param]
    folder = tmp_path_factory.mktemp("routes")
    tensors = state(types)
    with quiet():
        path = write(folder / name, tensors)
    yield request.param, path, tensors
    shutil.rmtree(folder)


def test_types_and_shapes_are_shown(source: Any) -> None:
    _, path, tensors = source
    code, report = ckpt("inspect", path)
    assert code == 0
    (shown,) = report["state_dicts"]
    assert {t["name"]: (f"torch.{t['dtype']}", tuple(t["shape"])) for t in shown["tensors"]} == {
        name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()
    }


@pytest.mark.parametrize("kind", HELD)
def test_every_format_gets_the_same_bits_or_says_which_not(
    source: Any, kind: str, tmp_path: Path
) -> None:
    _, path, tensors = source
    name, holds = HELD[kind]
    out = tmp_path / name
    lost = {n for n, t in tensors.items() if not holds(BY_NAME[str(t.dtype)[6:]])}
    line = ("convert", path, "--format", kind, "-o", out)
    code, report = ckpt(*line)
    assert code == (2 if lost else 0), report
    if lost:
        assert not out.exists()
        named = {name for name in tensors if f"'{name}'" in report["error"]["message"]}
        assert named <= lost
        assert len(named) == min(len(lost), 20)  # a message lists no more
        code, report = ckpt(*line, "--allow-loss")
        assert code == 0
        assert set(report["removed"]) == lost
    assert_same(loaded(out, kind), {n: t for n, t in tensors.items() if n not in lost})


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_keeps_the_bits_or_says_which_not(
    source: Any, verb: str, tmp_path: Path
) -> None:
    kind, path, tensors = source
    command, words, after, refuses = VERBS[verb]
    out = tmp_path / "out.pth"
    refused = {name for name, value in tensors.items() if str(value.dtype)[6:] in refuses}
    more = [path if word == "FILE" else word for word in words]
    code, report = ckpt(command, path, *more, "--format", "torch-zip", "-o", out)
    if command == "consolidate" and kind in NO_RANKS:
        assert code == 2
        return
    if refused:
        assert code == 2
        assert report["error"]["entry"] in refused
        assert not out.exists()
        gone = [word for name in refused for word in ("--name", name)]
        assert ckpt("strip", path, *gone, "-o", tmp_path / "less.pth")[0] == 0
        more = [tmp_path / "less.pth" if word == "FILE" else word for word in words]
        code, report = ckpt(command, tmp_path / "less.pth", *more, "-o", out)
    assert code == 0, report
    stays = verb == "compact" and "module" in kind  # nothing of it changes
    assert_same(
        loaded(out, "torch-zip", as_module=stays),
        after({n: t for n, t in tensors.items() if n not in refused}),
    )


def test_plan_of_a_report_gives_the_same_file(source: Any, tmp_path: Path) -> None:
    _, path, tensors = source
    out, log = tmp_path / "out.pth", tmp_path / "log.json"
    line = ("rename", path, "--add-prefix", "x.", "--format", "torch-zip", "-o", out)
    assert ckpt(*line, "--record", log)[0] == 0
    first = out.read_bytes()
    remove(out)
    assert ckpt("apply", log, path, "-o", out)[0] == 0
    assert out.read_bytes() == first
    assert_same(loaded(out, "torch-zip"), prefixed(tensors))


def test_salvage_of_a_whole_file_is_the_file(source: Any, tmp_path: Path) -> None:
    kind, path, tensors = source
    if kind not in {"torch-zip", "torch-legacy", "safetensors"}:
        pytest.skip("is salvaged in other ways, or not at all")
    out = tmp_path / f"out{path.suffix}"
    assert ckpt("verify", path, "--salvage", out)[0] == 0
    assert_same(loaded(out, "safetensors" if kind == "safetensors" else "torch-zip"), tensors)


# --- Types of safetensors that torch does not have ------------------------------------------------

SMALL = {
    "F6_E2M3": ([2, 4], 6), "F6_E3M2": ([8], 6), "F4": ([2, 3], 3), "F8_E8M0": ([4], 4),
    "F8_E4M3": ([3], 3), "F8_E4M3FNUZ": ([2], 2), "F8_E5M2FNUZ": ([2], 2), "C64": ([1], 8),
}  # fmt: skip


def header(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the safetensors library itself finds, without torch."""
    found = safetensors.deserialize(path.read_bytes())
    return {name: (each["dtype"], each["shape"], bytes(each["data"])) for name, each in found}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    head: dict[str, Any] = {}
    data = b""
    for code, (shape, nbytes) in SMALL.items():
        place = [len(data), len(data) + nbytes]
        head[code] = {"dtype": code, "shape": shape, "data_offsets": place}
        data += bytes(range(len(head), len(head) + nbytes))
    encoded = json.dumps(head).encode()
    encoded += b" " * (-len(encoded) % 8)
    path = tmp_path / "small.safetensors"
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    assert {name: each[0] for name, each in header(path).items()} == {c: c for c in SMALL}
    return path


@pytest.mark.parametrize(
    "line",
    [
        ("convert",), ("strip", "--compact"), ("rename", "--add-prefix", "x."),
        ("edit", "--clone", "**"), ("merge", "FILE"), ("fit", "--like", "FILE"),
        ("merge", "FILE", "-m", "linear"), ("convert", "--tensors-only"),
        ("convert", "--metadata", "a=b"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_types_of_safetensors_alone_stay_what_they_are(
    small: Path, line: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    verb, *more = [small if word == "FILE" else word for word in line]
    code, report = ckpt(verb, small, *more, "-o", out)
    assert code == 0, report
    found = {name.removeprefix("x."): each for name, each in header(out).items()}
    assert found == header(small)


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "torch-index", "dcp"])
def test_types_that_torch_has_not_are_refused_by_name(
    small: Path, kind: str, tmp_path: Path
) -> None:
    code, report = ckpt("convert", small, "--format", kind, "-o", tmp_path / "out")
    assert code == 2
    for name in ("F6_E2M3", "F6_E3M2", "F4"):
        assert f"'{name}'" in report["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_dimension_of_minus_zero_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    head = b'{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(path.read_bytes())
    code, report = ckpt("inspect", path)
    assert code == 2
    assert "the shape is not a list of sizes" in report["error"]["message"]
