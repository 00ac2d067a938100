"""``--tensors-only`` leaves torch's own names alone, and loads as what was there."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import GENERATIONS, rewrite
from bombs import archive, call, text, whole
from lies import CALLS, FILES, MAPPINGS, ordered, shown
from torch_checks import assert_same, assert_torch_reads, quiet, save
from torch_kinds import TENSORS, build

from ckpt_surgery import convert, inspect, read
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.edits.bare import OnlyTensors
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import CkptError, LossyEditError, UsageError

TORCH_TYPES = [name for name, dtype in BY_NAME.items() if dtype.in_torch]
OWN = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_tensor_v[23]|torch\.\w+Storage"
    r"|torch\.storage\.UntypedStorage|torch\.(" + "|".join(TORCH_TYPES) + ")"
)

RECORD = re.compile(
    r"data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|data/\d+"
)


def converted(value: Any, tmp_path: Path) -> Path:
    save(value, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "out.pth", tensors_only=True)
    return tmp_path / "out.pth"


@pytest.mark.parametrize("kind", TENSORS)
def test_each_kind_is_rebuilt_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    value = build(TENSORS[kind].make)
    if TENSORS[kind].layout != "strided" or value.is_meta:
        with pytest.raises(LossyEditError, match="has more to it than numbers") as caught:
            converted({"kind": value}, tmp_path)
        assert caught.value.entry == "kind"
        return
    out = converted({"kind": value}, tmp_path)
    assert all(OWN.fullmatch(each) for each in inspect(out).to_dict()["globals"])
    with quiet():
        found = torch.load(out, weights_only=True)["kind"]
        plain = value.detach().resolve_conj().resolve_neg()
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    assert (found.dtype, found.shape) == (plain.dtype, plain.shape)
    with quiet():
        assert_same(found.clone(), torch.Tensor.clone(plain).as_subclass(torch.Tensor))


def test_whatever_else_there_is_goes(tmp_path: Path) -> None:
    weights: Any = OrderedDict(
        w=torch.ones(2), state=torch.Size([3]), p=torch.nn.Parameter(torch.ones(1))
    )
    weights._metadata = {"": {"version": torch.device("cpu")}}
    weights["w"].note = torch.Generator
    report_value = {"model": weights, "epoch": 3, "config": torch.Size([2])}
    save(report_value, tmp_path / "w.pth")
    report = convert(tmp_path / "w.pth", tmp_path / "out.pth", tensors_only=True)
    assert report.removed == ("model/state",)
    assert set(report.dropped) == {"epoch", "config"}
    assert report.kept == ("w", "p")
    with read(tmp_path / "out.pth") as checkpoint:
        assert all(OWN.fullmatch(each) for each in checkpoint.globals)
        assert checkpoint.others == ()
        assert checkpoint.state_dicts[0].metadata is None
    assert_torch_reads(tmp_path / "out.pth", OrderedDict(w=torch.ones(2), p=torch.ones(1)))


def test_call_in_the_metadata_goes(tmp_path: Path) -> None:
    evil = b"}" + text("_metadata") + b"}" + text("") + call("posix.getpid") + b"ssb"
    (tmp_path / "w.pth").write_bytes(archive(whole(ordered(("w", shown()), state=evil))))
    for option, left in (("state_dict_only", True), ("tensors_only", False)):
        convert(tmp_path / "w.pth", tmp_path / f"{option}.pth", **{option: True})
        names = inspect(tmp_path / f"{option}.pth").to_dict()["globals"]
        assert ("posix.getpid" in names) == left


def dangerous(shared: Path) -> list[bytes]:
    """Published attacks and files that lie, and published honest files of odd kinds."""
    folders = (shared / "hostile", shared / "real")
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    lies = [lie.data for lie in (CALLS | MAPPINGS | FILES).values()]
    return [*(path.read_bytes() for path in paths if path.stat().st_size < 2**20), *lies]


def test_no_other_name_is_left_of_whatever_is_written(shared_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "in.bin", tmp_path / "out.pth"
    written = 0
    for data in dangerous(shared_dir):
        path.write_bytes(data)
        out.unlink(missing_ok=True)
        try:
            convert(path, out, tensors_only=True)
        except CkptError:
            assert not out.exists()
            continue
        written += 1
        with zipfile.ZipFile(out) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            pickle = archive.read(archive.namelist()[names.index("data.pkl")])
        assert all(RECORD.fullmatch(name) for name in names)
        called = {op.name for op, _, _ in pickletools.genops(pickle)}
        assert not called & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "STACK_GLOBAL", "EXT1"}
        named = [str(arg) for op, arg, _ in pickletools.genops(pickle) if op.name == "GLOBAL"]
        assert all(OWN.fullmatch(name.replace(" ", ".")) for name in named)
        with quiet():
            assert torch.load(out, weights_only=True)
    assert written >= 13


def test_records_and_unused_bytes_of_the_archive_go(tmp_path: Path) -> None:
    secret = b"a secret that is in no tensor"
    base = torch.frombuffer(bytearray(secret + bytes(3)), dtype=torch.float32)
    path = save({"w": base[7:]}, tmp_path / "w.pth")
    rewrite(path, lambda records: records | {"notes.txt": secret})
    convert(path, tmp_path / "out.pth", tensors_only=True)
    assert secret in path.read_bytes()
    assert secret[:20] not in (tmp_path / "out.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.pth") as written:
        assert len(written.namelist()) == 7
    assert_same(torch.load(tmp_path / "out.pth")["w"], base[7:].clone())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_ties_stay_whatever_the_archive(generation: str, tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    value = {"a": shared, "b": shared, "view": shared[:6].reshape(2, 3).t(), "c": torch.ones(3)}
    path = rewrite(save(value, tmp_path / "w.pth"), GENERATIONS[generation])
    convert(path, tmp_path / "out.pth", tensors_only=True)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    if generation == "big endian":  # which has no place in an archive of today
        found["view"], value["view"] = found["view"].clone(), value["view"].clone()
        assert found["view"].tolist() == value.pop("view").tolist()
        del found["view"]
    assert_same(dict(found), value)


def test_one_state_dict_is_chosen(tmp_path: Path) -> None:
    value = {"g": {"w": torch.ones(2)}, "d": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}
    path = save(value, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="there are 3 state dicts"):
        convert(path, tmp_path / "out.pth", tensors_only=True)
    convert(path, tmp_path / "out.pth", tensors_only=True, at="ema")
    assert_same(dict(torch.load(tmp_path / "out.pth")), {"w": torch.zeros(2)})


def test_plan_of_it_replays(tmp_path: Path) -> None:
    path = save({"model": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pth")
    report = convert(path, tmp_path / "out.pth", tensors_only=True)
    assert report.plan[0] == {"edit": "only-tensors", "path": "model"}
    plan = Plan.from_dict(list(report.plan))
    assert plan.edits[0] == OnlyTensors("model")
    with read(path) as checkpoint:
        assert plan.edits[0].path_after("model") == ""
        assert plan.edits[0].path_after("epoch") is None
        assert Plan(plan.edits[:1]).apply(checkpoint).state_dicts[0].names == ["w"]


def test_other_formats_are_written_as_well(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = save({"w": torch.ones(2)}, tmp_path / "w.pth")
    convert(path, tmp_path / "out.safetensors", tensors_only=True)
    assert_same(load_file(tmp_path / "out.safetensors"), {"w": torch.ones(2)})
    convert(tmp_path / "out.safetensors", tmp_path / "again.pth", tensors_only=True)
    assert_same(dict(torch.load(tmp_path / "again.pth")), {"w": torch.ones(2)})
