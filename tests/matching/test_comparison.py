"""The verdict on a state dict is torch's own, in torch's own words."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from functools import cache
from typing import Any

import model_factories
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.matching.comparison import Comparison, compare, loads_into
from ckpt_surgery.matching.verdict import judge, upgraded_names
from ckpt_surgery.models.building import build_module, describe
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.models.target import Target, TensorSpec
from ckpt_surgery.models.torchvision_import import import_torchvision

SMALL = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18", "mnasnet0_5"]


@cache
def on_meta(spec: str) -> tuple[nn.Module, Target]:
    model = build_module(ModelSpec(spec))
    return model, describe(model, spec)


@cache
def real(name: str) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None)
    return model


def specs_of(state: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [
        TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in state.items()
    ]


def torch_says(model: nn.Module, state: dict[str, Any]) -> str:
    try:
        return str(model.load_state_dict(state, strict=True))
    except RuntimeError as error:
        return str(error)


def words(message: str) -> tuple[list[str], list[str], list[str]]:
    """Missing, unexpected and mismatch lines of torch's message, each sorted."""
    missing = re.search(r"Missing key\(s\) in state_dict: (.*)\. $", message, re.MULTILINE)
    unexpected = re.search(r"Unexpected key\(s\) in state_dict: (.*)\. $", message, re.MULTILINE)
    return (
        sorted(missing[1].split(", ")) if missing else [],
        sorted(unexpected[1].split(", ")) if unexpected else [],
        sorted(line.strip() for line in message.splitlines() if "size mismatch" in line),
    )


def assert_same_verdict(found: Comparison, model: nn.Module, state: dict[str, Any]) -> None:
    said = torch_says(model, state)
    assert words(found.wording(type(model).__name__)) == words(said)
    assert found.fits == (said == "<All keys matched successfully>")


Edit = tuple[str, str, str]  # what is done, to which key, and how


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    """The name of an architecture and random removals, reshapings, casts and additions."""
    name = draw(st.sampled_from(SMALL))
    key = st.sampled_from(list(real(name).state_dict()))
    removed = st.tuples(st.just("remove"), key, st.just(""))
    changed = st.tuples(
        st.just("change"), key, st.sampled_from(["half", "unsqueeze", "flatten", "replace"])
    )
    added = st.tuples(
        st.just("add"), key, st.sampled_from(["{}x", "{}.x", "module.{}", "y.{}.0.weight"])
    )
    return name, draw(st.lists(st.one_of(removed, changed, added), max_size=10))


def edited(name: str, changes: list[Edit]) -> dict[str, torch.Tensor]:
    original = real(name).state_dict()
    state = OrderedDict(original)
    state._metadata = original._metadata  # type: ignore[attr-defined]
    for what, key, how in changes:
        if what == "remove":
            state.pop(key, None)
        elif what == "add":
            state[how.format(key)] = torch.zeros(1)
        elif key in state:
            state[key] = {
                "half": state[key].half(),
                "unsqueeze": state[key].unsqueeze(0),
                "flatten": state[key].reshape(-1),
                "replace": torch.zeros(2, 3),
            }[how]
    return state


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(edits())
def test_the_verdict_is_that_of_torch_after_any_edit(
    case: tuple[str, list[Edit]],
) -> None:
    name, state = case[0], edited(*case)
    model, target = on_meta(f"torchvision:{name}")
    metadata = state._metadata  # type: ignore[attr-defined]
    source = specs_of(state)
    assert_same_verdict(judge(model, target, source, metadata=metadata), real(name), state)
    found = compare(source, target, source_metadata=metadata)
    assert_same_verdict(found, real(name), state)
    casts = {d.name for d in found.dtype_differences}
    own = real(name).state_dict()
    assert casts == {k for k in own if k in state and state[k].dtype != own[k].dtype}
    assert len(found.matched) + len(found.mismatched) + len(found.missing) == len(target.tensors)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(edits().filter(lambda case: case[0] != "mnasnet0_5"))
def test_the_verdict_is_that_of_torch_without_metadata(
    case: tuple[str, list[Edit]],
) -> None:
    name, state = case[0], edited(*case)
    model, target = on_meta(f"torchvision:{name}")
    plain = dict(state)
    for found in (judge(model, target, specs_of(plain)), compare(specs_of(plain), target)):
        assert_same_verdict(found, real(name), plain)
        parts = (
            *found.matched, *found.missing, *found.defaulted,
            *(m.name for m in found.mismatched), *(t.name for t in found.tied),
        )  # fmt: skip
        assert sorted(parts) == sorted(target.names)
        assert {n.rpartition(".")[2] for n in found.defaulted} <= {"num_batches_tracked"}


def test_a_models_own_state_dict_matches_entirely() -> None:
    model, target = on_meta("torchvision:resnet18")
    found = judge(model, target, target.tensors, metadata=target.metadata)
    assert found == compare(target.tensors, target, source_metadata=target.metadata)
    assert found.fits
    assert found.exit_code == 0
    assert list(found.matched) == target.names
    assert found.wording("ResNet") == "<All keys matched successfully>"


def test_a_missing_head_is_said_in_torchs_words() -> None:
    _, target = on_meta("torchvision:resnet34")
    source = [t for t in target.tensors if not t.name.startswith("fc.")]
    source.append(TensorSpec("head.weight", (2, 2)))
    found = compare(source, target, source_metadata=target.metadata)
    assert found.exit_code == 1
    assert found.wording("ResNet") == (
        "Error(s) in loading state_dict for ResNet:\n"
        '\tMissing key(s) in state_dict: "fc.weight", "fc.bias". \n'
        '\tUnexpected key(s) in state_dict: "head.weight". '
    )
    assert found.to_dict()["missing_keys"] == ["fc.weight", "fc.bias"]


def test_json_holds_both_shapes_and_both_types() -> None:
    target = Target("t", (TensorSpec("a", (2,)), TensorSpec("b", (3,), "int64")))
    found = compare([TensorSpec("a", (5,)), TensorSpec("b", (3,), "float16")], target)
    document = found.to_dict()
    assert document["mismatched_keys"] == [["a", [5], [2]]]
    assert document["dtype_differences"] == [["b", "float16", "int64"]]
    assert (
        str(found.mismatched[0])
        == "size mismatch for a: copying a param with shape torch.Size([5]) "
        "from checkpoint, the shape in current model is torch.Size([2])."
    )


def test_tied_aliases_are_not_missing() -> None:
    model, target = on_meta("model_factories:tied")
    source = [t for t in target.tensors if t.name == "encoder.weight"]
    for found in (judge(model, target, source), compare(source, target)):
        assert found.fits
        assert [(t.name, t.present) for t in found.tied] == [("decoder.weight", "encoder.weight")]
    # what torch itself says of such a file
    state = {"encoder.weight": torch.zeros(7, 4)}
    missing = model_factories.tied().load_state_dict(state, strict=False).missing_keys
    assert missing == ["decoder.weight"]
    neither = compare([], target)
    assert neither.missing == ("encoder.weight", "decoder.weight")


@pytest.mark.parametrize("version", [None, 1, 2])
def test_batch_counters_are_missing_only_since_version_two(version: int | None) -> None:
    model, target = on_meta("torchvision:resnet18")
    source = [t for t in target.tensors if not t.name.endswith("num_batches_tracked")]
    metadata = None
    if version is not None:
        metadata = {module: {"version": version} for module in target.metadata or ()}
    for found in (
        judge(model, target, source, metadata=metadata),
        compare(source, target, source_metadata=metadata),
    ):
        assert len(found.missing) == (20 if version == 2 else 0)


def test_extra_state_is_compared_and_never_set() -> None:
    model, target = on_meta("model_factories:WithExtraState")
    for extra, missing, unexpected in (
        (["_extra_state"], (), ()),
        ([], ("_extra_state",), ()),
        (["_extra_state", "x._extra_state"], (), ("x._extra_state",)),
    ):
        for found in (
            judge(model, target, target.tensors, extra_state=extra),
            compare(target.tensors, target, source_extra_state=extra),
        ):
            assert found.missing == missing
            assert found.unexpected == unexpected


@pytest.mark.parametrize(
    ("checkpoint", "model"), [((1,), ()), ((2,), ()), ((), (1,)), ((2,), (2,))]
)
def test_scalars_load_as_torch_loads_them(
    checkpoint: tuple[int, ...], model: tuple[int, ...]
) -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(model))

    accepted = torch_says(Scalar(), {"p": torch.zeros(checkpoint)}).startswith("<All")
    assert loads_into(checkpoint, model) == accepted


RENAMED = [
    ("vit_b_16", {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}, 48),
    ("fasterrcnn_resnet50_fpn", {"head.conv.0.0.": "head.conv."}, 2),
]


@pytest.mark.parametrize(("name", "spellings", "count"), RENAMED)
def test_what_the_models_own_code_renames_is_followed(
    name: str, spellings: dict[str, str], count: int
) -> None:
    model, target = on_meta(f"torchvision:{name}")
    source = []
    for spec in target.tensors:
        old = spec.name
        for new, spelling in spellings.items():
            old = old.replace(new, spelling)
        source.append(TensorSpec(old, spec.shape, spec.dtype))
    renamed = upgraded_names(model, source)
    assert len(renamed) == count
    assert set(renamed.values()) <= set(target.names)
    found = judge(model, target, source)
    assert found.fits
    assert len(found.matched) == len(target.tensors)
    assert dict(found.renamed) == renamed


def test_a_verdict_leaves_the_model_as_it_was() -> None:
    model, target = on_meta("torchvision:mnasnet0_5")
    old = {module: {"version": 1} for module in target.metadata or ()}
    judge(model, target, target.tensors, metadata=old)
    assert describe(model, target.title) == target


def test_what_the_models_loading_code_raises_is_reported() -> None:
    model, target = on_meta("model_factories:Awkward")
    source = [*target.tensors, TensorSpec("other", (1,))]
    assert upgraded_names(model, source) == {}
    with pytest.raises(ConstructionError, match="own loading code raised KeyError"):
        judge(model, target, source)


@pytest.mark.parametrize("shape", [(-1,), (2**62, 2**62), (2**70,)])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    model, target = on_meta("torchvision:squeezenet1_1")
    with pytest.raises(ConstructionError, match="a shape that no tensor can have"):
        judge(model, target, [TensorSpec("features.0.weight", shape)])


def test_no_warning_escapes_a_verdict() -> None:
    model, target = on_meta("torchvision:regnet_y_400mf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judge(model, target, target.tensors).fits


def test_a_verdict_leaves_the_metadata_as_it_was() -> None:
    # torch notes 'assign' in the metadata it is given, and would act on it at the next load
    model, target = on_meta("torchvision:squeezenet1_1")
    metadata = {module: {"version": 1} for module in target.metadata or ()}
    judge(model, target, [TensorSpec("x", (1,))], metadata=metadata)
    assert all(stored == {"version": 1} for stored in metadata.values())
