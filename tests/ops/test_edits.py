"""What `strip`, `rename` and `convert` write, keep, refuse and report."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_checks import assert_same, assert_torch_reads, load, plain_tensors, save

from ckpt_surgery import AddPrefix, Output, convert, inspect, read, rename, selection, strip
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.errors import LossyEditError, UsageError, WriteError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.reports.edits import EditReport


class Unknown:
    """A class that no reader of the file needs to know."""

    def __init__(self) -> None:
        self.table = {"a": torch.arange(3.0), ("tuple", 1): [np.arange(4), np.float64(0.5)]}
        self.itself = self


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    made[2].weight = made[0].weight
    return made


def training() -> dict[str, Any]:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cuda:1"), layers=[1, 2]),
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "unknown": Unknown(),
        "random": torch.get_rng_state(),
    }


EDITS: dict[str, Callable[[Path, Path], EditReport]] = {
    "strip": lambda path, out: strip(path, out, selection(pattern="running_mean")),
    "strip --at": lambda path, out: strip(
        path, out, selection(pattern="running_mean"), at=["state_dict"]
    ),
    "strip --training-state": lambda path, out: strip(path, out, training_state=True),
    "strip --compact": lambda path, out: strip(path, out, compact=True),
    "rename": lambda path, out: rename(path, out, [AddPrefix("module")]),
    "convert": convert,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(training(), tmp_path_factory.mktemp("edits") / "train.pth")


@pytest.mark.parametrize("name", EDITS)
def test_unknown_object_survives_every_command(name: str, trained: Path, tmp_path: Path) -> None:
    report = EDITS[name](trained, tmp_path / "out.pth")
    found, expected = load(tmp_path / "out.pth"), load(trained)
    assert found["unknown"].itself is found["unknown"]
    assert_same(found["unknown"].table, expected["unknown"].table)
    assert_same(found["args"], expected["args"])
    assert {"unknown", "args", "epoch"} <= set(report.carried)


@pytest.mark.parametrize("name", EDITS)
def test_ties_stay_tied_after_every_command(name: str, trained: Path, tmp_path: Path) -> None:
    EDITS[name](trained, tmp_path / "out.pth")
    weights = [t for n, t in load(tmp_path / "out.pth")["state_dict"].items() if "weight" in n]
    first, _, last = weights
    assert first.untyped_storage()._cdata == last.untyped_storage()._cdata
    assert [len(names) for names in inspect(tmp_path / "out.pth").ties] == [2]


@pytest.mark.parametrize("name", EDITS)
def test_report_accounts_for_every_entry(name: str, trained: Path, tmp_path: Path) -> None:
    report = EDITS[name](trained, tmp_path / "out.pth")
    names = {f"state_dict/{key}" for key in load(trained)["state_dict"]}
    assert {*report.kept, *report.removed, *(old for old, _ in report.renamed)} == names
    after = {f"state_dict/{key}" for key in load(tmp_path / "out.pth")["state_dict"]}
    assert {*report.kept, *(new for _, new in report.renamed)} == after
    others = set(load(trained)) - {"state_dict"}
    assert {*report.carried, *report.dropped} == others
    assert set(load(tmp_path / "out.pth")) == {*report.carried, "state_dict"}
    assert report.nbytes_before == trained.stat().st_size
    assert report.nbytes_after == (tmp_path / "out.pth").stat().st_size
    assert report.exit_code == 0
    document = report.to_dict()
    assert document["schema"] == 1
    assert document["inputs"] == [str(trained)]
    assert document["output"] == str(tmp_path / "out.pth")


@pytest.mark.parametrize("name", EDITS)
def test_everything_else_is_equal_bit_for_bit(name: str, trained: Path, tmp_path: Path) -> None:
    EDITS[name](trained, tmp_path / "out.pth")
    found, expected = load(tmp_path / "out.pth"), load(trained)
    for each in (found, expected):
        del each["unknown"]  # it refers to itself
    expected["state_dict"] = {
        new: expected["state_dict"][new.removeprefix("module.")] for new in found["state_dict"]
    }
    found["state_dict"] = dict(found["state_dict"])
    if "optimizer" not in found:
        del expected["optimizer"]
    assert_same(found, expected)


@pytest.mark.parametrize("training_state", [False, True])
def test_strip_writes_what_torch_would_save(training_state: bool, tmp_path: Path) -> None:
    value = training()
    path, out = save(value, tmp_path / "train.pth"), tmp_path / "out" / "train.pth"
    out.parent.mkdir()
    strip(path, out, selection(prefix="1"), training_state=training_state)
    for name in [n for n in value["state_dict"] if n.startswith("1.")]:
        del value["state_dict"][name]
    del value["state_dict"]._metadata["1"]
    if training_state:
        del value["optimizer"]
    else:
        group = value["optimizer"]["param_groups"][0]
        kept = [i for i, (n, _) in enumerate(net().named_parameters()) if n[:2] != "1."]
        states = value["optimizer"]["state"]
        value["optimizer"]["state"] = {i: states[key] for i, key in enumerate(kept)}
        group["params"] = list(range(len(kept)))
    assert out.read_bytes() == save(value, path).read_bytes()


def test_an_optimizer_changes_only_with_its_parameters(trained: Path, tmp_path: Path) -> None:
    choice = selection(pattern="running_mean")
    report = strip(trained, Output(tmp_path / "out.pth"), choice)
    assert (report.warnings, report.optimizers) == ((), ())
    report = strip(trained, Output(tmp_path / "a.pth"), selection(prefix="1"))
    assert [change.action for change in report.optimizers] == ["updated"]
    report = strip(trained, Output(tmp_path / "b.pth"), choice, training_state=True)
    assert report.warnings == ()
    assert "optimizer" in report.dropped
    assert strip(trained, Output(tmp_path / "c.pth"), compact=True).warnings == ()


def test_rules_and_plan_are_in_the_report(trained: Path, tmp_path: Path) -> None:
    report = rename(trained, tmp_path / "out.pth", [AddPrefix("net")])
    assert report.rules == ({"rule": "add-prefix", "prefix": "net.", "matched": 9},)
    assert report.plan[0] == {
        "edit": "rename",
        "state_dict": "state_dict",
        "from": "0.weight",
        "to": "net.0.weight",
    }


# --- where it goes


def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(3), "b": torch.zeros(4), "c": torch.arange(2)}


CHOICE = selection(keys=["a"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(weights(), tmp_path / "w.pth")


def test_edit_in_place_replaces_the_input(path: Path) -> None:
    report = strip(path, Output(in_place=True), CHOICE)
    assert report.output == str(path)
    assert list(load(path)) == ["b", "c"]


def test_edit_writes_to_a_descriptor(path: Path, tmp_path: Path) -> None:
    with (tmp_path / "stream").open("wb") as stream:
        report = strip(path, Output(stream=stream.fileno()), CHOICE)
    assert report.output == "<stdout>"
    assert_torch_reads(tmp_path / "stream", {k: v for k, v in weights().items() if k != "a"})


def test_standard_input_has_no_place(path: Path) -> None:
    stream = FileSource.from_stream(io.BytesIO(path.read_bytes()))
    with pytest.raises(UsageError, match="is no file of its own"):
        strip(stream, Output(in_place=True), CHOICE)


def test_stream_is_edited_like_a_file(path: Path, tmp_path: Path) -> None:
    stream = FileSource.from_stream(io.BytesIO(path.read_bytes()))
    report = strip(stream, tmp_path / "o.pth", CHOICE)
    assert report.inputs == ("<stdin>",)
    assert list(load(tmp_path / "o.pth")) == ["b", "c"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Output(), "there is no output"),
        (Output("x.pth", in_place=True), "contradict"),
        (Output("x.pth", stream=1), "contradict"),
        (Output(stream=1, in_place=True), "contradict"),
        (Output("x.onnx"), "'.onnx' files cannot be written"),
        (Output("x.JSON"), "'.json' files cannot be written"),
    ],
)
def test_output_that_makes_no_sense_is_refused(output: Output, message: str, path: Path) -> None:
    for edit in (lambda: strip(path, output, CHOICE), lambda: convert(path, output)):
        with pytest.raises(UsageError, match=message):
            edit()
    assert list(path.parent.iterdir()) == [path]


def test_format_overrides_the_suffix(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    strip(path, Output(out, format="torch-zip"), CHOICE)
    assert list(load(out.rename(tmp_path / "x.pth"))) == ["b", "c"]


def test_existing_output_is_not_replaced_unasked(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.pth"
    out.write_text("precious")
    with pytest.raises(WriteError, match="exists"):
        strip(path, out, CHOICE)
    assert out.read_text() == "precious"
    strip(path, Output(out, force=True), CHOICE)
    assert list(load(out)) == ["b", "c"]


@pytest.mark.parametrize("name", ["strip", "rename", "convert"])
def test_dry_run_touches_nothing(name: str, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes(), path.stat().st_mtime_ns
    edits: dict[str, Callable[[Output], EditReport]] = {
        "strip": lambda output: strip(path, output, CHOICE, compact=True),
        "rename": lambda output: rename(path, output, [AddPrefix("x")]),
        "convert": lambda output: convert(path, output),
    }
    report = edits[name](Output(tmp_path / "o.pth", dry_run=True))
    assert report.output is None
    assert list(tmp_path.iterdir()) == [path]
    assert edits[name](Output(dry_run=True)).to_dict() == report.to_dict()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    real = edits[name](Output(tmp_path / "o.pth"))
    assert real.to_dict() | {"output": None} == report.to_dict()


def test_progress_counts_every_byte(path: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    @contextmanager
    def bar(total: int) -> Iterator[Callable[[int], object]]:
        seen.append(-total)
        yield seen.append

    report = convert(path, Output(tmp_path / "o.pth", progress=bar))
    assert seen[0] == -report.nbytes_after
    assert sum(seen) == 0


# --- formats that are only read


def test_pickled_module_is_edited_as_its_state_dict(tmp_path: Path) -> None:
    path, out = save(net(), tmp_path / "module.pth"), tmp_path / "out.pth"
    report = strip(path, out, selection(pattern="running"))
    assert report.plan[-1] == {"edit": "convert", "from": "torch-module", "to": "torch-zip"}
    assert report.format == "torch-zip"
    expected = {k: v for k, v in net().state_dict().items() if "running" not in k}
    assert_same(dict(load(out)), expected)


def test_pickled_module_is_replaced_only_if_that_is_said(tmp_path: Path) -> None:
    path = save(net(), tmp_path / "module.pth")
    before = path.read_bytes()
    with pytest.raises(LossyEditError, match="without a pickled module") as refused:
        strip(path, Output(in_place=True), selection(pattern="running"))
    assert "--format torch-zip" in str(refused.value.hint)
    assert path.read_bytes() == before
    strip(path, Output(in_place=True, format="torch-zip"), selection(pattern="running"))
    assert "bn.running_mean" not in load(path)


def test_torchscript_is_edited_as_its_state_dict(shared_dir: Path, tmp_path: Path) -> None:
    path = shared_dir / "real" / "silero-vad" / "silero_vad_2023-04.jit"
    with read(path) as checkpoint:
        names = checkpoint.state_dicts[0].names
        others = [other.path for other in checkpoint.others]
    report = rename(path, tmp_path / "out.pth", [AddPrefix("x")])
    assert report.plan[-1] == {"edit": "convert", "from": "torchscript", "to": "torch-zip"}
    assert report.dropped == tuple(others)
    assert list(load(tmp_path / "out.pth")) == [f"x.{name}" for name in names]


def test_safetensors_is_edited_into_an_archive(tmp_path: Path) -> None:
    path, out = tmp_path / "w.safetensors", tmp_path / "out.pth"
    save_file(weights(), path, {"author": "me"})
    report = strip(path, out, CHOICE)
    assert report.plan[-1] == {"edit": "convert", "from": "safetensors", "to": "torch-zip"}
    assert report.dropped == ("__metadata__",)
    assert_same(dict(load(out)), {name: weights()[name] for name in ("c", "b")})


def test_legacy_file_is_edited_into_an_archive(tmp_path: Path) -> None:
    path, out = tmp_path / "old.pth", tmp_path / "out.pth"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    report = strip(path, out, CHOICE)
    assert report.plan[-1] == {"edit": "convert", "from": "torch-legacy", "to": "torch-zip"}
    assert_torch_reads(out, {k: v for k, v in weights().items() if k != "a"})


def test_errors_of_plans_name_the_file(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        strip(path, tmp_path / "out.pth", selection(pattern="zzz"))
    assert caught.value.path == path


# --- convert


def test_state_dict_is_taken_out_alone(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    report = convert(trained, out, state_dict_only=True)
    assert_same(load(out), load(trained)["state_dict"])
    assert report.carried == ()
    assert set(report.dropped) == set(load(trained)) - {"state_dict"}


@pytest.mark.parametrize("at", [None, "model", "ema"])
def test_strip_and_convert_take_the_same_state_dict_alone(at: str | None, tmp_path: Path) -> None:
    """Of a model with its average the model, unless the average is asked for."""
    value = {"model": weights(), "ema": weights(), "epoch": 1}
    path = save(value, tmp_path / "w.pth")
    converted = convert(path, tmp_path / "c.pth", state_dict_only=True, at=at)
    stripped = strip(path, tmp_path / "s.pth", state_dict_only=True, at=[] if at is None else [at])
    assert (tmp_path / "c.pth").read_bytes() == (tmp_path / "s.pth").read_bytes()
    assert set(converted.dropped) == set(stripped.dropped) == set(value) - {at or "model"}
    assert_same(dict(load(tmp_path / "c.pth")), dict(value[at or "model"]))


def test_one_of_several_is_chosen(tmp_path: Path) -> None:
    path = save({"g": weights(), "d": weights(), "ema": weights()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="there are 3 state dicts") as caught:
        convert(path, tmp_path / "out.pth", state_dict_only=True)
    assert caught.value.hint == "choose one, for example with --at g"
    convert(path, tmp_path / "out.pth", state_dict_only=True, at="ema")
    assert list(load(tmp_path / "out.pth")) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="no state dict there"):
        convert(path, tmp_path / "other.pth", at="nowhere")


def test_strip_and_convert_keep_the_same_beside_the_one_at_a_path(tmp_path: Path) -> None:
    value = {"model": weights(), "ema": weights(), "epoch": 1}
    path = save(value, tmp_path / "w.pth")
    converted = convert(path, tmp_path / "c.pth", at="ema", dtypes=["float64"])
    stripped = strip(path, tmp_path / "s.pth", selection(prefix="a"), at=["ema"])
    assert converted.carried == stripped.carried == ("epoch",)
    assert converted.dropped == stripped.dropped == ()
    assert not converted.warnings
    ema = {n: t.double() if t.is_floating_point() else t for n, t in value["ema"].items()}
    assert_same(load(tmp_path / "c.pth"), value | {"ema": ema})


def test_at_that_narrows_nothing_says_so_and_writes_all(tmp_path: Path) -> None:
    value = {"model": weights(), "ema": weights(), "epoch": 1}
    path = save(value, tmp_path / "w.pth")
    report = convert(path, tmp_path / "out.pth", at="ema")
    assert_same(load(tmp_path / "out.pth"), value)
    assert "--state-dict-only writes that state dict alone" in report.warnings[0]
    with pytest.raises(UsageError, match="no state dict there"):
        convert(path, tmp_path / "other.pth", at="nowhere", dtypes=["float64"])
    alone = save(weights(), tmp_path / "alone.pth")
    assert not convert(alone, tmp_path / "same.pth", at="").warnings


def test_views_of_a_state_dict_taken_alone_keep_their_storages(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    path = save({"model": {"a": base[:4], "b": base[2:]}, "epoch": 1}, tmp_path / "w.pth")
    convert(path, tmp_path / "out.pth", state_dict_only=True)
    found = list(plain_tensors(load(tmp_path / "out.pth")))
    assert {t.untyped_storage().nbytes() for t in found} == {40}


def test_renaming_many_names_does_not_ask_every_edit_of_every_name(tmp_path, monkeypatch):
    """The work of 500 renamings is that of 500, not of their square."""
    torch.save({f"layers.{i}.weight": torch.zeros(1) for i in range(500)}, tmp_path / "f.pth")
    asked = 0

    def path_after(self: Edit, path: str) -> str | None:
        nonlocal asked
        asked += 1
        return path

    monkeypatch.setattr(Edit, "path_after", path_after)
    output = Output(tmp_path / "g.pth")
    report = rename(tmp_path / "f.pth", output, [AddPrefix("net.")])
    assert (len(report.renamed), report.kept) == (500, ())
    assert asked <= 500
