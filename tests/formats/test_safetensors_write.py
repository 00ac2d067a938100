"""What is written as safetensors is what the safetensors library writes and loads, bit for bit."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch_checks import bits, load, quiet, save

from ckpt_surgery import (
    AddPrefix,
    Output,
    convert,
    inspect,
    merge,
    read,
    rename,
    selection,
    strip,
)
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import LossyEditError, UsageError, WriteError
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.writing.write import write

DTYPES = [getattr(torch, str(name)[6:]) for name in safetensors.torch._TYPES.values()]


def raw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of any type whose bytes are all different."""
    count = torch.Size(shape).numel()
    data = torch.arange(count * dtype.itemsize).to(torch.uint8)
    return (data % 2 if dtype == torch.bool else data).view(dtype).reshape(shape)


def written(value: Any, folder: Path, **options: Any) -> Path:
    """The safetensors file that `convert` makes of what torch saved."""
    out = folder / "ours.safetensors"
    convert(save(value, folder / "in.pth"), Output(out, force=True, **options))
    return out


def library(tensors: Mapping[str, torch.Tensor], folder: Path, **options: Any) -> bytes:
    path = folder / "theirs.safetensors"
    safetensors.torch.save_file(dict(tensors), path, **options)
    return path.read_bytes()


def metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_loads(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    found = safetensors.torch.load_file(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


class TestBytes:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_type_is_written_as_the_library_writes_it(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        tensors = {"m": raw(dtype, 2, 3), "e": raw(dtype, 0, 2), "one": torch.ones(1)}
        with quiet():
            assert written(tensors, tmp_path).read_bytes() == library(tensors, tmp_path)

    def test_all_types_at_once_are_in_the_librarys_order(self, tmp_path: Path) -> None:
        tensors = {f"{n % 3}{str(d)[6:]}": raw(d, 3, 2) for n, d in enumerate(DTYPES)}
        with quiet():
            assert written(tensors, tmp_path).read_bytes() == library(tensors, tmp_path)

    @pytest.mark.parametrize("given", [None, {}, {"format": "pt"}, {'k"\n\t\x01': "é\\\x7f😀"}])
    def test_header_is_the_librarys(self, tmp_path: Path, given: dict[str, str] | None) -> None:
        names = ["", ".", "a.b", "é", "😀", '"', "\\", "\n\r\t\b\f", "\x00", "\x1f", "\x7f", "/"]
        tensors = {name: torch.tensor(float(n)) for n, name in enumerate(names)}
        theirs = library(tensors, tmp_path, metadata=given)
        options = LayoutOptions(metadata=given or {})
        if given == {}:  # what is empty is not asked for, but kept
            (tmp_path / "empty.safetensors").write_bytes(theirs)
            out = tmp_path / "o.safetensors"
            strip(tmp_path / "empty.safetensors", Output(out), selection(glob="😀"))
            del tensors["😀"]
            assert out.read_bytes() == library(tensors, tmp_path, metadata={})
            return
        assert written(tensors, tmp_path, options=options).read_bytes() == theirs

    def test_no_tensors_at_all(self, tmp_path: Path) -> None:
        module = torch.nn.Module()
        assert written(module.state_dict(), tmp_path).read_bytes() == library({}, tmp_path)

    def test_rename_writes_what_the_library_would(self, tmp_path: Path) -> None:
        tensors = {"b": torch.rand(3), "a": torch.rand(2, 2), "c": torch.arange(3)}
        path, out = tmp_path / "a.safetensors", tmp_path / "o.safetensors"
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        report = rename(path, out, [AddPrefix("m")])
        assert report.format == "safetensors"
        assert "convert" not in [edit["edit"] for edit in report.plan]
        renamed = {f"m.{name}": tensor for name, tensor in tensors.items()}
        assert out.read_bytes() == library(renamed, tmp_path, metadata={"format": "pt"})


class TestUnchanged:
    def test_nothing_changed_is_the_same_file(self, tmp_path: Path) -> None:
        """Also one that another program has laid out otherwise."""
        header = {
            "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "__metadata__": {"z": "1", "a": "2", "tied": "b"},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
        }
        text = json.dumps(header, indent=1).encode() + b"\n\t "
        path, out = tmp_path / "a.safetensors", tmp_path / "o.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(7)))
        convert(path, out)
        assert out.read_bytes() == path.read_bytes()
        assert len(inspect(path).notes) == (len(text) % 8 != 0)
        convert(path, Output(out, force=True, options=LayoutOptions(duplicate_ties=True)))
        assert set(safetensors.torch.load_file(out)) == {"a", "b", "tied"}
        assert metadata(out) == {"z": "1", "a": "2"}

    def test_types_that_torch_lacks_are_shown_and_copied(self, tmp_path: Path) -> None:
        header = {
            "six": {"dtype": "F6_E2M3", "shape": [2, 2], "data_offsets": [0, 3]},
            "odd": {"dtype": "F4", "shape": [2, 3], "data_offsets": [3, 6]},
            "plain": {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
        }
        text = json.dumps(header).encode()
        path, out = tmp_path / "a.safetensors", tmp_path / "o.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(8)))
        shown = {t["name"]: t for t in inspect(path).to_dict()["state_dicts"][0]["tensors"]}
        assert [shown[n]["dtype"] for n in header] == ["float6_e2m3fn", "float4_e2m1fn", "uint8"]
        assert [shown[n]["nbytes"] for n in header] == [3, 3, 2]
        rename(path, out, [AddPrefix("m")])
        with safe_open(out, "pt") as file:
            assert file.get_slice("m.six").get_shape() == [2, 2]
            assert file.get_slice("m.odd").get_dtype() == "F4"
        copied = out.read_bytes()[-8:]
        assert copied == bytes([6, 7, 0, 1, 2, 3, 4, 5])  # U8, F6, F4
        with pytest.raises(LossyEditError, match=r"'six'.*'odd'.*torch has no such type"):
            convert(path, tmp_path / "o.pth")
        report = convert(path, Output(tmp_path / "o.pth", allow_loss=True))
        assert set(report.removed) == {"six", "odd"}
        assert list(load(tmp_path / "o.pth")) == ["plain"]


class TestTies:
    @pytest.fixture
    def tied(self) -> dict[str, torch.Tensor]:
        weight = torch.rand(3, 2)
        return {"z.tok": weight, "other": torch.ones(2), "head": weight, "x": weight}

    def test_they_are_written_once_as_save_model_does(
        self, tmp_path: Path, tied: dict[str, torch.Tensor]
    ) -> None:
        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tok = torch.nn.Linear(2, 3, bias=False)
                self.head = torch.nn.Linear(2, 3, bias=False)
                self.head.weight = self.tok.weight

        model = Model()
        out = written(model.state_dict(), tmp_path)
        safetensors.torch.save_model(model, str(tmp_path / "theirs"))
        assert out.read_bytes() == (tmp_path / "theirs").read_bytes()
        assert metadata(out) == {"tok.weight": "head.weight"}
        fresh = Model()
        assert safetensors.torch.load_model(fresh, str(out)) == (set(), [])
        assert torch.equal(fresh.tok.weight, model.tok.weight)
        out = written(tied, tmp_path)
        assert metadata(out) == {"x": "head", "z.tok": "head"}
        assert_loads(out, {"head": tied["head"], "other": tied["other"]})

    def test_they_come_back(self, tmp_path: Path, tied: dict[str, torch.Tensor]) -> None:
        out, back = written(tied, tmp_path), tmp_path / "back.pth"
        assert inspect(out).ties == (("head", "x", "z.tok"),)
        report = convert(out, back)
        found = load(back)
        assert report.dropped == ()
        assert {name: bits(t) for name, t in found.items()} == {n: bits(t) for n, t in tied.items()}
        assert len({found[name].data_ptr() for name in ("head", "x", "z.tok")}) == 1

    def test_they_follow_edits(self, tmp_path: Path, tied: dict[str, torch.Tensor]) -> None:
        out, edited = written(tied, tmp_path), tmp_path / "e.safetensors"
        rename(out, edited, [AddPrefix("m")])
        assert metadata(edited) == {"m.x": "m.head", "m.z.tok": "m.head"}
        strip(out, Output(edited, force=True), selection(prefix="head"))
        assert metadata(edited) == {"z.tok": "x"}
        assert_loads(edited, {"x": tied["x"], "other": tied["other"]})

    def test_they_are_duplicated_if_wanted(
        self, tmp_path: Path, tied: dict[str, torch.Tensor]
    ) -> None:
        out = written(tied, tmp_path, options=LayoutOptions(duplicate_ties=True))
        apart = {name: tensor.clone() for name, tensor in tied.items()}
        assert out.read_bytes() == library(apart, tmp_path)

    def test_views_are_ties_only_of_the_same_elements(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        views = {"a": whole, "b": whole[:2], "c": whole.t(), "d": whole[:2], "e": whole[:0]}
        path = save(views, tmp_path / "in.pth")
        report = convert(path, tmp_path / "o.safetensors")
        assert report.warnings == (
            (
                "the overlap of 'a', 'b', 'c', 'd' is left out: "
                "each tensor of a safetensors file has bytes of its own"
            ),
            (
                "the order of elements in memory (strides) of 'c' is left out: "
                "safetensors holds names, types, shapes and numbers"
            ),
            "checksums are left out: safetensors has none; --verify compares them first",
        )
        assert metadata(tmp_path / "o.safetensors") == {"d": "b"}
        assert_loads(tmp_path / "o.safetensors", {n: views[n] for n in "abce"})

    def test_names_that_metadata_cannot_say_are_refused(self, tmp_path: Path) -> None:
        weight = torch.ones(2)
        for names, texts in ((("format", "a"), {}), (("z", "a"), {"z": "mine"})):
            tied = dict.fromkeys(names, weight)
            with pytest.raises(UsageError, match="tied tensor's name"):
                written(tied, tmp_path, options=LayoutOptions(metadata=texts))
            options = LayoutOptions(metadata=texts, duplicate_ties=True)
            assert_loads(written(tied, tmp_path, options=options), tied)
        with pytest.raises(UsageError, match="'new' is tied to the tensor 'a'"):
            written({"a": weight}, tmp_path, options=LayoutOptions(metadata={"new": "a"}))
        with pytest.raises(UsageError, match="no Unicode"):
            written({"a": weight}, tmp_path, options=LayoutOptions(metadata={"new": "\udc80"}))

    def test_framework_of_the_writer_is_no_alias(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        safetensors.torch.save_file({"pt": torch.ones(1)}, path, {"format": "pt"})
        assert inspect(path).state_dicts[0].names == ["pt"]


class TestLosses:
    def test_everything_that_has_no_place_is_listed(self, tmp_path: Path) -> None:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        weights = OrderedDict(model.state_dict())
        weights["complex"] = torch.ones(2, dtype=torch.complex128)
        weights["sparse"] = torch.eye(2).to_sparse()
        with quiet():
            weights["quantised"] = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        weights["extra"] = "a text"
        training = {"model": weights, "optimizer": optimizer.state_dict(), "epoch": 3}
        path, out = save(training, tmp_path / "in.pth"), tmp_path / "o.safetensors"
        with pytest.raises(LossyEditError) as refused:
            convert(path, out)
        for lost in (
            "'optimizer' (dict)", "'epoch' (int)", "'model/extra' (no tensor)",
            "'model/complex' (a tensor of complex128)",
            "'model/sparse' (a sparse_coo tensor)",
            "'model/quantised' (a tensor of qint8)",
        ):  # fmt: skip
            assert lost in refused.value.message
        assert "--allow-loss" in str(refused.value.hint)
        assert not out.exists()
        with pytest.raises(LossyEditError, match="complex128"):
            convert(path, out, state_dict_only=True)
        report = convert(path, Output(out, allow_loss=True))
        assert set(report.dropped) == {"optimizer", "epoch"}
        assert set(report.removed) == {
            "model/complex", "model/sparse", "model/quantised", "model/extra",
        }  # fmt: skip
        assert_loads(out, model.state_dict())

    def test_weights_alone_need_no_permission(self, tmp_path: Path) -> None:
        weights = {"a": torch.rand(2), "b": torch.rand(3)}
        path = save({"state_dict": weights, "epoch": 3}, tmp_path / "in.pth")
        out = tmp_path / "o.safetensors"
        with pytest.raises(LossyEditError, match="'epoch'") as refused:
            rename(path, out, [AddPrefix("m")])
        assert "--state-dict-only" in str(refused.value.hint)
        rename(path, out, [AddPrefix("m")], state_dict_only=True)
        assert_loads(out, {f"m.{name}": tensor for name, tensor in weights.items()})
        strip(path, Output(out, force=True), selection(prefix="a"), state_dict_only=True)
        assert_loads(out, {"b": weights["b"]})

    def test_one_of_several_state_dicts_is_chosen(self, tmp_path: Path) -> None:
        model, ema = {"a": torch.rand(2)}, {"a": torch.rand(2)}
        path = save({"model": model, "ema": ema}, tmp_path / "in.pth")
        out = tmp_path / "o.safetensors"
        for allow_loss in (False, True):
            with pytest.raises(LossyEditError, match="one of 2 state dicts") as refused:
                convert(path, Output(out, allow_loss=allow_loss))
            assert "--at" in str(refused.value.hint)
        convert(path, out, state_dict_only=True, at="ema")
        assert_loads(out, ema)

    def test_plain_values_go_into_the_sidecar(self, tmp_path: Path) -> None:
        plain = {"epoch": 3, "args": {"lr": 0.1, "sizes": (1, [2, None, True]), "name": "é"}}
        path = save({"w": {"a": torch.ones(2)}, **plain}, tmp_path / "in.pth")
        out, beside = tmp_path / "o.safetensors", tmp_path / "beside.json"
        report = convert(path, Output(out, sidecar=beside))
        assert json.loads(beside.read_text()) == json.loads(json.dumps(plain))
        assert report.dropped == ("epoch", "args")
        assert report.warnings == (
            "in the sidecar: epoch, args",
            "checksums are left out: safetensors has none; --verify compares them first",
        )
        beside.write_text("{}")  # what it holds already would be no error
        with pytest.raises(WriteError, match="already exists"):
            convert(path, Output(tmp_path / "p.safetensors", sidecar=beside))
        assert not (tmp_path / "p.safetensors").exists()
        with pytest.raises(UsageError, match="nothing plain"):
            convert(out, Output(tmp_path / "p.safetensors", sidecar=tmp_path / "n.json"))
        with pytest.raises(WriteError, match="'--sidecar' is the output"):
            convert(path, Output(out, sidecar=tmp_path / "." / out.name))
        with pytest.raises(WriteError, match="'--sidecar' is the input"):
            convert(path, Output(tmp_path / "q.safetensors", sidecar=path, force=True))

    def test_plain_values_among_the_weights_go_into_the_sidecar(self, tmp_path: Path) -> None:
        tensors = {name: torch.ones(2) for name in "abc"}
        path = save({"w": {**tensors, "step": 5, "sizes": [1, 2]}}, tmp_path / "in.pth")
        out, beside = tmp_path / "o.safetensors", tmp_path / "beside.json"
        with pytest.raises(LossyEditError, match="'w/step'") as refused:
            convert(path, out)
        assert "--sidecar FILE.json" in str(refused.value.hint)
        report = convert(path, Output(out, sidecar=beside))
        assert json.loads(beside.read_text()) == {"w/step": 5, "w/sizes": [1, 2]}
        assert "in the sidecar: w/step, w/sizes" in report.warnings
        assert_loads(out, tensors)

    @pytest.mark.parametrize("extra", [{"sparse": torch.eye(2).to_sparse()}, {"odd": {1, 2}}])
    def test_what_is_not_plain_among_the_weights_stays_a_loss(
        self, tmp_path: Path, extra: dict[str, Any]
    ) -> None:
        path = save({"a": torch.ones(2), "step": 5, **extra}, tmp_path / "in.pth")
        out, beside = tmp_path / "o.safetensors", tmp_path / "beside.json"
        with pytest.raises(LossyEditError, match=next(iter(extra))) as refused:
            convert(path, Output(out, sidecar=beside))
        assert "'step'" not in refused.value.message
        assert "--sidecar" not in str(refused.value.hint)
        assert [file.name for file in tmp_path.iterdir()] == ["in.pth"]

    @pytest.mark.parametrize(
        "value", [float("nan"), {1: 2}, {"a": {"b": {3}}}, [torch.ones(1)], 1j], ids=repr
    )
    def test_what_json_cannot_say_stays_a_loss(self, tmp_path: Path, value: Any) -> None:
        path = save({"w": {"a": torch.ones(2)}, "epoch": 1, "odd": value}, tmp_path / "in.pth")
        output = Output(tmp_path / "o.safetensors", sidecar=tmp_path / "s.json")
        with pytest.raises(LossyEditError, match="'odd'") as refused:
            convert(path, output)
        assert "'epoch'" not in refused.value.message
        assert [file.name for file in tmp_path.iterdir()] == ["in.pth"]

    def test_deep_values_are_not_followed(self, tmp_path: Path) -> None:
        deep: Any = 1
        for _ in range(200):
            deep = [deep]
        path = save({"w": {"a": torch.ones(2)}, "deep": deep}, tmp_path / "in.pth")
        with pytest.raises(UsageError, match="nothing plain"):
            convert(path, Output(tmp_path / "o.safetensors", sidecar=tmp_path / "s.json"))

    def test_module_versions_are_said_to_be_left_out(self, tmp_path: Path) -> None:
        path = save(torch.nn.BatchNorm1d(2).state_dict(), tmp_path / "in.pth")
        report = convert(path, tmp_path / "o.safetensors")
        assert report.warnings == (
            "'_metadata' is left out: safetensors has no place for the versions of modules",
            "the order of the names is left out: safetensors sorts tensors by their type and name",
            "checksums are left out: safetensors has none; --verify compares them first",
        )

    def test_pickled_module_becomes_its_state_dict(self, tmp_path: Path) -> None:
        model = torch.nn.Linear(2, 2)
        report = convert(save(model, tmp_path / "in.pth"), tmp_path / "o.safetensors")
        assert report.plan == ({"edit": "convert", "from": "torch-module", "to": "safetensors"},)
        assert_loads(tmp_path / "o.safetensors", model.state_dict())

    def test_sidecar_that_is_given_is_not_advised(self, tmp_path: Path) -> None:
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
        training = {"w": {"a": torch.ones(2)}, "optimizer": optimizer, "epoch": 3}
        path, out = save(training, tmp_path / "in.pth"), tmp_path / "o.safetensors"
        for beside, advised in ((None, True), (tmp_path / "beside.json", False)):
            with pytest.raises(LossyEditError, match="'optimizer'") as refused:
                convert(path, Output(out, sidecar=beside))
            assert ("--sidecar" in str(refused.value.hint)) is advised
        assert not (tmp_path / "beside.json").exists()

    def test_names_that_cannot_be_written_are_losses(self, tmp_path: Path) -> None:
        path = save({"__metadata__": torch.ones(1), "a": torch.ones(1)}, tmp_path / "in.pth")
        with pytest.raises(LossyEditError, match=r"'__metadata__' \(a name"):
            convert(path, tmp_path / "o.safetensors")


class TestMetadata:
    def test_it_is_kept_by_every_verb_and_can_be_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        tensors = {"a": torch.rand(2), "b": torch.rand(2)}
        given = {"format": "pt", "author": "me"}
        safetensors.torch.save_file(tensors, path, given)
        out = tmp_path / "o.safetensors"
        output = Output(out, force=True)
        for edit in (
            lambda: strip(path, output, selection(prefix="a")),
            lambda: rename(path, output, [AddPrefix("m")]),
            lambda: convert(path, output),
            lambda: merge([path, path], output, method="average"),
        ):
            report = edit()
            assert metadata(out) == given
            assert report.carried == ("__metadata__",)
        options = LayoutOptions(metadata={"author": "you", "n": "1"})
        report = convert(path, Output(out, force=True, options=options))
        assert metadata(out) == {"format": "pt", "author": "you", "n": "1"}
        assert report.plan[-1] == {"edit": "set-metadata", "values": {"author": "you", "n": "1"}}
        (other,) = inspect(out).others
        assert other.value == metadata(out)

    def test_plan_that_sets_it_can_be_applied_again(self, tmp_path: Path) -> None:
        path, out = save({"a": torch.ones(2)}, tmp_path / "in.pth"), tmp_path / "o.safetensors"
        report = convert(path, Output(out, options=LayoutOptions(metadata={"format": "pt"})))
        plan = Plan.from_dict(json.loads(json.dumps(report.to_dict()["plan"])))
        with read(path) as checkpoint:
            write(plan.apply(checkpoint), Output(tmp_path / "again.safetensors"))
        assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()

    def test_formats_without_it_refuse_it(self, tmp_path: Path) -> None:
        path = save({"a": torch.ones(2)}, tmp_path / "in.pth")
        for options, said in (
            (LayoutOptions(metadata={"a": "b"}), "--metadata"),
            (LayoutOptions(duplicate_ties=True), "--duplicate-ties"),
        ):
            with pytest.raises(UsageError, match=said):
                convert(path, Output(tmp_path / "o.pth", options=options))


def test_big_endian_numbers_are_turned_round(tmp_path: Path) -> None:
    import zipfile

    dtypes = [torch.float32, torch.complex64, torch.int64, torch.float16, torch.uint8]
    tensors = {str(dtype): raw(dtype, 2, 3) for dtype in dtypes}
    path, big = save(tensors, tmp_path / "in.pth"), tmp_path / "big.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(big, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, b"big" if name.endswith("byteorder") else data)
    expected = load(big)
    convert(big, tmp_path / "o.safetensors")
    assert_loads(tmp_path / "o.safetensors", expected)


def test_new_types_in_safetensors_become_what_torch_saves(tmp_path: Path) -> None:
    """They were written as uint8, or into files that nobody reads (issue of the readers)."""
    with quiet():
        for dtype in DTYPES:
            tensors = {"w": raw(dtype, 4, 4), "s": torch.ones(1)}
            path, out = tmp_path / "a.safetensors", tmp_path / "o.pth"
            safetensors.torch.save_file(tensors, path)
            convert(path, Output(out, force=True))
            for weights_only in (True, False):
                found = load(out, weights_only=weights_only)
                expected = safetensors.torch.load_file(path)
                assert {n: (t.dtype, t.shape, bits(t)) for n, t in found.items()} == {
                    n: (t.dtype, t.shape, bits(t)) for n, t in expected.items()
                }
            assert [t["dtype"] for t in inspect(out).to_dict()["state_dicts"][0]["tensors"]] == [
                str(found[name].dtype)[6:] for name in found
            ]


NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(
    lambda name: name not in {"__metadata__", "format"}
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of all types and shapes; some are views of others, some tied."""
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    found: dict[str, torch.Tensor] = {}
    for name in names:
        made = list(found.values())
        if made and draw(st.booleans()):
            tensor = draw(st.sampled_from(made))
            kind = draw(st.sampled_from(["tie", "transposed", "part", "step", "expanded"]))
            if kind == "transposed":
                tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
            elif kind == "part" and tensor.dim():
                tensor = tensor[1:]
            elif kind == "step" and tensor.dim():
                tensor = tensor[..., ::2]
            elif kind == "expanded":
                tensor = tensor.expand((2, *tensor.shape))
            found[name] = tensor
        else:
            dtype = draw(st.sampled_from(DTYPES))
            shape = draw(SHAPES)
            if dtype == torch.float4_e2m1fn_x2 and not shape:
                shape = (2,)
            found[name] = raw(dtype, *shape)
    packed = torch.float4_e2m1fn_x2
    return {n: t for n, t in found.items() if t.dtype != packed or t.dim()}


@settings(max_examples=150, deadline=None)
@given(state_dicts())
def test_any_state_dict_comes_through_and_back(tensors: dict[str, torch.Tensor]) -> None:
    with quiet(), TemporaryDirectory() as name:
        folder = Path(name)
        apart = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        duplicated = written(tensors, folder, options=LayoutOptions(duplicate_ties=True))
        assert duplicated.read_bytes() == library(apart, folder)
        out = written(tensors, folder)
        aliases = metadata(out) or {}
        theirs = safetensors.torch.load_file(out)
        assert set(theirs) | set(aliases) == set(tensors)
        for key, tensor in tensors.items():
            assert bits(theirs[aliases.get(key, key)]) == bits(tensor)
        convert(out, folder / "back.pth")
        back = load(folder / "back.pth")
        assert set(back) == set(tensors)
        for key, tensor in tensors.items():
            assert (back[key].dtype, back[key].shape) == (tensor.dtype, tensor.shape)
            assert bits(back[key]) == bits(tensor)
            if key in aliases:
                assert back[key].data_ptr() == back[aliases[key]].data_ptr()
        convert(folder / "back.pth", Output(folder / "again.safetensors"))
        assert safetensors.torch.load_file(folder / "again.safetensors").keys() == theirs.keys()
