"""Merges that compute: policies where files differ, what is kept, what is refused."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

import pytest
import torch

from ckpt_surgery import (
    DamagedFileError,
    MergeScope,
    MismatchError,
    NonFiniteError,
    Output,
    ReadError,
    UsageError,
    inspect,
    merge,
    merge_recipe,
    selection,
)
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.merge.recipe import Override
from ckpt_surgery.models.torchvision_import import import_torchvision

torchvision = import_torchvision()


def net(seed):
    torch.manual_seed(seed)
    layers = OrderedDict(conv=torch.nn.Conv2d(3, 4, 3), bn=torch.nn.BatchNorm2d(4))
    model = torch.nn.Sequential(layers)
    model(torch.randn(2 + seed, 3, 8, 8))
    for _ in range(seed):
        model(torch.randn(2, 3, 8, 8))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        torch.save({"model": net(seed).state_dict(), "epoch": seed}, f"{name}.pth")
    return tmp_path


def load(name="o.pth"):
    return torch.load(name, weights_only=False)


def save(name, **tensors):
    torch.save({k: torch.as_tensor(v) for k, v in tensors.items()}, name)


def test_average_is_the_mean_and_everything_else_the_bases(folder):
    report = merge(["a.pth", "b.pth", "c.pth"], "o.pth", "average")
    a, b, c, o = (load(f"{name}.pth") for name in "abco")
    for key, value in a["model"].items():
        if value.is_floating_point():
            mean = (value.double() + b["model"][key].double() + c["model"][key].double()) / 3
            assert torch.equal(o["model"][key], mean.float()), key
    assert o["model"]["bn.num_batches_tracked"] == a["model"]["bn.num_batches_tracked"]
    assert o["epoch"] == 0
    assert o["model"]._metadata == a["model"]._metadata
    assert report.copied == (("model/bn.num_batches_tracked", "integers of the base"),)
    assert report.carried == ("epoch",)
    assert any("update_bn" in warning for warning in report.warnings)


def test_average_of_equal_files_is_the_file(folder):
    merge(["a.pth", "a.pth", "a.pth"], "o.pth", "average")
    assert (folder / "o.pth").read_bytes() == (folder / "a.pth").read_bytes()


def test_order_does_not_matter_for_average(folder):
    merge(["a.pth", "b.pth", "c.pth"], "o.pth", "average", base="a.pth")
    merge(["c.pth", "a.pth", "b.pth"], "p.pth", "average", base="a.pth")
    assert (folder / "o.pth").read_bytes() == (folder / "p.pth").read_bytes()


def test_the_number_of_threads_and_memory_change_nothing(folder):
    torch.manual_seed(0)
    for name in "xyz":
        torch.save(
            {"w": torch.randn(1500, 1500), "v": torch.randn(7), "e": torch.empty(0, 3)}, name
        )
    for method, numbers in (("average", {}), ("ties", {"density": 0.5}), ("slerp", {"t": 0.3})):
        sources = ["x", "y"] if method == "slerp" else ["x", "y", "z"]
        merge(sources, "one", method, parameters=numbers, threads=1, memory=1)
        merge(sources, "many", method, parameters=numbers, threads=5)
        assert (folder / "one").read_bytes() == (folder / "many").read_bytes(), method
        for name in ("one", "many"):
            (folder / name).unlink()


def test_archives_older_than_their_layout_are_streamed_too(folder):
    """Their storages lie in the order of their names as text: 0, 1, 10, 2."""
    tensors = {f"w{i}": torch.randn(5) for i in range(12)}
    torch.save(tensors, "old.pth", _use_new_zipfile_serialization=False)
    merge(["old.pth", "old.pth"], "o.pth", "average", memory=1)
    assert all(torch.equal(load()[k], v) for k, v in tensors.items())


def test_linear_with_weights_one_and_zero_is_the_first_file(folder):
    report = merge(["a.pth", "b.pth"], "o.pth", "linear", weights=[1, 0])
    assert (folder / "o.pth").read_bytes() == (folder / "a.pth").read_bytes()
    assert [each.weight for each in report.inputs] == [1, 0]


@pytest.mark.parametrize(("t", "end"), [(0, "a"), (1, "b")])
@pytest.mark.parametrize("method", ["slerp", "lerp"])
def test_the_ends_of_an_interpolation_are_the_files(folder, method, t, end):
    merge(["a.pth", "b.pth"], "o.pth", method, parameters={"t": t})
    wanted, o = load(f"{end}.pth")["model"], load()["model"]
    assert all(torch.equal(o[k], v) for k, v in wanted.items() if v.is_floating_point())


def test_ties_with_one_model_and_full_density_is_that_model(folder):
    report = merge(["a.pth", "b.pth"], "o.pth", "ties", parameters={"density": 1})
    wanted, o = load("b.pth")["model"], load()["model"]
    assert all(torch.equal(o[k], v) for k, v in wanted.items() if v.is_floating_point())
    assert [(each.file, each.base) for each in report.inputs] == [("a.pth", True), ("b.pth", False)]


def test_a_seed_decides_what_is_drawn(folder):
    half = {"density": 0.5}
    for name, seed in (("o.pth", 1), ("p.pth", 1), ("q.pth", 2)):
        merge(["a.pth", "b.pth"], name, "dare-linear", parameters=half, seed=seed)
    assert (folder / "o.pth").read_bytes() == (folder / "p.pth").read_bytes()
    assert (folder / "o.pth").read_bytes() != (folder / "q.pth").read_bytes()


def test_a_base_beside_the_inputs_gives_the_rest(folder):
    report = merge(["a.pth", "b.pth"], "o.pth", "average", base="c.pth")
    assert load()["epoch"] == 2
    assert report.policies["other_state"] == "from c.pth"
    assert [each.base for each in report.inputs] == [True, False, False]
    report = merge(["a.pth", "b.pth"], "p.pth", "average", scope=MergeScope(state_dict_only=True))
    assert report.policies["other_state"] == "dropped"
    assert "epoch" not in load("p.pth")


def test_keys_that_differ(folder):
    save("x", both=[1.0], only_x=[1.0])
    save("y", both=[3.0], only_y=[2.0])
    with pytest.raises(UsageError, match=r"'only_x'.*'only_y'"):
        merge(["x", "y"], "o.pth", "average")
    report = merge(["x", "y"], "u.pth", "average", keys="union")
    assert {k: v.item() for k, v in load("u.pth").items()} == {
        "both": 2, "only_x": 1, "only_y": 2,
    }  # fmt: skip
    assert report.inputs[1].taken == 1
    report = merge(["x", "y"], "i.pth", "average", keys="intersection")
    assert list(load("i.pth")) == ["both"]
    assert report.skipped == (("only_x", "not in every file"),)
    save("z", other=[1.0])
    with pytest.raises(UsageError, match="no name in common"):
        merge(["x", "z"], "n.pth", "average", keys="union")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("base", [1.0, 1.0, 1.0]), ("overlap", [2.0, 2.0, 1.0]), ("skip", None)],
)
def test_shapes_that_differ(folder, policy, expected):
    save("x", w=[1.0, 1.0, 1.0], same=[1.0])
    save("y", w=[3.0, 3.0], same=[2.0])
    with pytest.raises(MismatchError, match="shapes"):
        merge(["x", "y"], "e.pth", "average")
    merge(["x", "y"], "o.pth", "average", on_shape=policy)
    found = load().get("w")
    assert found is None if expected is None else found.tolist() == expected


@pytest.mark.parametrize(
    ("policy", "counter", "index"),
    [("base", 3, [1, 2]), ("max", 7, [5, 2]), ("sum", 10, [6, 4]), ("mean", 5, [3, 2])],
)
def test_integers(folder, policy, counter, index):
    save("x", w=[1.0], num_batches_tracked=3, index=[1, 2])
    save("y", w=[1.0], num_batches_tracked=7, index=[5, 2])
    with pytest.raises(MismatchError, match="'index'"):
        merge(["x", "y"], "e.pth", "average")
    merge(["x", "y"], "o.pth", "average", integers=policy)
    assert load()["num_batches_tracked"].item() == counter
    assert load()["index"].tolist() == index


def test_types_of_different_kinds_are_refused(folder):
    save("x", w=[1.0])
    save("y", w=[1])
    with pytest.raises(MismatchError, match="cannot be merged from float32 and int64"):
        merge(["x", "y"], "o.pth", "average")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_quantized_tensors_must_be_equal(folder):
    def quantized(value):
        return torch.quantize_per_tensor(torch.tensor([value]), 0.1, 0, torch.qint8)

    torch.save({"w": torch.ones(1), "q": quantized(1.0)}, "x")
    torch.save({"w": torch.zeros(1), "q": quantized(2.0)}, "y")
    report = merge(["x", "x"], "o.pth", "average")
    assert report.copied == (("q", "qint8, equal in all files"),)
    with pytest.raises(MismatchError, match="qint8 tensor 'q' differs"):
        merge(["x", "y"], "p.pth", "average")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named_and_refused(folder, value):
    save("x", w=[1.0, value])
    save("y", w=[1.0, 2.0])
    with pytest.raises(NonFiniteError, match="'w' holds") as caught:
        merge(["y", "x"], "o.pth", "average")
    assert (str(caught.value.path), caught.value.entry) == ("x", "w")
    assert not [path for path in folder.iterdir() if path.name[0] in ".o"]
    merge(["y", "x"], "o.pth", "average", allow_nonfinite=True)
    assert not load()["w"].isfinite().all()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_types_keep_and_change(folder, dtype):
    torch.manual_seed(0)
    x, y = (torch.randn(4, 6).to(dtype) for _ in range(2))
    torch.save({"w": x, "t": x.t() if dtype.itemsize > 1 else x}, "x")
    torch.save({"w": y, "t": y.t() if dtype.itemsize > 1 else y}, "y")
    merge(["x", "y"], "o.pth", "average")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = ((x.to(wide) + y.to(wide)) / 2).to(dtype)
    assert load()["w"].dtype == dtype
    assert torch.equal(load()["w"].to(wide), expected.to(wide))
    assert torch.equal(load()["t"].to(wide), load()["w"].t().to(wide) if dtype.itemsize > 1
                       else load()["w"].to(wide))  # fmt: skip
    if not dtype.is_complex:
        merge(["x", "y"], "p.pth", "average", dtype="bfloat16")
        assert load("p.pth")["w"].dtype == torch.bfloat16


def test_conjugated_views_are_merged_by_value(folder):
    z = torch.randn(5, dtype=torch.complex64)
    torch.save({"w": z.conj()}, "x")
    torch.save({"w": z.conj().resolve_conj()}, "y")
    merge(["x", "y"], "o.pth", "average")
    assert torch.equal(load()["w"], z.conj().resolve_conj())


def test_ties_are_merged_once_and_stay(folder):
    for name, seed in (("x", 0), ("y", 1)):
        torch.manual_seed(seed)
        w = torch.randn(3)
        torch.save({"encoder": w, "decoder": w, "other": torch.randn(3)}, name)
    report = merge(["x", "y"], "o.pth", "average")
    o = load()
    assert o["encoder"].data_ptr() == o["decoder"].data_ptr()
    assert inspect("o.pth").ties == (("encoder", "decoder"),)
    assert report.nbytes_after == (folder / "x").stat().st_size


def test_a_tie_that_one_file_does_not_have_is_broken_and_said(folder):
    w = torch.ones(3)
    torch.save({"a": w, "b": w}, "x")
    save("y", a=[3.0] * 3, b=[5.0] * 3)
    report = merge(["x", "y"], "o.pth", "average")
    assert load()["a"].tolist() == [2] * 3
    assert load()["b"].tolist() == [3] * 3
    assert report.warnings == ("'a' and 'b' were tied and are no longer",)


def test_views_that_are_merged_one_by_one_are_said(folder):
    w = torch.ones(4, 4)
    torch.save({"w": w, "rows": w[1:3], "turned": w.t(), "alone": torch.ones(2)}, "x")
    halves = torch.ones(8)
    torch.save({"a": halves[:4], "b": halves[4:], "c": torch.ones(2)}, "y")
    report = merge(["x", "x"], "o.pth", "average")
    assert report.warnings == (
        "no longer views of elements of 'w': turned, rows",
        "computed, and laid out row by row, without the strides before: 'turned'",
    )
    assert merge(["y", "y"], Output("o.pth", force=True), "average").warnings == ()


def test_one_file_can_be_passed_through(folder):
    save("x", w=[1.0, 2.0])
    merge(["x"], "o.pth", "passthrough", parameters={"scale": 2})
    assert load()["w"].tolist() == [2, 4]
    with pytest.raises(UsageError, match="one file is nothing to merge"):
        merge(["x"], "p.pth", "average")


def test_tensors_that_merge_only_where_they_overlap_are_named(folder):
    save("x", w=[1.0, 2.0], b=[1.0])
    save("y", w=[3.0, 4.0, 5.0], b=[1.0])
    report = merge(["x", "y"], "o.pth", "average", on_shape="overlap")
    assert report.warnings == ("only where their shapes overlap were merged: w",)


def test_the_report_has_the_weights_of_mergekits_yaml(folder):
    save("x", w=[1.0], b=[1.0])
    save("y", w=[2.0], b=[2.0])
    (folder / "r.yml").write_text(
        "merge_method: linear\nmodels:\n"
        "- {model: x, parameters: {weight: 0.7}}\n"
        "- {model: y, parameters: {weight: [{filter: b, value: 1}, {value: 0.3}]}}\n"
    )
    report = merge_recipe("r.yml", "o.pth")
    assert [each.weight for each in report.inputs] == [0.7, 0.3]


def test_parameters_and_attributes_of_tensors_stay(folder):
    for name in "xy":
        tensor = torch.nn.Parameter(torch.ones(2))
        torch.save({"p": tensor, "q": torch.ones(2)}, name)
    merge(["x", "y"], "o.pth", "average")
    assert isinstance(load()["p"], torch.nn.Parameter)
    assert load()["p"].requires_grad


def test_views_become_tensors_of_their_own(folder):
    flat = torch.arange(10.0)
    torch.save({"x": flat[:6].view(2, 3).t(), "y": flat[4:]}, "v")
    merge(["v", "v"], "o.pth", "average")
    assert torch.equal(load()["x"], flat[:6].view(2, 3).t())
    assert load()["x"].is_contiguous()
    assert inspect("o.pth").totals.unused_nbytes == 0


def test_a_selection_merges_only_what_it_takes(folder):
    report = merge(
        ["a.pth", "b.pth"], "o.pth", "average", scope=MergeScope(selection(prefix="conv"))
    )
    assert report.merged == ("model/conv.weight", "model/conv.bias")
    assert torch.equal(load()["model"]["bn.weight"], load("a.pth")["model"]["bn.weight"])
    assert report.rules[0]["matched"] == 2


def test_overrides_weigh_some_tensors_otherwise(folder):
    override = Override("prefix", "conv", {"weight": (0.0, 1.0)})
    merge(["a.pth", "b.pth"], "o.pth", "linear", weights=[1, 0], overrides=[override])
    a, b, o = load("a.pth")["model"], load("b.pth")["model"], load()["model"]
    assert torch.equal(o["conv.weight"], b["conv.weight"])
    assert torch.equal(o["bn.running_mean"], a["bn.running_mean"])
    nowhere = Override("prefix", "nose", {"weight": (0.0, 1.0)})
    with pytest.raises(UsageError, match="prefix:nose"):
        merge(["a.pth", "b.pth"], "p.pth", "linear", overrides=[nowhere])


def test_a_recipe_says_everything(folder):
    (folder / "r.toml").write_text(
        'method = "ties"\nbase = "a.pth"\n[parameters]\ndensity = 0.5\n'
        '[[inputs]]\nfile = "b.pth"\nweight = 0.7\n[[inputs]]\nfile = "c.pth"\nweight = 0.3\n'
        '[[for]]\nselect = "prefix:bn"\nskip = true\n'
    )
    report = merge_recipe("r.toml", "o.pth")
    assert report.merged == ("model/conv.weight", "model/conv.bias")
    assert ("model/bn.weight", "skipped by the recipe") in report.copied
    merge(
        ["a.pth", "b.pth", "c.pth"], "p.pth", "ties",
        weights=[0.7, 0.3], parameters={"density": 0.5},
        overrides=[Override("prefix", "bn", skip=True)],
    )  # fmt: skip
    assert (folder / "o.pth").read_bytes() == (folder / "p.pth").read_bytes()


def test_mergekits_configuration_is_read(folder):
    pytest.importorskip("yaml")
    (folder / "r.yml").write_text(
        "merge_method: linear\nmodels:\n- {model: a.pth, parameters: {weight: 1}}\n"
        "- {model: b.pth, parameters: {weight: 3}}\n"
    )
    merge_recipe("r.yml", "o.pth")
    merge(["a.pth", "b.pth"], "p.pth", "linear", weights=[1, 3])
    assert (folder / "o.pth").read_bytes() == (folder / "p.pth").read_bytes()


def test_dry_run_reports_what_the_real_run_does(folder):
    dry = merge(["a.pth", "b.pth"], Output(dry_run=True), "average").to_dict()
    real = merge(["a.pth", "b.pth"], "o.pth", "average").to_dict()
    assert dry | {"output": "o.pth"} == real
    assert real["nbytes_after"] == (folder / "o.pth").stat().st_size
    assert real["peak_bytes"] > 0


def test_in_place_replaces_the_base(folder):
    expected = merge(["a.pth", "b.pth"], "o.pth", "average")
    merge(["a.pth", "b.pth"], Output(in_place=True), "average")
    assert (folder / "o.pth").read_bytes() == (folder / "a.pth").read_bytes()
    assert expected.output == "o.pth"


@pytest.mark.parametrize(
    ("sources", "method", "more", "message"),
    [
        (["a.pth"], "average", {}, "one file"),
        (["a.pth"], "overlay", {}, "one file"),
        ([], "average", {}, "no file"),
        (["a.pth", "b.pth"], "averge", {}, "unknown method"),
        (["a.pth", "b.pth"], "linear", {"weights": [1.0]}, "1 weight for 2"),
        (["a.pth", "b.pth"], "average", {"weights": [1, 1]}, "takes no weights"),
        (["a.pth", "b.pth"], "ties", {"parameters": {"densty": 1}}, "no parameter 'densty'"),
        (["a.pth", "b.pth"], "slerp", {}, "needs 't'"),
        (["a.pth", "b.pth"], "average", {"same_shape": True}, "no meaning"),
        (["a.pth", "b.pth"], "overlay", {"keys": "union"}, "no meaning"),
        (["a.pth", "b.pth"], "overlay", {"memory": 5}, "no meaning"),
        (["a.pth", "b.pth"], "average", {"threads": 0}, "threads 0"),
        (["a.pth", "b.pth"], "average", {"dtype": "int8"}, "floating type"),
        (["a.pth", "b.pth"], "average", {"scope": MergeScope(renames={3: []})}, "no file 3"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(folder, sources, method, more, message):
    with pytest.raises(UsageError, match=message):
        merge(sources, "o.pth", method, **more)
    assert not (folder / "o.pth").exists()


@pytest.mark.parametrize("method", ["overlay", "average", "ties"])
def test_a_missing_base_is_an_error(folder, method):
    with pytest.raises(ReadError, match="no such file"):
        merge(["a.pth", "b.pth"], "o.pth", method, base="nowhere.pth")


@pytest.mark.parametrize("method", ["average", "ties", "overlay"])
def test_a_file_that_shrinks_during_the_run_leaves_nothing_behind(folder, monkeypatch, method):
    for name in "xy":
        torch.save({"v": torch.ones(10), "w": torch.randn(3000, 500)}, name)
    before = sorted(folder.iterdir())
    lock, real = threading.Lock(), FileSource.read_into

    def cut(file, offset, buffer):
        with lock:
            if file.name == "y" and (folder / "y").stat().st_size > 2_000_000:
                os.truncate("y", 2_000_000)
        return real(file, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", cut)
    if method == "overlay":
        progressed = []

        def bar(_total):
            from contextlib import nullcontext

            def advance(_nbytes):
                progressed.append(os.truncate("y", 2_000_000))

            return nullcontext(advance)

        output = Output("o.pth", progress=bar)
    else:
        output = Output("o.pth")
    with pytest.raises(DamagedFileError) as caught:
        merge(["x", "y"], output, method)
    assert str(caught.value.path) == "y"
    assert sorted(folder.iterdir()) == before


def test_r28_averaged_and_interpolated_networks(folder):
    """Row R28 on a real architecture: the average, and a point on the line."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = torchvision.models.squeezenet1_1(num_classes=7)
        states.append(model.state_dict())
        torch.save(model.state_dict(), f"s{seed}.pth")
    merge(["s0.pth", "s1.pth"], "o.pth", "average")
    merge(["s0.pth", "s1.pth"], "l.pth", "lerp", parameters={"t": 0.25})
    torchvision.models.squeezenet1_1(num_classes=7).load_state_dict(load(), strict=True)
    for key, first in states[0].items():
        second = states[1][key].double()
        assert torch.equal(load()[key], ((first.double() + second) / 2).float())
        expected = (0.75 * first.double() + 0.25 * second).float()
        assert torch.allclose(load("l.pth")[key], expected, rtol=1e-6, atol=1e-9)


REAL = ("chemprop/*.ckpt", "chemprop/*.pt", "pytorch_resnet_cifar10/resnet20*.th")
"""A Lightning checkpoint, what chemprop 1 and 2 save, a training script's."""


def real_files(shared_dir):
    return sorted(p for pattern in REAL for p in (shared_dir / "real").glob(pattern))


@pytest.mark.parametrize("method", ["average", "overlay"])
def test_real_files_merge_with_themselves_to_themselves(shared_dir, tmp_path, method):
    files = real_files(shared_dir)
    assert len(files) == 4
    for number, path in enumerate(files):
        output = tmp_path / f"{number}.pth"
        report = merge([path, path], output, method)
        left, right = inspect(path), inspect(output)
        assert report.carried == tuple(other.path for other in left.others)
        assert [(o.path, o.type, o.value) for o in left.others] == [
            (o.path, o.type, o.value) for o in right.others
        ]
        assert left.globals == right.globals or set(right.globals) <= set(left.globals)
        _require_same_elements(path, output)


def _require_same_elements(left, right):
    from ckpt_surgery import read
    from ckpt_surgery.compute.elements import load_elements

    with read(left) as one, read(right) as other:
        pairs = zip(one.all_tensors, other.all_tensors, strict=True)
        for mine, theirs in pairs:
            assert mine.shape == theirs.shape
            if mine.storage is not None:
                assert torch.equal(load_elements(mine), load_elements(theirs))


def test_resnet20_with_a_perturbed_copy(shared_dir, tmp_path):
    path = next((shared_dir / "real" / "pytorch_resnet_cifar10").rglob("resnet20*.th"))
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    generator = torch.Generator().manual_seed(0)
    for value in loaded["state_dict"].values():
        if value.is_floating_point():
            value.add_(1e-3 * torch.randn(value.shape, generator=generator))
    torch.save(loaded, tmp_path / "perturbed.th")
    report = merge([path, tmp_path / "perturbed.th"], tmp_path / "o.th", "average")
    original = torch.load(path, weights_only=True, map_location="cpu")
    result = torch.load(tmp_path / "o.th", weights_only=True, map_location="cpu")
    for key, value in original["state_dict"].items():
        if value.is_floating_point():
            mean = (value.double() + loaded["state_dict"][key].double()) / 2
            assert torch.equal(result["state_dict"][key], mean.float())
    assert {k for k in original if k != "state_dict"} == set(report.carried)
