"""Constructors that run networks, move tensors or read values are described all the same."""

from __future__ import annotations

import copy
import sys

import model_factories as factories
import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.errors import ConstructionError, UsageError
from ckpt_surgery.freeze import asked
from ckpt_surgery.models.building import build_module, build_target, describe
from ckpt_surgery.models.specs import ModelSpec, parse_settings
from ckpt_surgery.models.stand_ins import as_description, with_fakes

BUILT = {
    "detector": {},
    "moved": {"device": "cuda:3", "dtype": "float16"},
    "on_a_gpu": {},
    "moved_detector": {},
}


def _real(name):
    if name == "on_a_gpu":
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model.register_buffer("table", torch.zeros(3, dtype=torch.float64))
        return model
    if name == "moved":
        return nn.Linear(2, 2).half()
    return factories.Detector().half() if name == "moved_detector" else factories.Detector()


@pytest.mark.parametrize("name", BUILT)
def test_it_is_described_as_what_it_really_is(name):
    model = build_module(ModelSpec(f"model_factories:{name}", BUILT[name]))
    assert all(tensor.is_meta for tensor in model.parameters())
    found, real = describe(model, name), describe(_real(name), name)
    assert found.tensors == real.tensors
    assert (found.ties, found.metadata, found.parameters) == (
        real.ties, real.metadata, real.parameters,
    )  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_torch_itself_says_what_matches(name, tmp_path):
    state_dict = _real(name).state_dict()
    torch.save(state_dict, tmp_path / "w.pth")
    report = ckpt.match(tmp_path / "w.pth", model=f"model_factories:{name}", model_args=BUILT[name])
    assert report.exit_code == 0
    torch.save(dict(list(state_dict.items())[1:]), tmp_path / "less.pth")
    report = ckpt.match(
        tmp_path / "less.pth", model=f"model_factories:{name}", model_args=BUILT[name]
    )
    assert report.to_dict()["missing_keys"] == [next(iter(state_dict))]


def test_nothing_fake_is_left_and_nothing_stays_patched():
    own = nn.Module._apply
    spec = ModelSpec("model_factories:detector", {}, parse_settings(["head.out_features=3"]))
    with pytest.raises(UsageError, match="shares a parameter"):
        build_module(spec)
    model = build_module(ModelSpec("model_factories:detector"))
    kinds = {type(model.stride), type(model.strides[0]), type(model.strides[1][0])}
    assert kinds == {torch.Tensor}
    assert model.strides[0] is model.stride
    assert nn.Module._apply is own
    copy.deepcopy(model)
    with pytest.raises(ZeroDivisionError), with_fakes():
        raise ZeroDivisionError
    assert nn.Module._apply is own


def test_code_that_needs_values_is_run_for_real_if_allowed():
    with pytest.raises(ConstructionError) as raised:
        build_target("model_factories:needs_values")
    assert "'build real' makes them, on the CPU" in str(raised.value.hint)
    model = build_module(ModelSpec("model_factories:needs_values", build="real"))
    assert {tuple(p.shape) for p in model.parameters()} == {(100,), (3, 1), (3,)}
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_fit_to_it_replays(tmp_path):
    torch.manual_seed(0)
    state_dict = factories.needs_values().state_dict()
    del state_dict["head.bias"]
    torch.save(state_dict, tmp_path / "w.pth")
    choices = {"model": "model_factories:needs_values", "build": "real"}
    report = ckpt.fit(tmp_path / "w.pth", tmp_path / "o.pth", **choices)
    assert report.to_dict()["initial"] == ["head.bias"]
    assert report.to_dict()["plan"][0]["target"]["build"] == "real"
    factories.needs_values().load_state_dict(torch.load(tmp_path / "o.pth"))


def test_the_same_error_twice_is_the_codes_own():
    with pytest.raises(ConstructionError, match="no such configuration") as raised:
        build_module(ModelSpec("model_factories:raises", build="meta"))
    assert raised.value.hint is None


def test_a_build_that_is_none_is_refused():
    with pytest.raises(UsageError, match="'build fast' is none of meta, real"):
        ModelSpec("model_factories:stack", build="fast")
    with pytest.raises(UsageError, match="'build' are about a model"):
        ckpt.MatchRequest(like="a.pth", build="real")


def test_what_is_no_tensor_stays(tmp_path):
    model = nn.Linear(2, 2)
    model.notes = {"a": [torch.zeros(1)], "b": "text"}
    described = as_description(model)
    assert described is model
    assert model.notes["b"] == "text"


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("ModuleNotFoundError(f\"Could not import '{name}'\")", "Could not import 'Thing'"),
        ("RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
        ("SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_package_that_imports_its_parts_when_asked_may_fail(
    raised, message, tmp_path, monkeypatch
):
    """transformers and diffusers do so; it ended as a bug in ckpt."""
    code = f"def __getattr__(name):\n    raise {raised}\n"
    (tmp_path / "lazy_package.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConstructionError, match=message):
        build_target("lazy_package:Thing")
    del sys.modules["lazy_package"]


class _Raising(nn.Linear):
    """A model of which one method raises, as another's code may."""

    def __init__(self, method):
        super().__init__(2, 2)
        self.method = method

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "__dict__").get("method"):
            raise ZeroDivisionError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("method", ["named_parameters", "named_modules", "state_dict"])
def test_what_a_model_raises_when_it_is_asked_is_its_own_fault(method):
    with pytest.raises(ConstructionError, match=f"ZeroDivisionError: {method}"):
        describe(_Raising(method), "mine:Net")


def test_what_this_package_raises_is_not_the_model_s_fault(monkeypatch):
    monkeypatch.setattr("ckpt_surgery.models.building._ties", None)
    with pytest.raises(TypeError):
        describe(nn.Linear(2, 2), "mine:Net")


@pytest.mark.parametrize("method", ["group_matcher", "get_classifier", "no_weight_decay"])
def test_a_model_that_cannot_be_asked_about_its_layers_is_named(method):
    with pytest.raises(ConstructionError, match=f"'_Raising' cannot be asked .*: {method}"):
        asked.ask(_Raising(method))


def test_an_answer_that_is_none_is_named():
    model = nn.Linear(2, 2)
    model.no_weight_decay = lambda: 7
    with pytest.raises(ConstructionError, match="'no_weight_decay' gave 'int', no names"):
        asked.ask(model)
