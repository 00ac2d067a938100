"""`diff` of a file against an edit of it reports exactly that edit, from either side."""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from archives import GENERATIONS, generation, rewrite
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.serialization import config
from torch_checks import quiet, save

from ckpt_surgery import DiffReport, DiffRequest, Output, ReadError, UsageError, diff, strip
from ckpt_surgery.cli.main import cli
from ckpt_surgery.fileio import ByteRange, FileSource
from ckpt_surgery.ops.strip import StripRequest


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1)
        self.bn = torch.nn.BatchNorm2d(3)
        self.fc = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.head.weight = self.fc.weight


def training() -> dict[str, Any]:
    """A training checkpoint, the same on every call."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state_dict = net.state_dict()
    state_dict["quant._extra_state"] = {"scale": 3}
    return {
        "model": state_dict,
        "epoch": 3,
        "loss": 0.5,
        "nan": float("nan"),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "optimizer": optimizer.state_dict(),
    }


def summary(report: DiffReport) -> list[Any]:
    """Everything that differs, in short; of values only that they do."""
    found: list[Any] = []
    for each in report.state_dicts:
        if each.is_moved:
            found.append(("moved", each.path_a, each.path_b, each.prefix_a, each.prefix_b))
        if each.path_a is None or each.path_b is None:
            found.append(("state dict", each.path_a, each.path_b))
            continue
        found += [("removed", name) for name, _ in each.removed]
        found += [("added", name) for name, _ in each.added]
        found += [("renamed", *pair) for pair in each.renamed]
        found += [(*change.kinds, change.name) for change in each.changed if change.differs]
        found += [("untied", *names) for names in each.ties_removed]
        found += [("tied", *names) for names in each.ties_added]
        found += [("entry", c.change, c.path, c.old, c.new) for c in each.entries]
        found += [("metadata", c.change, c.path, c.old, c.new) for c in each.metadata]
    return found + [(c.change, c.path, c.old, c.new) for c in report.others]


Edit = Callable[[dict[str, Any]], Any]


def _delete(*names: str) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        for name in names:
            del value["model"][name]

    return edit


def _rename(old: str, new: str) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        model = value["model"]
        metadata = model._metadata
        value["model"] = OrderedDict((new if n == old else n, t) for n, t in model.items())
        value["model"]._metadata = metadata

    return edit


def _set(name: str, make: Callable[[torch.Tensor], Any]) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        value["model"][name] = make(value["model"][name])

    return edit


def _prefixed(value: dict[str, Any]) -> None:
    model = value["model"]
    value["model"] = OrderedDict((f"module.{n}", t) for n, t in model.items())
    value["model"]._metadata = OrderedDict(
        {"": {"version": 1}, **{f"module.{n}".rstrip("."): m for n, m in model._metadata.items()}}
    )


def _with_cell(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[2] += 1
    return changed


def _renamed_module(value: dict[str, Any]) -> None:
    model = value["model"]
    value["model"] = OrderedDict((n.replace("conv.", "stem."), t) for n, t in model.items())
    value["model"]._metadata = OrderedDict(
        (n.replace("conv", "stem"), m) for n, m in model._metadata.items()
    )


def _stripped_module(value: dict[str, Any]) -> None:
    for name in [name for name in value["model"] if name.startswith("bn.")]:
        del value["model"][name]
    del value["model"]._metadata["bn"]


EDITS: dict[str, tuple[Edit, list[Any]]] = {
    "nothing": (lambda v: None, []),
    "an entry removed": (_delete("fc.bias"), [("removed", "fc.bias")]),
    "a tied entry removed": (_delete("head.weight"), [("removed", "head.weight")]),
    "a module removed": (
        _stripped_module,
        [("removed", f"bn.{n}") for n in (
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked")],
    ),
    "an entry added": (
        lambda v: v["model"].update(extra=torch.ones(7)), [("added", "extra")]),
    "an entry renamed": (_rename("fc.bias", "fc.offset"), [("renamed", "fc.bias", "fc.offset")]),
    "a module renamed": (
        _renamed_module,
        [("renamed", "conv.weight", "stem.weight"), ("renamed", "conv.bias", "stem.bias")],
    ),
    "a prefix": (_prefixed, [("moved", "model", "model", "", "module.")]),
    "entries in another order": (
        lambda v: v["model"].move_to_end("conv.weight"), []),
    "one value": (_set("conv.bias", _with_cell), [("values", "conv.bias")]),
    "another sign of zero": (
        _set("bn.running_mean", lambda t: torch.full_like(t, -0.0) if not t.any() else -t),
        [("values", "bn.running_mean")]),
    "another type": (_set("fc.bias", torch.Tensor.half), [("dtype", "fc.bias")]),
    "another shape": (_set("conv.bias", lambda t: t[:2].clone()), [("shape", "conv.bias")]),
    "flattened": (_set("conv.weight", lambda t: t.reshape(-1).clone()), [("shape", "conv.weight")]),
    "in other memory": (_set("conv.weight", lambda t: t.clone(
        memory_format=torch.channels_last)), []),
    "a view of a larger storage": (
        _set("conv.bias", lambda t: torch.cat([t, t])[:3]), []),
    "untied": (_set("head.weight", torch.Tensor.clone), [("untied", "fc.weight", "head.weight")]),
    "tied": (
        lambda v: v["model"].update({"bn.bias": v["model"]["bn.running_mean"]}),
        [("values", "bn.bias"), ("tied", "bn.bias", "bn.running_mean")]),
    "a parameter": (
        _set("fc.bias", lambda t: torch.nn.Parameter(t, requires_grad=False)),
        [("class", "fc.bias")]),
    "a gradient": (
        _set("fc.bias", lambda t: t.clone().requires_grad_()), [("requires_grad", "fc.bias")]),
    "sparse": (
        _set("fc.bias", torch.Tensor.to_sparse), [("layout", "fc.bias")]),
    "a version of a module": (
        lambda v: v["model"]._metadata["bn"].update(version=1),
        [("metadata", "changed", "bn/version", 2, 1)]),
    "an extra state": (
        lambda v: v["model"]["quant._extra_state"].update(scale=4),
        [("entry", "changed", "quant._extra_state/scale", 3, 4)]),
    "an extra state removed": (
        _delete("quant._extra_state"),
        [("entry", "removed", "quant._extra_state", "dict", None)]),
    "the epoch": (lambda v: v.update(epoch=4), [("changed", "epoch", 3, 4)]),
    "another type of number": (lambda v: v.update(epoch=3.0), [("changed", "epoch", 3, 3.0)]),
    "an entry beside": (lambda v: v.update(best=1.5), [("added", "best", None, 1.5)]),
    "an entry beside removed": (lambda v: v.pop("loss"), [("removed", "loss", 0.5, None)]),
    "an argument": (
        lambda v: setattr(v["args"], "lr", 0.2), [("changed", "args/.lr", 0.1, 0.2)]),
    "a longer list": (
        lambda v: v["args"].layers.append(5), [("added", "args/.layers/[2]", None, 5)]),
    "another class": (
        lambda v: v.update(args={"lr": 0.1}),
        [("changed", "args", "argparse.Namespace", "dict")]),
    "a learning rate": (
        lambda v: v["optimizer"]["param_groups"][0].update(lr=0.01),
        [("changed", "optimizer/param_groups/[0]/lr", 0.1, 0.01)]),
    "a momentum": (
        lambda v: v["optimizer"]["state"][1]["momentum_buffer"].add_(1),
        [("changed", "optimizer/state/1/momentum_buffer", "float32 [3]", "float32 [3]")]),
    "no optimizer": (lambda v: v.pop("optimizer"), [("removed", "optimizer", "dict", None)]),
    "another wrapper": (
        lambda v: v.update(state_dict=v.pop("model")),
        [("moved", "model", "state_dict", "", "")]),
    "an average": (
        lambda v: v.update(model_ema={"w": torch.ones(2)}), [("state dict", None, "model_ema")]),
}  # fmt: skip


def pair(edit: Edit, folder: Path) -> tuple[Path, Path]:
    before, after = training(), training()
    edit(after)
    with quiet():
        return save(before, folder / "a.pth"), save(after, folder / "b.pth")


def test_there_are_thirty() -> None:
    assert len(EDITS) >= 30


@pytest.mark.parametrize("values", [False, True], ids=["bytes", "values"])
@pytest.mark.parametrize("name", EDITS)
def test_exactly_the_edit_is_reported(name: str, values: bool, tmp_path: Path) -> None:
    edit, expected = EDITS[name]
    a, b = pair(edit, tmp_path)
    report = diff(a, b, DiffRequest(values=values))
    found = summary(report)
    if values:  # numbers of two types are compared, too
        found = [
            tuple(part for part in each if part != "values" or len(each) == 2) for each in found
        ]
    assert found == expected
    assert report.exit_code == bool(expected)
    assert report.warnings == ()


def ordered(report: DiffReport) -> Any:
    """A report in which the order of lists does not count."""

    def sort(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: sort(each) for key, each in value.items()}
        if isinstance(value, list):
            return sorted(map(sort, value), key=repr)
        return value

    document = report.to_dict()
    del document["inputs"]
    return sort(document)


@pytest.mark.parametrize("name", EDITS)
def test_the_other_way_round_it_is_mirrored(name: str, tmp_path: Path) -> None:
    a, b = pair(EDITS[name][0], tmp_path)
    request = DiffRequest(values=True)
    assert ordered(diff(a, b, request).mirrored()) == ordered(diff(b, a, request))


NAMES = st.sampled_from(["a", "b", "c.d", "c.e", "f"])
VALUES = st.sampled_from([torch.zeros(2), torch.ones(2), torch.ones(3), torch.ones(2).half()])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_any_two_models(
    tmp_path: Path, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    one, other = copy.deepcopy(one), copy.deepcopy(other)
    a = save({"model": {"x": torch.ones(1), **one}}, tmp_path / "a.pth")
    b = save({"model": {"x": torch.ones(1), **other}}, tmp_path / "b.pth")
    report = diff(a, b)
    (found,) = report.state_dicts
    assert {n for n, _ in found.removed} | {
        o for o, _ in found.renamed
    } == one.keys() - other.keys()
    assert {n for n, _ in found.added} | {n for _, n in found.renamed} == other.keys() - one.keys()
    assert {c.name for c in found.changed} == {
        n
        for n in one.keys() & other.keys()
        if one[n].dtype != other[n].dtype or not torch.equal(one[n], other[n])
    }
    for old, new in found.renamed:
        assert torch.equal(one[old], other[new])
    assert ordered(report.mirrored()) == ordered(diff(b, a))


# --- what proves equality, and what is read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are read of tensors."""
    found: list[int] = []
    inner = ByteRange.chunks

    def counted(self: ByteRange, *args: Any) -> Any:
        found.append(self.nbytes)
        return inner(self, *args)

    monkeypatch.setattr(ByteRange, "chunks", counted)
    return found


def test_equal_checksums_prove_equality_without_reading(tmp_path: Path, reads: list[int]) -> None:
    a = save({"w": torch.ones(1000), "v": torch.ones(40)[3:]}, tmp_path / "a.pth")
    b = save({"w": torch.ones(1000), "v": torch.ones(40)[3:]}, tmp_path / "b.pth")
    report = diff(a, b)
    assert report.exit_code == 0
    assert report.state_dicts[0].by_checksum == report.state_dicts[0].equal == 2
    assert max(reads, default=0) < 100


def test_other_checksums_prove_a_difference(tmp_path: Path, reads: list[int]) -> None:
    a = save({"w": torch.ones(1000)}, tmp_path / "a.pth")
    b = save({"w": torch.zeros(1000)}, tmp_path / "b.pth")
    assert diff(a, b).exit_code == 1
    assert 4000 not in reads


def test_a_part_of_a_storage_that_differs_is_read(tmp_path: Path, reads: list[int]) -> None:
    base, other = torch.ones(50), torch.ones(50)
    other[40] = 2
    a = save({"w": base[:30]}, tmp_path / "a.pth")
    b = save({"w": other[:30]}, tmp_path / "b.pth")
    report = diff(a, b)
    assert (report.exit_code, report.state_dicts[0].by_checksum) == (0, 0)
    assert 120 in reads


def test_without_checksums_bytes_are_compared(tmp_path: Path) -> None:
    with mock.patch.object(config.save, "compute_crc32", False):
        a = save({"w": torch.arange(9.0), "v": torch.ones(2)}, tmp_path / "a.pth")
        b = save({"w": torch.arange(9.0), "v": torch.zeros(2)}, tmp_path / "b.pth")
    assert summary(diff(a, b)) == [("values", "v")]


def test_equal_numbers_of_other_bits_differ_unless_a_tolerance_is_asked_for(tmp_path: Path) -> None:
    """Zeros have a sign and NaN has a payload, which `hash` sees as well."""
    whole = torch.tensor([1.0, 0.0, float("nan")])
    bits = whole.view(torch.int32)
    for at, mask in ((1, -(2**31)), (2, 5)):
        other = bits.clone()
        other[at] ^= mask
        save_file({"w": whole.clone(), "v": whole}, tmp_path / "a.safetensors")
        save_file({"w": whole, "v": other.view(torch.float32)}, tmp_path / "b.safetensors")
        files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        for request in (DiffRequest(), DiffRequest(values=True)):
            assert summary(diff(*files, request)) == [("values", "v")]
        assert diff(*files, DiffRequest(values=True, atol=1e-9)).exit_code == 0
        found = CliRunner().invoke(cli, ["diff", "--values", *map(str, files)])
        assert "v: equal numbers of other bits" in found.stdout


def test_structure_is_blind_to_checksums(tmp_path: Path) -> None:
    a = save({"m": {"w": torch.ones(9)}, "state": [torch.ones(2)]}, tmp_path / "a.pth")
    b = save({"m": {"w": torch.zeros(9)}, "state": [torch.zeros(2)]}, tmp_path / "b.pth")
    assert diff(a, b).exit_code == 1
    assert diff(a, b, DiffRequest(structure=True)).exit_code == 0


def test_structure_reads_nothing(tmp_path: Path, reads: list[int]) -> None:
    save_file({"w": torch.ones(1000), "v": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(1000), "v": torch.ones(3)}, tmp_path / "b.safetensors")
    request = DiffRequest(structure=True)
    report = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", request)
    assert summary(report) == [("shape", "v")]
    assert reads == []


def test_containers_and_byte_order_do_not_matter(tmp_path: Path) -> None:
    plain = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(4), "h": torch.ones(3).half()}
    first = save(plain, tmp_path / "a.pth")
    torch.save(plain, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    save_file(plain, tmp_path / "c.safetensors")
    for name in ("b.pth", "c.safetensors"):
        assert diff(first, tmp_path / name).exit_code == 0
        assert diff(tmp_path / name, first, DiffRequest(values=True)).exit_code == 0
    paths = [generation(name, tmp_path / f"{name}.pth") for name in GENERATIONS]
    assert [diff(paths[0], path).exit_code for path in paths] == [0] * len(paths)


def test_wrappers_inside_names_are_seen_through(tmp_path: Path) -> None:
    a = save({"a._orig_mod.w": torch.ones(2), "b.w": torch.zeros(2)}, tmp_path / "a.pth")
    b = save({"a.w": torch.ones(2), "b.w": torch.zeros(2)}, tmp_path / "b.pth")
    report = diff(a, b)
    assert report.state_dicts[0].wrappers
    assert report.state_dicts[0].equal == 2
    nested = save(
        {"m.module.a.w": torch.ones(2), "m.module.b.w": torch.zeros(2)}, tmp_path / "c.pth"
    )
    (found,) = diff(nested, b).state_dicts
    assert (found.equal, found.prefix_a, found.wrappers) == (2, "m.module.", False)


def test_a_map_pairs_names(tmp_path: Path) -> None:
    a = save({"old": torch.ones(2), "x": torch.ones(1)}, tmp_path / "a.pth")
    b = save({"new": torch.zeros(2), "x": torch.ones(1)}, tmp_path / "b.pth")
    report = diff(a, b, DiffRequest(renames={"old": "new"}))
    assert summary(report) == [("values", "new")]
    with pytest.raises(UsageError, match="there is no 'odl'"):
        diff(a, b, DiffRequest(renames={"odl": "new"}))


def test_only_a_state_dict(tmp_path: Path) -> None:
    a = save({"model": {"w": torch.ones(2)}, "epoch": 1}, tmp_path / "a.pth")
    b = save({"model": {"w": torch.ones(2)}, "epoch": 2}, tmp_path / "b.pth")
    assert diff(a, b).exit_code == 1
    assert diff(a, b, DiffRequest(at=["model"])).exit_code == 0
    with pytest.raises(UsageError, match="no state dict there"):
        diff(a, b, DiffRequest(at=["nowhere"]))


def test_tensors_of_other_kinds(tmp_path: Path) -> None:
    def value(scale: float) -> dict[str, Any]:
        quantized = torch.quantize_per_tensor(torch.ones(3) * scale, scale, 0, torch.qint8)
        sparse = torch.tensor([[0.0, scale]]).to_sparse()
        return {"q": quantized, "s": sparse, "m": torch.ones(2, device="meta"), "x": torch.ones(1)}

    with quiet():
        a, b = save(value(0.5), tmp_path / "a.pth"), save(value(0.25), tmp_path / "b.pth")
        assert diff(a, a).exit_code == 0
        assert summary(diff(a, b)) == [("values", "q"), ("values", "s")]


def test_tensors_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    with quiet():
        value = {"j": torch.nested.nested_tensor(parts, layout=torch.jagged), "x": torch.ones(1)}
        a, b = save(value, tmp_path / "a.pth"), save(value, tmp_path / "b.pth")
        report = diff(a, b)
    assert report.exit_code == 1
    assert report.state_dicts[0].changed[0].status == "unknown"
    assert "'j' was not compared" in report.warnings[0]


def test_values(tmp_path: Path) -> None:
    a = save({"w": torch.tensor([1.0, 2.0, 4.0]), "c": torch.ones(2)}, tmp_path / "a.pth")
    b = save({"w": torch.tensor([1.0, 2.1, 4.0]), "c": torch.ones(2)}, tmp_path / "b.pth")
    (found,) = diff(a, b, DiffRequest(values=True)).state_dicts
    (change,) = found.changed
    assert change.distance is not None
    assert (change.distance.numbers, change.distance.changed) == (3, 1)
    assert change.distance.max_abs == pytest.approx(0.1, rel=1e-5)
    close = diff(a, b, DiffRequest(values=True, rtol=0.1))
    assert close.exit_code == 0
    assert [c.status for c in close.state_dicts[0].changed] == ["close"]
    assert list(close.names) == []


def test_compaction_is_no_difference(tmp_path: Path) -> None:
    a = save({"w": torch.arange(100.0)[3:7]}, tmp_path / "a.pth")
    strip(a, Output(tmp_path / "b.pth"), StripRequest(compact=True))
    assert diff(a, tmp_path / "b.pth").exit_code == 0


def test_names(tmp_path: Path) -> None:
    a, b = pair(EDITS["an entry renamed"][0], tmp_path)
    assert list(diff(a, b).names) == ["model/fc.bias", "model/fc.offset"]
    a, b = pair(EDITS["the epoch"][0], tmp_path)
    assert list(diff(a, b).names) == ["epoch"]


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    a = save({"w": torch.ones(30)[:20]}, tmp_path / "a.pth")
    save_file({"w": torch.ones(20)}, tmp_path / "b.safetensors")
    with FileSource.open(a):
        pass
    records = rewrite(a, lambda r: {**r, "data.pkl": b"\xff"})
    with pytest.raises(ReadError):
        diff(records, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"structure": True, "values": True},
        {"rtol": 0.1},
        {"values": True, "rtol": -1.0},
        {"values": True, "atol": float("nan")},
    ],
)
def test_requests_that_make_no_sense(options: Any) -> None:
    with pytest.raises(UsageError):
        DiffRequest(**options)
