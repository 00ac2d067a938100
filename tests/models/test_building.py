"""Targets: described as torch would, without their weights."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from architectures import architecture
from torch import nn

from ckpt_surgery.errors import UsageError
from ckpt_surgery.models.building import (
    ConstructionError,
    build_module,
    build_target,
    torchvision_names,
)
from ckpt_surgery.models.specs import ModelSpec, parse_settings
from ckpt_surgery.models.target import Target
from ckpt_surgery.models.torchvision_import import import_torchvision


def real(name: str) -> nn.Module:
    models = import_torchvision().models
    model: nn.Module = models.get_model(name, weights=None)
    return model


def assert_describes(target: Target, model: nn.Module) -> None:
    state = model.state_dict(keep_vars=True)
    assert [(t.name, t.shape, f"torch.{t.dtype}") for t in target.tensors] == [
        (name, tuple(value.shape), str(value.dtype)) for name, value in state.items()
    ]
    assert [t.name for t in target.tensors if t.role == "parameter"] == [
        name for name, value in state.items() if isinstance(value, nn.Parameter)
    ]
    assert target.metadata == {k: dict(v) for k, v in state._metadata.items()}
    assert list(target.parameters) == [name for name, _ in model.named_parameters()]
    assert [m.name for m in target.modules] == [name for name, _ in model.named_modules()]


@pytest.mark.parametrize(
    "name", ["resnet18", "regnet_y_400mf", "swin_t", "raft_small", "googlenet"]
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of")
def test_a_target_is_what_the_real_model_is(name: str) -> None:
    assert_describes(build_target(f"torchvision:{name}"), real(name))


@pytest.mark.slow
def test_every_name_of_torchvision_builds_without_weights_or_downloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    names = torchvision_names()
    assert len(names) >= 100
    architecture.cache_clear()  # built here, where a download would fail
    for name in names:
        assert architecture(name).tensors, name


@pytest.mark.parametrize("name", ["fcn_resnet50", "maskrcnn_resnet50_fpn", "regnet_x_400mf"])
def test_every_parameter_is_on_the_meta_device(name: str) -> None:
    model = build_module(ModelSpec(f"torchvision:{name}"))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_arguments_reach_the_builder() -> None:
    target = build_target("torchvision:resnet18", {"num_classes": 7})
    assert target.by_name["fc.weight"].shape == (7, 512)


def test_ties_are_found_and_named_by_their_first_name() -> None:
    target = build_target("model_factories:tied", {"width": 8})
    assert target.ties == (("encoder.weight", "decoder.weight"),)
    assert target.leader_of == dict.fromkeys(target.ties[0], "encoder.weight")
    assert target.by_name["encoder.weight"].shape == (7, 8)
    assert list(target.parameters) == ["encoder.weight"]


def test_ties_are_found_where_the_meta_device_fails() -> None:
    target = build_target("model_factories:SharedParameter")
    assert target.ties == (
        ("a.weight", "b.weight"),
        ("c.weight", "again.weight"),
        ("c.bias", "again.bias"),
    )


def test_children_include_those_without_parameters() -> None:
    target = build_target("torchvision:resnet50")
    names = [child.name for child in target.children]
    assert names[:6] == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    by_name = {module.name: module for module in target.modules}
    assert by_name["bn1"].tracks_statistics
    assert not by_name["relu"].tracks_statistics
    assert by_name["bn1"].buffers == (
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    )
    assert by_name["relu"].kind == "torch.nn.modules.activation.ReLU"
    assert target.class_name == "ResNet"


def test_persistent_buffers_and_extra_state_are_told_apart() -> None:
    target = build_target("model_factories:Drawn")
    assert target.by_name["steps"].role == "buffer"
    assert "scratch" not in target.by_name
    assert build_target("model_factories:WithExtraState").extra_state == ("_extra_state",)


def test_a_nested_callable_is_found() -> None:
    assert build_target("model_factories:Namespace.make").names == [
        "encoder.weight",
        "decoder.weight",
    ]


def test_what_the_factory_prints_stays_off_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = build_target("model_factories:stack", {"widths": [2, 3], "name": "mine"})
    assert target.names == ["0.weight", "0.bias"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "building mine" in captured.err


def test_modules_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_local_net.py").write_text(
        "from torch import nn\ndef net(): return nn.Linear(2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    assert build_target("a_local_net:net").by_name["weight"].shape == (3, 2)
    (tmp_path / "a_late_net.py").write_text(
        "def net():\n    import a_local_net\n    return a_local_net.net()\n"
    )
    del sys.modules["a_local_net"]
    assert build_target("a_late_net:net").by_name["bias"].shape == (3,)
    assert sys.path == before
    del sys.modules["a_local_net"], sys.modules["a_late_net"]


@pytest.mark.parametrize(
    ("spec", "arguments", "message", "hint"),
    [
        ("torchvision:resnet5", {}, "no model 'resnet5'", "'resnet50'"),
        ("torchvision:qqqq", {}, "no model 'qqqq'", "list_models"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "would download", "FILE"),
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}, "would download", "FILE"),
        ("no_such_module_here:make", {}, "no module 'no_such_module_here'", "PYTHONPATH"),
        ("model_factories.deeper:make", {}, "no module 'model_factories.deeper'", "PYTHONPATH"),
        ("no such.module:make", {}, "no module 'no such'", ""),
        (".relative:make", {}, "not the name of a module", ""),
        ("model_factories:stak", {}, "has no 'stak'", "'stack'"),
        ("model_factories:not_callable", {}, "is an 'int', which cannot be called", ""),
        ("model_factories:stack", {}, "missing a required argument: 'widths'", ""),
        ("model_factories:tied", {"widht": 2}, "unexpected keyword argument 'widht'", "'width'"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(
    spec: str, arguments: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as raised:
        build_target(spec, arguments)  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ValueError: no such configuration"),
        ("raises_silently", "raised ValueError"),
        ("exits", "raised SystemExit: 3"),
        ("out_of_memory", "took all memory"),
        ("no_module", r"returned a 'dict', not a torch\.nn\.Module"),
        ("lazy", r"parameter '0\.weight' .* gets its shape only when the model first runs"),
        ("reads_values", "meta"),
        ("state_dict_raises", "cannot be taken: RuntimeError: no state"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_the_models_own_code_does_wrong_is_a_construction_error(
    name: str, message: str
) -> None:
    with pytest.raises(ConstructionError, match=message):
        build_target(f"model_factories:{name}")


@pytest.mark.parametrize("host", ["example.invalid", "127.0.0.1:9"])
def test_no_code_of_a_model_reaches_for_the_network(host: str, capsys) -> None:
    with pytest.raises(ConstructionError, match="would reach for the network") as caught:
        build_target("model_factories:wants_the_network", {"host": host})
    assert "as FILE" in (caught.value.hint or "")
    assert capsys.readouterr().err == f"asked for {host}\n"  # and is asked once


def test_an_unknown_argument_in_keywords_is_the_builders_own_error() -> None:
    with pytest.raises(ConstructionError, match="num_clases"):
        build_target("torchvision:resnet18", {"num_clases": 3})


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import no_such_dependency", ConstructionError, "no_such_dependency"),
        ("1/0", ConstructionError, "ZeroDivisionError"),
        ("raise TypeError('odd')", ConstructionError, "odd"),
        ("raise SystemExit(1)", ConstructionError, "SystemExit"),
        ("def broken(:", ConstructionError, "SyntaxError"),
    ],
)
def test_a_module_that_fails_to_import_is_a_construction_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "a_bad_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        build_target("a_bad_module:make")
    sys.modules.pop("a_bad_module", None)


@pytest.mark.parametrize("build", ["meta", "real"])
def test_a_torchscript_module_is_refused_with_what_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    lines = "import torch\n\n\ndef net():\n    return torch.jit.script(torch.nn.Linear(2, 2))\n"
    (tmp_path / "scripted_net.py").write_text(lines, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        with pytest.raises(ConstructionError, match="returned a TorchScript module") as refused:
            build_module(ModelSpec("scripted_net:net", {}, (), build))
    assert "--like" in str(refused.value.hint)


def test_a_callable_without_a_signature_is_called() -> None:
    class Unsigned:
        __signature__ = "none"

        def __call__(self) -> nn.Module:
            return nn.Linear(2, 2)

    module = types.ModuleType("unsigned_module")
    module.make = Unsigned()  # type: ignore[attr-defined]
    sys.modules["unsigned_module"] = module
    try:
        assert build_target("unsigned_module:make").names == ["weight", "bias"]
    finally:
        del sys.modules["unsigned_module"]


def test_building_allocates_no_weights() -> None:
    model = build_module(ModelSpec("torchvision:vit_h_14"))
    assert sum(p.numel() for p in model.parameters()) > 600_000_000
    assert {p.device.type for p in model.parameters()} == {"meta"}


CASES = [
    ("torchvision:resnet18", "fc.out_features=5", "fc.weight", (5, 512)),
    ("torchvision:resnet18", "conv1.in_channels=4", "conv1.weight", (64, 4, 7, 7)),
    ("torchvision:resnet18", "conv1.kernel_size=3", "conv1.weight", (64, 3, 3, 3)),
    ("torchvision:resnet18", "conv1.bias=true", "conv1.bias", (64,)),
    ("torchvision:squeezenet1_0", "classifier.1.out_channels=20", "classifier.1.bias", (20,)),
    ("torchvision:alexnet", "classifier.6.out_features=9", "classifier.6.weight", (9, 4096)),
    ("torchvision:resnet18", "layer1.0.conv1.groups=2", "layer1.0.conv1.weight", (64, 32, 3, 3)),
    ("torchvision:resnet18", "bn1.num_features=8", "bn1.running_mean", (8,)),
    ("torchvision:convnext_tiny", "classifier.0.normalized_shape=[5]", "classifier.0.bias", (5,)),
    ("torchvision:vit_b_16", "heads.head.bias=false", "heads.head.weight", (1000, 768)),
    ("torchvision:maskrcnn_resnet50_fpn", "roi_heads.mask_predictor.conv5_mask.out_channels=9",
     "roi_heads.mask_predictor.conv5_mask.bias", (9,)),
    ("model_factories:Drawn", "norm.affine=false", "norm.running_mean", (5,)),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "setting", "name", "shape"), CASES)
def test_a_setting_rebuilds_one_layer(
    spec: str, setting: str, name: str, shape: tuple[int, ...]
) -> None:
    plain = build_target(spec)
    target = build_target(spec, {}, parse_settings([setting]))
    assert target.by_name[name].shape == shape
    layer = setting.rpartition("=")[0].rpartition(".")[0]
    untouched = [t for t in plain.tensors if not t.name.startswith(f"{layer}.")]
    assert [t for t in target.tensors if not t.name.startswith(f"{layer}.")] == untouched


def test_settings_of_one_layer_are_applied_together() -> None:
    settings = parse_settings(["layer1.0.conv1.groups=4", "layer1.0.conv1.in_channels=128",
                               "fc.bias=false", "layer1.0.conv1.out_channels=32"])  # fmt: skip
    target = build_target("torchvision:resnet18", {}, settings)
    assert target.by_name["layer1.0.conv1.weight"].shape == (32, 32, 3, 3)
    assert "fc.bias" not in target.by_name


def test_a_rebuilt_layer_keeps_class_type_and_mode() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(3, 3, dtype=torch.float16)
            self.again = self.shared
            self.eval()

    module = types.ModuleType("halves_module")
    module.make = Halves  # type: ignore[attr-defined]
    sys.modules["halves_module"] = module
    try:
        spec = ModelSpec("halves_module:make", {}, parse_settings(["again.out_features=5"]))
        model = build_module(spec)
    finally:
        del sys.modules["halves_module"]
    assert model.shared is model.again
    assert isinstance(model.shared, nn.Linear)
    assert model.shared.weight.shape == (5, 3)
    assert model.shared.weight.dtype == torch.float16
    assert not model.shared.training


@pytest.mark.parametrize(
    ("spec", "setting", "message", "hint"),
    [
        ("torchvision:resnet18", "fx.out_features=5", "no module 'fx'", "'fc'"),
        ("torchvision:resnet18", "fc.out_feature=5", "no attribute 'out_feature'", "out_features"),
        ("torchvision:resnet18", "fc.zzz=5", "no attribute 'zzz'", "it has 'in_features'"),
        ("torchvision:resnet18", "relu.inplace=true", "no layer that can be rebuilt", "Linear"),
        ("torchvision:alexnet", "classifier.out_features=5", "is a Sequential", "inside it"),
        ("torchvision:resnet18", "conv1.groups=5", "Conv2d refuses conv1.groups=5", ""),
        ("torchvision:resnet18", "fc.out_features=many", "Linear refuses fc.out_features=many", ""),
        ("model_factories:tied", "decoder.in_features=3", "shares a parameter with",
         "--model-arg"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_applied_is_a_usage_error(
    spec: str, setting: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as raised:
        build_target(spec, {}, parse_settings([setting]))
    assert message in str(raised.value)
    assert hint in str(raised.value.hint)
