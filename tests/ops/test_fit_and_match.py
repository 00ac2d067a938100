"""Laws of `match` and `fit` on torchvision's architectures: the rows of the use cases."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import model_factories_for_ops as factories
import pytest
import torch
from model_factories_for_ops import SpatialPyramidAlexNet, WithDeconvolution
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.compute.lazy import _LazyBytes, computed_tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec, parse_settings
from ckpt_surgery.models.torchvision_import import import_torchvision

ALL_MATCHED = "<All keys matched successfully>"
_HERE = Path(__file__).resolve().parents[1] / "support"


def build(name, *settings, **arguments):
    """A model of torchvision on the meta device; anything can be assigned to it."""
    return build_module(ModelSpec(f"torchvision:{name}", arguments, parse_settings(settings)))


def random_state(name, *settings, **arguments):
    module = build(name, *settings, **arguments).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.normal_(generator=generator)
            else:
                value.fill_(7)
    return module.state_dict()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder in which each state dict is written once."""
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture
def saved(originals):
    def save(name):
        path = originals / f"{name}.pth"
        if not path.exists():
            torch.save(random_state(name), path)
        return path

    return save


def load(path):
    return torch.load(path, weights_only=True)


def strict(module, path):
    return str(module.load_state_dict(load(path), strict=True, assign=True))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_copied(report, source, output):
    """Every copied tensor equals its source bit for bit."""
    old, new, names = load(source), load(output), dict(map(reversed, report.to_dict()["renamed"]))
    copied = report.to_dict()["copied"]
    assert copied
    for name in copied:
        assert torch.equal(bits(new[name]), bits(old[names.get(name, name)])), name


def counts(report):
    document = report.to_dict()
    return tuple(len(document[key]) for key in ("copied", "adapted", "initial", "dropped"))


@pytest.mark.parametrize(
    "name", ["alexnet", "squeezenet1_1", "densenet121", "googlenet", "regnet_y_400mf", "swin_t"]
)
def test_a_model_matches_its_own_checkpoint_and_fits_ten_classes(name, saved, tmp_path):
    source, output = saved(name), tmp_path / "out.pth"
    assert ckpt.match(source, model=f"torchvision:{name}").exit_code == 0
    report = ckpt.fit(source, output, model=f"torchvision:{name}", model_args={"num_classes": 10})
    assert strict(build(name, num_classes=10), output) == ALL_MATCHED
    assert_copied(report, source, output)
    assert counts(report)[1] == 0
    assert {n.split(".")[0] for n in report.to_dict()["initial"]} <= {
        *("classifier", "fc", "head", "aux1", "aux2")
    }


@pytest.mark.parametrize(
    "name", ["ssdlite320_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "r3d_18", "raft_small"]
)
def test_other_tasks_match_their_own_checkpoints(name, saved):
    report = ckpt.match(saved(name), model=f"torchvision:{name}")
    assert report.exit_code == 0
    assert report.to_dict()["matched"] == len(load(saved(name)))


def test_r2_r3_a_shallow_network_is_carried_into_a_deeper_one(saved, originals, tmp_path):
    deep, output = originals / "initial34.pth", tmp_path / "out.pth"
    torch.save(import_torchvision().models.resnet34().state_dict(), deep)
    report = ckpt.fit(saved("resnet18"), output, like=deep)
    shallow, initial, new = load(saved("resnet18")), load(deep), load(output)
    assert list(new) == list(initial)
    assert new._metadata == initial._metadata
    shared = [n for n in initial if n in shallow and shallow[n].shape == initial[n].shape]
    assert report.to_dict()["copied"] == shared
    for name, value in new.items():
        assert torch.equal(value, shallow[name] if name in shared else initial[name]), name
    assert counts(report)[2] == len(initial) - len(shared)


def test_r7_four_channels_and_21_classes(saved, tmp_path):
    settings = ["conv1.in_channels=4", "fc.out_features=21"]
    old = load(saved("resnet18"))
    for fill in ("first", "zero"):
        output = tmp_path / f"{fill}.pth"
        ckpt.fit(
            saved("resnet18"),
            output,
            model="torchvision:resnet18",
            settings=settings,
            fill=[f"conv1={fill}", "fc=normal:0.01"],
            seed=3,
        )
        assert strict(build("resnet18", *settings), output) == ALL_MATCHED
        new = load(output)
        assert torch.equal(new["conv1.weight"][:, :3], old["conv1.weight"])
        fourth = old["conv1.weight"][:, 0] if fill == "first" else torch.zeros(64, 7, 7)
        assert torch.equal(new["conv1.weight"][:, 3], fourth)
        assert 0.009 < new["fc.weight"].std().item() < 0.011


def test_the_seed_decides_and_a_different_one_differs(saved, tmp_path):
    def head(seed, name):
        output = ckpt.Output(tmp_path / name)
        settings = ["fc.out_features=5"]
        ckpt.fit(
            saved("resnet18"), output, model="torchvision:resnet18", settings=settings, seed=seed
        )
        return load(tmp_path / name)["fc.weight"]

    first = head(1, "a")
    assert torch.equal(first, head(1, "b"))
    assert not torch.equal(first, head(2, "c"))
    assert 0 < first.abs().max() <= 512**-0.5  # what nn.Linear starts from


def test_r8_old_spelling_of_densenet_is_recognised_and_renamed(saved, tmp_path):
    new = load(saved("densenet121"))
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    counters = {name for name in new if name.endswith("num_batches_tracked")}  # since torch 0.4.1
    old = OrderedDict(
        (pattern.sub(r"\1.\2.", name), value) for name, value in new.items() if name not in counters
    )
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    output = tmp_path / "out.pth"
    report = ckpt.fit(tmp_path / "old.pth", output, model="torchvision:densenet121")
    assert counts(report) == (len(new) - len(counters), 0, len(counters), 0)
    assert set(report.to_dict()["initial"]) == counters
    assert strict(build("densenet121"), output) == ALL_MATCHED
    assert_copied(report, tmp_path / "old.pth", output)
    summary = ckpt.inspect(tmp_path / "old.pth", recognise=True).architectures[""]["summary"]
    assert summary.startswith("torchvision densenet121, every key, 1000-class head")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("resnet18", "fc.out_features=9"),
        ("alexnet", "classifier.6.out_features=20"),
        ("squeezenet1_1", "classifier.1.out_channels=20"),
        ("densenet121", "classifier.out_features=5"),
    ],
)
def test_r9_only_the_output_layer_is_replaced(name, setting, saved, tmp_path):
    output = tmp_path / "out.pth"
    report = ckpt.fit(saved(name), output, model=f"torchvision:{name}", settings=[setting])
    assert counts(report)[1:] == (0, 2, 2)
    assert strict(build(name, setting), output) == ALL_MATCHED
    assert_copied(report, saved(name), output)


def test_r10_resnet50_with_a_transposed_convolution(saved, tmp_path):
    source, output = saved("resnet50"), tmp_path / "out.pth"
    torch.save(WithDeconvolution().state_dict(), tmp_path / "init.pth")
    report = ckpt.fit(source, output, like=tmp_path / "init.pth")
    assert counts(report)[0] == 318
    assert report.to_dict()["dropped"] == ["fc.weight", "fc.bias"]
    assert {n.split(".")[0] for n in report.to_dict()["initial"]} == {"deconv", "fclass"}
    assert_copied(report, source, output)


def test_r15_alexnet_with_spatial_pyramid_pooling(saved, tmp_path):
    source, output = saved("alexnet"), tmp_path / "out.pth"
    model = SpatialPyramidAlexNet()
    torch.save(model.state_dict(), tmp_path / "init.pth")
    report = ckpt.fit(source, output, like=tmp_path / "init.pth")
    assert counts(report)[0] == 13
    assert report.to_dict()["initial"] == [
        *("classifier.1.weight", "classifier.6.weight", "classifier.6.bias")
    ]
    assert strict(model, output) == ALL_MATCHED
    assert_copied(report, source, output)


def test_r13_vgg_cut_has_26_tensors_and_loads(saved, tmp_path):
    source, cut, out = saved("vgg16"), tmp_path / "cut.pth", tmp_path / "out.pth"
    report = ckpt.strip(source, cut, ckpt.selection(prefix="features", keep=True))
    assert len(report.kept) == 26
    ckpt.rename(cut, out, [ckpt.StripPrefix("features")])
    features = nn.Sequential(*list(build("vgg16").features)[:-1])
    assert strict(features, out) == ALL_MATCHED


@pytest.mark.parametrize("wrapper", ["module.", "module._orig_mod.", "model.backbone."])
def test_r19_wrappers_are_found_in_both_directions(wrapper, saved, tmp_path):
    plain = load(saved("resnet18"))
    wrapped = OrderedDict((wrapper + name, value) for name, value in plain.items())
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pth")
    report = ckpt.fit(tmp_path / "wrapped.pth", tmp_path / "a.pth", model="torchvision:resnet18")
    assert counts(report) == (122, 0, 0, 0)
    result = torch.load(tmp_path / "a.pth", weights_only=True)
    assert result["epoch"] == 3
    assert str(build("resnet18").load_state_dict(result["state_dict"], assign=True)) == ALL_MATCHED
    assert result["state_dict"]._metadata["bn1"]["version"] == 2
    report = ckpt.fit(saved("resnet18"), tmp_path / "b.pth", like=tmp_path / "wrapped.pth")
    assert list(load(tmp_path / "b.pth")) == list(wrapped)
    assert counts(report) == (122, 0, 0, 0)


def test_r16_r20_infixes_by_suffix_and_a_reviewed_map(tmp_path):
    plain = {"enc.0.weight": torch.randn(3, 2), "enc.1.weight": torch.randn(4, 3)}
    infixed = {n.replace("enc.", "enc.net."): torch.zeros_like(v) for n, v in plain.items()}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(infixed, tmp_path / "infixed.pth")
    map_file, like = tmp_path / "map.toml", tmp_path / "infixed.pth"
    report = ckpt.fit(
        tmp_path / "plain.pth", ckpt.Output(dry_run=True), like=like, match="suffix",
        emit_map=map_file,
    )  # fmt: skip
    assert report.to_dict()["renamed"] == [list(pair) for pair in zip(plain, infixed, strict=True)]
    assert '"enc.0.weight" = "enc.net.0.weight"' in map_file.read_text()
    renames = dict(report.to_dict()["renamed"])
    with pytest.raises(ckpt.PlanError, match="no name agrees"):
        ckpt.fit(tmp_path / "plain.pth", tmp_path / "no.pth", like=like, match="name")
    ckpt.fit(tmp_path / "plain.pth", tmp_path / "a.pth", like=like, match="name", renames=renames)
    ckpt.rename(tmp_path / "plain.pth", tmp_path / "b.pth", [ckpt.MapNames(renames)])
    for name in ("a.pth", "b.pth"):
        found = load(tmp_path / name)
        assert all(torch.equal(found[renames[old]], plain[old]) for old in plain)


def test_r16_an_ambiguous_order_lists_the_candidates(tmp_path):
    torch.save({"a.w": torch.zeros(2), "b.w": torch.zeros(2)}, tmp_path / "two.pth")
    torch.save({"x.w": torch.zeros(2)}, tmp_path / "one.pth")
    with pytest.raises(ckpt.UsageError, match="'x' could correspond to 'a', 'b'"):
        ckpt.fit(tmp_path / "two.pth", tmp_path / "o.pth", like=tmp_path / "one.pth", match="order")
    assert not (tmp_path / "o.pth").exists()


def test_r22_optical_flow_takes_the_mean(saved, tmp_path):
    output = tmp_path / "out.pth"
    report = ckpt.fit(
        saved("resnet18"),
        output,
        model="torchvision:resnet18",
        settings=["conv1.in_channels=10"],
        fill=["conv1=mean"],
        initial=ckpt.Selection(),
    )
    mean = load(saved("resnet18"))["conv1.weight"].mean(1, keepdim=True)
    torch.testing.assert_close(load(output)["conv1.weight"], mean.expand(-1, 10, -1, -1))
    assert report.to_dict()["adapted"] == [
        {
            "name": "conv1.weight",
            "how": "channels=mean",
            "from_shape": [64, 3, 7, 7],
            "to_shape": [64, 10, 7, 7],
        }
    ]


def test_r23_r24_squeeze_and_overlap(tmp_path):
    old = {"fc.weight": torch.randn(4, 3, 1, 1), "wide": torch.randn(2, 5)}
    like = {"fc.weight": torch.zeros(4, 3), "wide": torch.full((3, 4), 9.0)}
    torch.save(old, tmp_path / "old.pth")
    torch.save(like, tmp_path / "like.pth")
    ckpt.fit(
        tmp_path / "old.pth", tmp_path / "out.pth", like=tmp_path / "like.pth",
        adapt=["squeeze", "overlap"],
    )  # fmt: skip
    new = load(tmp_path / "out.pth")
    assert torch.equal(new["fc.weight"], old["fc.weight"][:, :, 0, 0])
    assert torch.equal(new["wide"][:2], old["wide"][:, :4])
    assert torch.equal(new["wide"][2], torch.full((4,), 9.0))
    with pytest.raises(ckpt.PlanError, match="2 names agree, but no shape"):
        ckpt.fit(tmp_path / "old.pth", tmp_path / "no.pth", like=tmp_path / "like.pth")


def test_r25_a_stripped_head_is_missing(saved, tmp_path):
    ckpt.strip(saved("resnet34"), tmp_path / "b.pth", ckpt.selection(pattern="fc"))
    settings = ["fc.out_features=5"]
    report = ckpt.match(tmp_path / "b.pth", model="torchvision:resnet34", settings=settings)
    document = report.to_dict()
    assert (document["missing_keys"], document["unexpected_keys"]) == (["fc.weight", "fc.bias"], [])
    assert report.exit_code == document["exit_code"] == 1


def test_classes_keep_their_rows_by_name(saved, tmp_path):
    old = [f"class {i}" for i in range(1000)]
    new = ["class 7", "a new one", "class 3"]
    ckpt.fit(
        saved("resnet18"), tmp_path / "out.pth", model="torchvision:resnet18",
        settings=["fc.out_features=3"], adapt=["rows"], classes=(old, new),
    )  # fmt: skip
    weight = load(tmp_path / "out.pth")["fc.weight"]
    assert torch.equal(weight[[0, 2]], load(saved("resnet18"))["fc.weight"][[7, 3]])
    with pytest.raises(ckpt.UsageError, match="the list of old classes has 2 names"):
        ckpt.fit(
            saved("resnet18"), tmp_path / "no.pth", model="torchvision:resnet18",
            settings=["fc.out_features=3"], adapt=["rows"],
            classes=(old[:2], [new[0], "class 0", "x"]),
        )  # fmt: skip


def test_model_and_average_are_fitted_together(tmp_path, saved):
    weights = load(saved("resnet18"))
    average = {name: value + 1 for name, value in weights.items()}
    optimizer = torch.optim.SGD(build("resnet18").parameters(), lr=0.1).state_dict()
    everything = {"state_dict": weights, "state_dict_ema": average, "optimizer": optimizer}
    torch.save(everything, tmp_path / "train.pth")
    report = ckpt.fit(
        tmp_path / "train.pth", tmp_path / "out.pth", model="torchvision:resnet18",
        settings=["fc.out_features=5"],
    )  # fmt: skip
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    model = build("resnet18", "fc.out_features=5")
    for key, source in (("state_dict", weights), ("state_dict_ema", average)):
        assert str(model.load_state_dict(found[key], assign=True)) == ALL_MATCHED
        assert torch.equal(found[key]["conv1.weight"], source["conv1.weight"])
    assert torch.equal(found["state_dict"]["fc.weight"], found["state_dict_ema"]["fc.weight"])
    assert found["optimizer"]["param_groups"] == optimizer["param_groups"]
    assert report.optimizers == ()  # it has no state to lose, and as many parameters
    assert report.to_dict()["initial"][0] == "state_dict/fc.weight"
    only = ckpt.fit(
        tmp_path / "train.pth", tmp_path / "one.pth", model="torchvision:resnet18",
        settings=["fc.out_features=5"], at=["state_dict"],
    )  # fmt: skip
    assert only.to_dict()["initial"] == ["fc.weight", "fc.bias"]
    assert any("'state_dict_ema' is carried over as it was" in w for w in only.warnings)
    matched = ckpt.match(tmp_path / "out.pth", model="torchvision:resnet18")
    assert matched.to_dict()["mismatched_keys"][0][0] == "state_dict/fc.weight"


def test_a_dry_run_says_the_same_and_writes_nothing(saved, tmp_path):
    arguments = {"model": "torchvision:resnet18", "settings": ["fc.out_features=5"]}
    wet = ckpt.fit(saved("resnet18"), tmp_path / "out.pth", **arguments).to_dict()
    before = sorted(tmp_path.iterdir())
    dry = ckpt.fit(saved("resnet18"), ckpt.Output(dry_run=True), **arguments).to_dict()
    assert sorted(tmp_path.iterdir()) == before
    assert dry | {"output": wet["output"]} == wet
    assert dry["output"] is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_dtype_is_that_of_all_floating_point_tensors(dtype, tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(net.state_dict(), tmp_path / "a.pth")
    ckpt.fit(tmp_path / "a.pth", tmp_path / "b.pth", like=tmp_path / "a.pth", dtype=dtype)
    for name, value in load(tmp_path / "b.pth").items():
        old = net.state_dict()[name]
        wanted = getattr(torch, dtype) if old.is_floating_point() else torch.int64
        assert value.dtype == wanted
        assert torch.equal(bits(value), bits(old.to(wanted)))


@pytest.mark.parametrize("form", ["safetensors", "legacy", "module"])
def test_every_format_is_fitted(form, tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    source, like, output = (tmp_path / name for name in ("source", "like.pth", "out.pth"))
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(net.state_dict(), source)
    elif form == "legacy":
        torch.save(net.state_dict(), source, _use_new_zipfile_serialization=False)
    else:
        torch.save(net, source)
    torch.save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(), like)
    report = ckpt.fit(source, output, like=like)
    assert counts(report) == (7, 0, 0, 0)
    found = load(output)
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
    assert found._metadata == net.state_dict()._metadata


def test_ties_come_out_as_the_target_has_them(tmp_path):
    weight = torch.randn(3, 2)
    torch.save({"a": weight, "x": torch.zeros(1)}, tmp_path / "one.pth")
    tied = torch.zeros(3, 2)
    torch.save({"a": tied, "b": tied, "x": torch.zeros(1)}, tmp_path / "tied.pth")
    assert ckpt.match(tmp_path / "one.pth", like=tmp_path / "tied.pth").to_dict()["tied"] == [
        ["b", "a"]
    ]
    for extra in ({}, {"dtype": "float16"}):
        output = ckpt.Output(tmp_path / "out.pth", force=True)
        ckpt.fit(tmp_path / "one.pth", output, like=tmp_path / "tied.pth", **extra)
        found = load(tmp_path / "out.pth")
        assert found["a"].data_ptr() == found["b"].data_ptr()
        assert torch.equal(found["b"], weight.to(found["b"].dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int8", "bool", "complex64"])
def test_copied_is_bit_for_bit_and_all_else_is_a_cast_that_is_listed(tmp_path, dtype):
    kinds = ["float32", "bfloat16", "float64", "int64", "int8", "bool", "complex64"]
    saved = {kind: (torch.arange(6.0) / 2).to(getattr(torch, kind)) for kind in kinds}
    saved["nan"] = torch.tensor([torch.nan, -0.0], dtype=torch.float32)
    saved["transposed"] = torch.arange(12.0).reshape(3, 4).T
    torch.save(saved, tmp_path / "a.pth")
    wanted = {k: torch.zeros(v.shape, dtype=getattr(torch, dtype)) for k, v in saved.items()}
    torch.save(wanted, tmp_path / "b.pth")
    output = ckpt.Output(tmp_path / "o.pth", allow_loss=True)
    report = ckpt.fit(tmp_path / "a.pth", output, like=tmp_path / "b.pth").to_dict()
    found = load(tmp_path / "o.pth")
    copied, cast = report["copied"], report["cast"]
    assert {*copied, *cast} == {k for k in saved if k != "complex64" or dtype == k}
    assert cast == [each["name"] for each in report["casts"]]
    for name, value in saved.items():
        assert (name in copied) == (value.dtype == found[name].dtype)
        if name in copied:
            same = [t.contiguous().view(torch.uint8) for t in (value, found[name])]
            assert torch.equal(*same)


@pytest.mark.parametrize("both", [True, False])
def test_a_tied_model_gets_what_load_state_dict_would_leave_in_it(tmp_path, both):
    torch.manual_seed(1)
    source = tmp_path / "untied.pth"
    state_dict = factories.language_model(tie=False).state_dict()
    if not both:
        del state_dict["head.weight"]
    torch.save(state_dict, source)
    model, fitted = factories.language_model(tie=True), factories.language_model(tie=True)
    model.load_state_dict(state_dict, strict=both)
    report = ckpt.fit(source, tmp_path / "out.pth", model="model_factories_for_ops:language_model")
    fitted.load_state_dict(load(tmp_path / "out.pth"))
    assert torch.equal(fitted.embed.weight, model.embed.weight)
    assert len(report.warnings) == both  # that one of two is taken


@pytest.mark.parametrize("kind", ["plain", "transposed", "conjugate", "parameter", "cast"])
def test_an_untied_model_gets_two_tensors(tmp_path, kind):
    """Written as views of one storage they would stay tied for whoever reads them by name."""
    weight = torch.arange(24, dtype=torch.float32).reshape(6, 4)
    stored = {
        "plain": weight, "cast": weight, "parameter": torch.nn.Parameter(weight),
        "transposed": weight.T.contiguous().T, "conjugate": torch.complex(weight, weight).conj(),
    }[kind]  # fmt: skip
    torch.save({"embed.weight": stored, "head.weight": stored}, tmp_path / "tied.pth")
    like = {name: torch.zeros_like(stored) for name in ("embed.weight", "head.weight")}
    torch.save(like, tmp_path / "untied.pth")
    dtype = "float64" if kind == "cast" else None
    report = ckpt.fit(
        tmp_path / "tied.pth", tmp_path / "out.pth", like=tmp_path / "untied.pth", dtype=dtype
    )
    found = load(tmp_path / "out.pth")
    embed, head = found["embed.weight"], found["head.weight"]
    assert torch.equal(embed, stored.detach().to(embed.dtype))
    assert torch.equal(embed, head)
    assert embed.untyped_storage().data_ptr() != head.untyped_storage().data_ptr()
    assert report.to_dict()["untied"] == [["head.weight", "embed.weight"]]


def test_big_endian_numbers_stay_big_endian(monkeypatch):
    values = torch.tensor([1.5, -2.0])
    source = _LazyBytes(8, lambda: values, big_endian=True)
    assert b"".join(map(bytes, source.chunks(3))) == values.numpy().astype(">f4").tobytes()
    described = computed_tensor((2,), BY_NAME["complex64"], lambda: values.to(torch.complex64))
    assert described.storage.nbytes == 16
    empty = computed_tensor((0, 3), BY_NAME["float32"], lambda: torch.zeros(0, 3))
    assert (list(empty.storage.data.chunks()), empty.stride) == ([], (3, 1))
    with pytest.raises(ValueError, match="do not take 8 bytes"):
        list(_LazyBytes(8, values.half).chunks())


def test_match_reads_no_tensor_bytes(saved, monkeypatch):
    chunks = ByteRange.chunks

    def read(self, size=1 << 20):
        assert self.nbytes <= 64, "read tensor bytes"  # small records of the archive are not
        return chunks(self, size)

    source = saved("resnet18")
    monkeypatch.setattr(ByteRange, "chunks", read)
    assert ckpt.match(source, model="torchvision:resnet18").exit_code == 0
    report = ckpt.fit(
        source, ckpt.Output(dry_run=True), model="torchvision:resnet18",
        settings=["fc.out_features=5"],
    )  # fmt: skip
    assert counts(report) == (120, 0, 2, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the peak")
def test_match_of_a_vit_needs_no_weight_memory(originals, saved):
    code = (
        "import sys, re, ckpt_surgery as c\n"
        "r = c.match(sys.argv[1], model='torchvision:vit_b_16')\n"
        "peak = re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]\n"
        "print(r.exit_code, int(peak) * 1024)"
    )
    root = str(_HERE.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved("vit_b_16"))],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    exit_code, peak = map(int, done.stdout.split())
    assert exit_code == 0
    assert peak < 1_000_000_000


def _bad(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "torchvision:resnet43"}, ckpt.UsageError, "no model 'resnet43'"),
        ({"model": "resnet18"}, ckpt.UsageError, "does not name a model"),
        ({}, ckpt.UsageError, "there is no target"),
        ({"model": "a:b", "like": "x"}, ckpt.UsageError, "contradict"),
        (
            {"like": "w.pth", "settings": ["a.b=1"]},
            ckpt.UsageError,
            "'model_args', 'settings' and 'build'",
        ),
        ({"model": "model_factories_for_ops:raises"}, ckpt.ConstructionError, "ZeroDivisionError"),
        (
            {"model": "model_factories_for_ops:no_module"},
            ckpt.ConstructionError,
            "returned a 'str'",
        ),
        ({"model": "model_factories_for_ops:not_on_meta"}, ckpt.ConstructionError, "RuntimeError"),
        ({"model": "torchvision:resnet18", "settings": ["fd.bias=no"]}, ckpt.UsageError, "'fd'"),
        ({"like": "w.pth", "renames": {"v": "w"}}, ckpt.UsageError, "the map renames 'v'"),
        ({"like": "w.pth", "match": "guess"}, ckpt.UsageError, "no way to match"),
        ({"like": "w.pth", "dtype": "int8"}, ckpt.UsageError, "no floating-point type"),
        ({"like": "w.pth", "adapt": ["stretch"]}, ckpt.UsageError, "no adaptation 'stretch'"),
        (
            {"like": "w.pth", "initial": ckpt.selection(prefix="x")},
            ckpt.UsageError,
            "matches nothing",
        ),
        ({"like": "none.pth"}, ckpt.ReadError, "none.pth"),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_written(
    arguments, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(_HERE))
    with pytest.raises(error, match=message):
        ckpt.fit(_bad(tmp_path), tmp_path / "out.pth", **arguments)
    assert not (tmp_path / "out.pth").exists()


def test_initial_values_outside_the_selection_are_refused(saved, tmp_path):
    arguments = {"model": "torchvision:resnet18", "settings": ["fc.out_features=5"]}
    with pytest.raises(ckpt.PlanError, match=r"'fc\.weight', 'fc\.bias' would take their initial"):
        ckpt.fit(
            saved("resnet18"), tmp_path / "out.pth", initial=ckpt.selection(prefix="conv1"),
            **arguments,
        )  # fmt: skip
    assert not (tmp_path / "out.pth").exists()
    ckpt.fit(
        saved("resnet18"), tmp_path / "out.pth", initial=ckpt.selection(prefix="fc"), **arguments
    )


def test_real_resnet20_goes_into_resnet32(shared_dir, tmp_path):
    folder = shared_dir / "real" / "pytorch_resnet_cifar10"
    (shallow,) = folder.glob("resnet20*")
    (deep,) = folder.glob("resnet32*")
    report = ckpt.fit(shallow, tmp_path / "out.th", like=deep)
    assert counts(report)[0] > 90
    assert ckpt.match(tmp_path / "out.th", like=deep).exit_code == 0


def test_a_convolution_and_the_linear_layer_that_does_the_same(tmp_path):
    """Of 7x7, as VGG's fc6: the result computes the same, and no other layout is proposed."""
    torch.manual_seed(0)
    image = torch.rand(2, 8, 7, 7)
    layers = {"conv": nn.Conv2d(8, 12, 7), "linear": nn.Linear(8 * 49, 12)}
    for name, layer in layers.items():
        torch.save({f"fc6.{k}": v for k, v in layer.state_dict().items()}, tmp_path / name)
    for source, target in (("conv", "linear"), ("linear", "conv")):
        out = tmp_path / f"to_{target}"
        report = ckpt.fit(tmp_path / source, out, like=tmp_path / target, adapt=["reshape"])
        assert [each["how"] for each in report.to_dict()["adapted"]] == ["reshape"]
        assert report.to_dict()["layouts"] == []
        made = copy.deepcopy(layers)
        made[target].load_state_dict({k[4:]: v for k, v in load(out).items()})
        torch.testing.assert_close(made["conv"](image).flatten(1), made["linear"](image.flatten(1)))
    torch.save({"head.weight": torch.rand(5, 8, 1, 1)}, tmp_path / "point")
    torch.save({"head.weight": torch.rand(5, 8)}, tmp_path / "matrix")
    report = ckpt.fit(
        tmp_path / "point", tmp_path / "m", like=tmp_path / "matrix", adapt=["squeeze"]
    )
    assert report.to_dict()["layouts"] == []
    report = ckpt.fit(tmp_path / "conv", tmp_path / "not", like=tmp_path / "linear")
    assert [each["how"] for each in report.to_dict()["layouts"]] == ["reshape"]
