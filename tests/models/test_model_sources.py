"""Laws of models by the names of their libraries: built from nothing but a name, offline."""

from __future__ import annotations

import json
import socket
import sys
import types

import pytest
import torch

import ckpt_surgery as ckpt
from ckpt_surgery.models import sources
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.models.torchvision_import import import_torchvision


@pytest.fixture
def timm():
    import_torchvision()
    return pytest.importorskip("timm")


@pytest.fixture
def transformers():
    import_torchvision()
    return pytest.importorskip("transformers")


def built(spec, **arguments):
    return build_module(ModelSpec(spec, arguments))


def own_file(path, spec, **arguments):
    """Save a file of the model's own names and shapes, with numbers."""
    module = built(spec, **arguments).to_empty(device="cpu")
    with torch.no_grad():
        for value in module.state_dict().values():
            value.uniform_(-1, 1) if value.is_floating_point() else value.zero_()
    torch.save(module.state_dict(), path)
    return module


def assert_fits(path, out, spec, **ten):
    """Assert that a model's own file matches it, and fits one of ten classes strictly."""
    assert ckpt.match(path, model=spec).exit_code == 0
    report = ckpt.fit(path, ckpt.Output(out, force=True), model=spec, model_args=ten)
    module = built(spec, **ten).to_empty(device="cpu")
    module.load_state_dict(torch.load(out, weights_only=True), strict=True)
    assert report.to_dict()["initial"]


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "mobilenetv3_small_050"])
def test_models_of_timm(timm, tmp_path, name):
    path = tmp_path / "own.pth"
    module = own_file(path, f"timm:{name}")
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in timm.create_model(name).state_dict().items()
    }
    assert_fits(path, tmp_path / "out.pth", f"timm:{name}", num_classes=10)


def test_models_of_timm_take_its_arguments_and_tags(timm):
    assert type(built("timm:resnet18", features_only=True)).__name__ == "FeatureListNet"
    assert built("timm:resnet18.a1_in1k", num_classes=3).fc.out_features == 3
    with pytest.raises(ckpt.UsageError, match="timm has no model 'resnt18'") as caught:
        built("timm:resnt18")
    assert "'resnet18'" in caught.value.hint
    with pytest.raises(ckpt.ConstructionError, match="num_class'") as caught:
        built("timm:resnet18", num_class=3)
    assert caught.value.hint == "did you mean 'num_classes'?"
    with pytest.raises(ckpt.UsageError, match="has no model 'hf-hub:some/one'"):
        built("timm:hf-hub:some/one")


def test_what_is_no_model_of_timm_may_be_a_callable_of_the_package(timm):
    assert built("timm:create_model", model_name="resnet18", num_classes=3).fc.out_features == 3
    assert type(built("timm:models.resnet.resnet18")).__name__ == "ResNet"
    with pytest.raises(ckpt.UsageError, match="does not take these arguments: missing"):
        built("timm:create_model")
    with pytest.raises(ckpt.UsageError, match="'pretrained' would load weights"):
        built("timm:create_model", model_name="resnet18", pretrained=True)
    with pytest.raises(ckpt.UsageError, match="timm has no model 'layers'"):
        built("timm:layers")


def test_a_module_of_ones_own_may_be_called_like_a_library(tmp_path, monkeypatch):
    """It lies in the current folder, and so may what it imports when it is called."""
    (tmp_path / "part_of_hf.py").write_text("from torch.nn import Linear\n")
    (tmp_path / "hf.py").write_text(
        "def head(classes):\n    from part_of_hf import Linear\n    return Linear(4, classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        assert built("hf:head", classes=5).out_features == 5
        with pytest.raises(ckpt.UsageError, match="does not take these arguments"):
            built("hf:head", clases=5)
        with pytest.raises(ckpt.UsageError, match="'hf:body': there is no configuration"):
            built("hf:body")
    finally:
        for name in ("hf", "part_of_hf"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("source", ["timm", "smp", "hf", "ultralytics"])
def test_weights_are_refused_with_the_reason(source):
    with pytest.raises(ckpt.UsageError, match="'pretrained' would load weights"):
        built(f"{source}:x", pretrained=True)


def config(folder, **fields):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "vocab_size": 50}
    (folder / "config.json").write_text(json.dumps(small | fields))
    return f"hf:{folder}"


def test_models_of_transformers_are_of_the_class_that_the_configuration_names(
    transformers, tmp_path
):
    named = config(tmp_path, model_type="bert", architectures=["BertForSequenceClassification"])
    module = own_file(tmp_path / "own.pth", named)
    assert type(module) is transformers.BertForSequenceClassification
    classes = {str(i): f"c{i}" for i in range(10)}
    assert_fits(tmp_path / "own.pth", tmp_path / "out.pth", named, id2label=classes)
    assert type(built(named, architecture="BertForMaskedLM")).__name__ == "BertForMaskedLM"
    assert built(named, num_hidden_layers=3).config.num_hidden_layers == 3
    assert type(built(f"{named}/config.json")).__name__ == "BertForSequenceClassification"
    bare = config(tmp_path, model_type="bert")
    assert type(built(bare)).__name__ == "BertModel"


def test_what_no_class_is_for_is_refused(transformers, tmp_path):
    for fields, said, hint in (
        ({"model_type": "brt"}, "no model of the type 'brt'", "'bert'"),
        ({"model_type": "mine", "auto_map": {}}, "no model of the type", "is not run"),
        ({"model_type": "bert", "architectures": ["BertForNothing"]}, "has no 'BertFor", "Bert"),
        ({}, "has no 'model_type'", ""),
    ):
        with pytest.raises(ckpt.UsageError, match=said) as caught:
            built(config(tmp_path, **fields))
        assert hint in (caught.value.hint or "")
    with pytest.raises(ckpt.UsageError, match="there is no configuration"):
        built(f"hf:{tmp_path / 'nowhere'}")


def test_models_of_ultralytics():
    import_torchvision()
    pytest.importorskip("ultralytics")
    module = built("ultralytics:yolov8n", nc=3)
    assert type(module).__name__ == "DetectionModel"
    assert all(p.is_meta for p in module.parameters())
    assert module.state_dict()["model.22.cv3.0.2.bias"].shape == (3,)
    with pytest.raises(ckpt.UsageError, match="has no model 'yolov88n'"):
        built("ultralytics:yolov88n")


def test_models_of_smp_are_built_without_the_weights_of_their_encoder(monkeypatch):
    package = types.ModuleType("segmentation_models_pytorch")

    class Unet(torch.nn.Linear):
        def __init__(self, classes=1, encoder_weights="imagenet"):
            assert encoder_weights is None
            super().__init__(4, classes)

    package.Unet = Unet
    monkeypatch.setitem(sys.modules, package.__name__, package)
    assert built("smp:Unet", classes=5).out_features == 5
    with pytest.raises(ckpt.UsageError, match="has no 'Unat'"):
        built("smp:Unat")


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sources._PACKAGES, "smp", "absent_package_of_models")
    with pytest.raises(ckpt.MissingDependencyError, match="which is not installed") as caught:
        built("smp:Unet")
    assert caught.value.hint == "install it with 'pip install absent-package-of-models'"


def test_no_builder_reaches_for_the_network(monkeypatch):
    package = types.ModuleType("segmentation_models_pytorch")

    class Calling(torch.nn.Linear):
        def __init__(self, encoder_weights=None):
            super().__init__(1, 1)
            socket.create_connection(("127.0.0.1", 9), timeout=0.1)

    package.Calling = Calling
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(ckpt.ConstructionError, match="would reach for the network"):
        built("smp:Calling")
    refused = socket.socket()
    with sources.offline(), pytest.raises(ckpt.ConstructionError):
        refused.connect(("127.0.0.1", 9))
    assert refused.fileno() == -1  # nobody else would close it
    local = socket.socket(socket.AF_UNIX)
    with sources.offline(), local, pytest.raises(OSError, match="No such file"):
        local.connect("/nowhere/at/all")
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)
