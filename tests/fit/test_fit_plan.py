"""What a fit takes from where, and that the result loads strictly into the real model."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import pytest
import torch
from architectures import architecture
from torch import Tensor, nn

from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.fit.adaptations import Classes, parse_adaptations
from ckpt_surgery.fit.fills import Fill, parse_fills
from ckpt_surgery.fit.initial import InitialValues
from ckpt_surgery.fit.items import FitItem, FitPlan
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.fit.plan import plan_fit
from ckpt_surgery.fit.values import fitted, initial_value
from ckpt_surgery.matching.correspondence import Level, correspond
from ckpt_surgery.models.building import build_module, build_target, describe, torchvision_names
from ckpt_surgery.models.specs import ModelSpec, parse_settings
from ckpt_surgery.models.target import Target, TensorSpec
from ckpt_surgery.models.torchvision_import import import_torchvision

Shapes = Mapping[str, tuple[int, ...]]


def plan(
    source: Sequence[TensorSpec],
    target: Target,
    options: FitOptions | None = None,
    level: Level = "prefix",
) -> FitPlan:
    return plan_fit(source, target, correspond(source, target.tensors, level=level), options)


def specs(shapes: Shapes) -> list[TensorSpec]:
    return [TensorSpec(name, shape) for name, shape in shapes.items()]


def target_of(shapes: Shapes) -> Target:
    return Target("target", tuple(specs(shapes)))


def options(
    *, adapt: Sequence[str] = (), fill: Sequence[str] = (), classes: Classes | None = None
) -> FitOptions:
    fills, rules = parse_fills(fill)
    return FitOptions((*parse_adaptations(adapt), *rules), fills, classes)


def carried_out(
    found: FitPlan, source: Mapping[str, Tensor], spec: ModelSpec, seed: int = 0
) -> dict[str, Tensor]:
    """The plan's result, as the command will compute it."""
    names = [item.name for item in found.items if item.needs_initial]
    own = InitialValues(spec, names, seed)

    def initial(item: FitItem) -> Tensor:
        return initial_value(item, seed, own.tensor)

    return {item.name: fitted(item, source.__getitem__, initial) for item in found.items}


def model_of(name: str, **arguments: int) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, **arguments)
    return model


def specs_of(state: Mapping[str, Tensor]) -> list[TensorSpec]:
    return [
        TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in state.items()
    ]


def classification() -> list[str]:
    models = import_torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


@pytest.mark.slow
def test_every_classifier_fits_ten_classes_on_paper() -> None:
    names = classification()
    assert len(names) > 70
    for name in names:
        source = architecture(name)
        target = build_target(f"torchvision:{name}", {"num_classes": 10})
        found = plan(source.tensors, target)
        assert [item.name for item in found.items] == target.names
        assert not found.having("adapted")
        for item in found.having("copied"):
            assert item.is_verbatim
            assert source.by_name[str(item.source)].shape == item.shape
        initial = [item.name for item in found.having("initial")]
        assert initial == [
            t.name for t in target.tensors if t.shape != source.by_name[t.name].shape
        ]
        assert initial, name


SMALL = ["alexnet", "squeezenet1_1", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5",
         "mnasnet0_5", "regnet_y_400mf", "efficientnet_b0"]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_fitted_classifier_loads_strictly_and_copies_bit_for_bit(name: str) -> None:
    source = model_of(name).state_dict()
    spec = ModelSpec(f"torchvision:{name}", {"num_classes": 10})
    target = describe(build_module(spec), str(spec))
    found = plan(specs_of(source), target)
    result = carried_out(found, source, spec)
    result_with_metadata = torch.nn.Module.state_dict(model_of(name, num_classes=10))
    result_with_metadata.update(result)
    assert result_with_metadata.keys() == result.keys()
    model_of(name, num_classes=10).load_state_dict(result_with_metadata, strict=True)
    for item in found.having("copied"):
        assert torch.equal(result[item.name], source[item.name])
    for item in found.having("initial"):
        assert torch.isfinite(result[item.name]).all()


@pytest.mark.slow
def test_detection_segmentation_and_video_models_copy_themselves() -> None:
    names = set(torchvision_names()) - set(classification())
    for name in sorted(names):
        target = architecture(name)
        assert len(plan(target.tensors, target).having("copied")) == len(target.tensors), name


def test_four_channels_and_another_head_are_adapted_as_asked() -> None:
    source = model_of("resnet18").state_dict()
    settings = parse_settings(["conv1.in_channels=4", "fc.out_features=21"])
    spec = ModelSpec("torchvision:resnet18", {}, settings)
    target = describe(build_module(spec), str(spec))
    found = plan(specs_of(source), target, options(fill=["conv1=zero", "fc=normal:0.01"]))
    result = carried_out(found, source, spec)
    model = model_of("resnet18", num_classes=21)
    model.conv1 = nn.Conv2d(4, 64, 7, stride=2, padding=3, bias=False)
    model.load_state_dict(result, strict=True)
    assert torch.equal(result["conv1.weight"][:, :3], source["conv1.weight"])
    assert not result["conv1.weight"][:, 3].any()
    assert result["fc.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert [i.name for i in found.having("adapted")] == ["conv1.weight"]
    assert [i.name for i in found.having("initial")] == ["fc.weight", "fc.bias"]
    assert result.keys() == carried_out(found, source, spec).keys()


def test_flow_input_takes_the_mean_of_the_colours() -> None:
    source = model_of("resnet18").state_dict()
    spec = ModelSpec("torchvision:resnet18", {}, parse_settings(["conv1.in_channels=10"]))
    target = describe(build_module(spec), str(spec))
    found = plan(specs_of(source), target, options(fill=["conv1=mean"]))
    result = carried_out(found, source, spec)["conv1.weight"]
    torch.testing.assert_close(result[:, 9], source["conv1.weight"].mean(dim=1))


def test_spatial_pyramid_alexnet_copies_thirteen() -> None:
    settings = parse_settings(["classifier.1.in_features=12800", "classifier.6.out_features=20"])
    target = build_target("torchvision:alexnet", {}, settings)
    found = plan(build_target("torchvision:alexnet").tensors, target)
    assert len(found.having("copied")) == 13
    assert [item.name for item in found.having("initial")] == [
        "classifier.1.weight",
        "classifier.6.weight",
        "classifier.6.bias",
    ]


def test_resnet50_with_new_layers_copies_318() -> None:
    source = build_target("torchvision:resnet50")
    kept = [t for t in source.tensors if not t.name.startswith("fc.")]
    added = specs({"up.weight": (2048, 256, 4, 4), "fclass.weight": (7, 256), "fclass.bias": (7,)})
    found = plan(source.tensors, Target("t", (*kept, *added)))
    assert len(found.having("copied")) == 318
    assert [spec.name for spec in found.dropped] == ["fc.weight", "fc.bias"]
    assert [item.name for item in found.having("initial")] == [spec.name for spec in added]


def test_the_report_counts_tensors_and_elements() -> None:
    found = plan(
        specs({"a": (2, 3), "c": (2, 2, 1), "d": (5,), "x": (7,)}),
        target_of({"a": (2, 3), "b": (4,), "c": (2, 2), "d": (6,)}),
        options(adapt=["squeeze"]),
    )
    assert found.to_dict() == {
        "copied": ["a"],
        "cast": [],
        "adapted": [{"name": "c", "how": "squeeze", "from_shape": [2, 2, 1], "to_shape": [2, 2]}],
        "initial": ["b", "d"],
        "dropped": ["d", "x"],
        "elements": {"copied": 6, "cast": 0, "adapted": 4, "initial": 10, "dropped": 12},
    }


def test_every_initial_tensor_has_its_reason_and_what_would_have_helped() -> None:
    found = plan(
        specs({"a": (2,), "fc.weight": (10, 4)}),
        target_of({"a": (2,), "b": (4,), "fc.weight": (5, 4)}),
    )
    by_name = {item.name: item for item in found.items}
    assert by_name["b"].reason == "not in the checkpoint"
    assert by_name["fc.weight"].reason == "shape [10, 4] does not fit [5, 4]"
    assert by_name["fc.weight"].source_shape == (10, 4)
    assert by_name["fc.weight"].would_adapt == ("rows", "overlap")


def test_classes_carry_over_a_head() -> None:
    classes = Classes(("cat", "dog"), ("dog", "emu", "cat"))
    source = {"a": torch.zeros(1), "fc.weight": torch.randn(2, 4), "fc.bias": torch.randn(2)}
    target = target_of({"a": (1,), "fc.weight": (3, 4), "fc.bias": (3,)})
    found = plan(specs_of(source), target, options(adapt=["rows"], classes=classes))
    zeros = {item.name: torch.zeros(item.shape) for item in found.items}
    result = {
        item.name: fitted(item, source.__getitem__, lambda i: zeros[i.name]) for item in found.items
    }
    assert torch.equal(result["fc.weight"], torch.stack([source["fc.weight"][1], torch.zeros(4),
                                                         source["fc.weight"][0]]))  # fmt: skip
    assert torch.equal(result["fc.bias"][[0, 2]], source["fc.bias"][[1, 0]])


def test_ties_share_one_value_wherever_it_comes_from() -> None:
    target = build_target("model_factories:tied")
    for present in ("encoder.weight", "decoder.weight"):
        found = plan(specs({present: (7, 4)}), target)
        first, second = found.items
        assert (first.status, second.status) == ("copied", "copied")
        assert first.source == second.source == present
        assert (first.tie_of, second.tie_of) == (None, "encoder.weight")
    separate = plan(specs({"encoder.weight": (7, 4), "decoder.weight": (7, 4)}), target)
    assert separate.items[1].tie_of == "encoder.weight"
    assert [spec.name for spec in separate.dropped] == ["encoder.weight"]
    (note,) = separate.notes
    assert note == (
        "'encoder.weight' is tied in the target: 'decoder.weight' of the checkpoint is taken "
        "for it, not 'encoder.weight'"
    )
    shapes = specs({"encoder.weight": (7, 4), "decoder.weight": (7, 4)})
    ties = [["decoder.weight", "encoder.weight"]]
    found = correspond(shapes, target.tensors)
    together = plan_fit(shapes, target, found, source_ties=ties)
    assert together.notes == together.dropped == ()


def test_of_tied_names_the_last_that_fits_is_taken() -> None:
    target = build_target("model_factories:tied")
    found = plan(specs({"encoder.weight": (7, 4), "decoder.weight": (7, 5)}), target)
    assert [item.source for item in found.items] == ["encoder.weight"] * 2
    with pytest.raises(PlanError, match="no shape"):
        plan(specs({"encoder.weight": (6, 4), "decoder.weight": (7, 5)}), target)


def test_what_is_tied_only_in_the_checkpoint_is_untied() -> None:
    shapes = specs({"a": (2,), "b": (2,), "c": (2,), "d": (2,)})
    target = Target("t", tuple(shapes), ties=(("c", "d"),))
    found = correspond(shapes, target.tensors)
    ties = [["a", "b", "c", "d"]]
    items = plan_fit(shapes, target, found, source_ties=ties).items
    assert [item.untied_from for item in items] == [None, "a", "a", None]
    assert [item.tie_of for item in items] == [None, None, None, "c"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("tied", [True, False])
def test_ties_and_unmatched_names_take_linear_time(tied: bool) -> None:
    """40,000 ties took 46 seconds, 20,000 unmatched names 17."""
    ours = specs({f"a{i}.w": (2,) for i in range(40_000)} | {"x": (3,)})
    theirs = ours if tied else specs({f"b{i}.w": (2,) for i in range(40_000)} | {"x": (3,)})
    ties = (tuple(spec.name for spec in theirs[:-1]),) if tied else ()
    target = Target("t", tuple(theirs), ties=ties)
    found = plan_fit(ours, target, correspond(ours, target.tensors), source_ties=ties)
    assert len(found.having("copied")) == (40_001 if tied else 1)


def test_a_tie_is_initial_as_a_whole() -> None:
    target = Target("t", tuple(specs({"a": (2,), "b": (3,), "c": (3,)})), ties=(("b", "c"),))
    found = plan(specs({"a": (2,)}), target)
    assert [(i.status, i.needs_initial) for i in found.items] == [
        ("copied", False),
        ("initial", True),
        ("initial", False),
    ]


def test_element_types_come_out_as_the_target_has_them() -> None:
    source = [TensorSpec("w", (2,), "float16"), TensorSpec("n", (), "int64")]
    target = Target("t", (TensorSpec("w", (2,), "float32"), TensorSpec("n", (), "int64")))
    found = plan(source, target)
    assert [(i.dtype, i.is_verbatim) for i in found.items] == [("float32", False), ("int64", True)]
    half = plan(source, target, FitOptions(dtype="half"))
    assert [(i.dtype, i.is_verbatim) for i in half.items] == [("float16", True), ("int64", True)]
    values = {"w": torch.tensor([1.5, 2.5]).half(), "n": torch.tensor(3)}
    result = [fitted(i, values.__getitem__, lambda i: torch.zeros(())) for i in found.items]
    assert result[0].dtype == torch.float32
    assert result[0].tolist() == [1.5, 2.5]


def test_an_unknown_element_type_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no element type 'float33'"):
        plan(specs({"a": (1,)}), target_of({"a": (1,)}), FitOptions(dtype="float33"))
    with pytest.raises(UsageError, match="'int8' is no floating-point type"):
        plan(specs({"a": (1,)}), target_of({"a": (1,)}), FitOptions(dtype="int8"))


def test_complex_numbers_do_not_become_real() -> None:
    source = [TensorSpec("w", (2,), "complex64"), TensorSpec("a", (1,))]
    found = plan(source, target_of({"w": (2,), "a": (1,)}))
    assert found.items[0].status == "initial"
    assert found.items[0].reason == "complex numbers do not fit float32"
    assert [spec.name for spec in found.dropped] == ["w"]


def test_a_scalar_of_old_torch_is_copied() -> None:
    found = plan(specs({"a": (1,)}), target_of({"a": ()}))
    assert found.items[0].status == "copied"
    value = fitted(
        found.items[0], {"a": torch.tensor([4.0])}.__getitem__, lambda i: torch.zeros(())
    )
    assert value.shape == ()


def test_nothing_copied_is_an_error() -> None:
    with pytest.raises(PlanError, match="no name agrees") as raised:
        plan(specs({"a": (1,)}), target_of({"b": (2,)}))
    assert "--match" in str(raised.value.hint)
    with pytest.raises(PlanError, match="1 name agrees, but no shape") as raised:
        plan(specs({"a": (1,)}), target_of({"a": (2,)}))
    assert "--adapt" in str(raised.value.hint)


def test_an_empty_target_is_no_error() -> None:
    assert plan(specs({"a": (1,)}), target_of({})).items == ()


def test_initial_tensors_outside_the_selection_are_refused() -> None:
    source, target = specs({"a": (1,)}), target_of({"a": (1,), "fc.w": (2,), "x": (3,)})
    only_head = FitOptions(may_be_initial=lambda name: name.startswith("fc."))
    with pytest.raises(PlanError, match=r"^'x' would take its initial value"):
        plan(source, target, only_head)
    nothing = FitOptions(may_be_initial=lambda name: False)
    with pytest.raises(PlanError, match=r"'fc\.w', 'x' would take their initial"):
        plan(source, target, nothing)
    many = target_of({"a": (1,)} | {f"m{i}": (1,) for i in range(10)})
    with pytest.raises(PlanError, match="'m7' and 2 more would"):
        plan(source, many, nothing)
    plan(source, target_of({"a": (1,), "fc.w": (2,)}), only_head)


def test_the_most_confined_fill_is_taken() -> None:
    target = target_of({"a": (1,), "fc.weight": (2, 2), "fc.bias": (2,), "x": (3,)})
    found = plan(specs({"a": (1,)}), target, options(fill=["zeros", "fc=ones", "fc.bias=init"]))
    assert [str(item.fill) for item in found.items] == ["None", "ones", "init", "zeros"]


def test_a_general_fill_leaves_buffers_alone() -> None:
    spec = ModelSpec("torchvision:resnet18")
    target = describe(build_module(spec), str(spec))
    source = [target.by_name["conv1.weight"]]
    found = plan(source, target, options(fill=["zeros"]))
    filled = {item.name for item in found.items if item.fill is not None}
    assert "bn1.weight" in filled
    assert not any("running" in name or "batches" in name for name in filled)
    # a target that is only a file tells buffers by name and type alone
    plain = Target("t", tuple(TensorSpec(t.name, t.shape, t.dtype) for t in target.tensors))
    assert {i.name for i in plan(source, plain, options(fill=["zeros"])).items if i.fill} == filled
    named = plan(source, target, options(fill=["bn1.running_var=ones", "bn1=zeros"]))
    by_name = {item.name: item.fill for item in named.items}
    assert by_name["bn1.running_var"] == Fill("ones", 0.0, "bn1.running_var")
    assert by_name["bn1.running_mean"] is None


@pytest.mark.parametrize(
    ("fill", "message", "hint"),
    [
        ("a=zeros", "applies to nothing", "takes its values from the checkpoint"),
        ("fcc=zeros", "the target has no 'fcc'", "'fc"),
        ("a=mean", "applies to nothing", "takes its values from the checkpoint"),
        ("fcc=mean", "the target has no 'fcc'", "'fc"),
    ],
)
def test_a_fill_that_applies_to_nothing_is_an_error(fill: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        plan(
            specs({"a": (1,)}),
            target_of({"a": (1,), "fc.weight": (2,)}),
            options(fill=[fill]),
        )
    assert hint in str(raised.value.hint)


def test_class_lists_that_no_head_uses_are_an_error() -> None:
    classes = Classes(("a", "b"), ("b",))
    with pytest.raises(UsageError, match="used by no tensor"):
        plan(specs({"a": (1,)}), target_of({"a": (1,)}), options(adapt=["rows"], classes=classes))


def test_position_embeddings_of_a_larger_image_are_interpolated() -> None:
    source = build_target("torchvision:vit_b_32")
    target = build_target("torchvision:vit_b_32", {"image_size": 384})
    found = plan(source.tensors, target, options(adapt=["interpolate"]))
    (item,) = found.having("adapted")
    assert item.name == "encoder.pos_embedding"
    assert (item.source_shape, item.shape) == ((1, 50, 768), (1, 145, 768))
    assert not found.having("initial")


@pytest.mark.parametrize(
    ("fill", "dtype", "shape", "message"),
    [
        ("fc=kaiming", "float32", (5,), "'fc.b' has one axis, and 'kaiming' needs two"),
        ("xavier", "float32", (), "'fc.b' has no axis, and 'xavier' needs two"),
        ("fc.b=normal", "int64", (5,), "is int64, which cannot be filled by 'normal:0.02'"),
        ("fc.b=kaiming", "int64", (5, 5), "cannot be filled by 'kaiming'"),
        ("fc.b=constant:2.5", "int64", (5,), "cannot be filled by 'constant:2.5'"),
        ("fc.b=constant:nan", "int64", (5,), "cannot be filled by"),
        ("fc.b=constant:256", "uint8", (5,), "cannot be filled by"),
        ("fc.b=constant:-1", "uint8", (5,), "cannot be filled by"),
        ("fc.b=constant:128", "int8", (5,), "cannot be filled by"),
        ("fc.b=constant:2", "bool", (5,), "cannot be filled by"),
        ("fc.b=zeros", "qint8", (5,), "cannot be filled by"),
        ("fc.b=uniform", "complex64", (5,), "cannot be filled by"),
    ],
)
def test_a_fill_that_cannot_be_is_refused_before_anything_is_computed(
    fill: str, dtype: str, shape: tuple[int, ...], message: str
) -> None:
    target = Target("t", (TensorSpec("a", (1,)), TensorSpec("fc.b", shape, dtype)))
    with pytest.raises(UsageError, match=message) as raised:
        plan(specs({"a": (1,)}), target, options(fill=[fill]))
    assert "--fill fc.b=" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        ("constant:255", "uint8"),
        ("constant:-128", "int8"),
        ("ones", "bool"),
        ("init", "qint8"),
        ("normal:0.5", "complex64"),
    ],
)
def test_a_fill_that_can_be_is_planned(fill: str, dtype: str) -> None:
    target = Target("t", (TensorSpec("a", (1,)), TensorSpec("b", (5,), dtype)))
    found = plan(specs({"a": (1,)}), target, options(fill=[f"b={fill}"]))
    assert str(found.items[1].fill) == fill


def test_a_kaiming_head_with_a_bias_of_its_own_is_planned() -> None:
    target = target_of({"a": (1,), "fc.weight": (2, 2), "fc.bias": (2,)})
    found = plan(specs({"a": (1,)}), target, options(fill=["kaiming", "fc.bias=zeros"]))
    assert [str(item.fill) for item in found.items[1:]] == ["kaiming", "zeros"]


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_a_table_of_integers_is_the_targets_own(dtype: str) -> None:
    """A leading block of Swin's ``relative_position_index`` would index another window."""
    source = [TensorSpec("a", (1,)), TensorSpec("index", (4, 4), dtype)]
    target = Target("t", (TensorSpec("a", (1,)), TensorSpec("index", (6, 4), dtype)))
    (_, item) = plan(source, target, options(adapt=["rows", "overlap"])).items
    assert (item.status, item.would_adapt) == ("initial", ())
    flat = Target("t", (TensorSpec("a", (1,)), TensorSpec("index", (4, 1, 4), dtype)))
    (_, item) = plan(source, flat, options(adapt=["squeeze"])).items
    assert item.status == "adapted"


def test_complex_tables_are_not_interpolated() -> None:
    source = [TensorSpec("a", (1,)), TensorSpec("pos_embed", (1, 17, 4), "complex64")]
    target = Target("t", (TensorSpec("a", (1,)), TensorSpec("pos_embed", (1, 26, 4), "complex64")))
    (_, item) = plan(source, target, options(adapt=["interpolate"])).items
    assert item.status == "initial"
    assert "interpolate" not in item.would_adapt
    assert item.would_adapt


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("metadata", "version"), [(None, None), ({}, None), ("bn", 1), ("bn", 2), ("bn", None)]
)
def test_counters_that_torch_does_without_may_be_initial(
    prefix: str, metadata: str | dict[str, dict[str, object]] | None, version: int | None
) -> None:
    """torch itself is asked: what it does not miss is not refused, what it misses is."""
    model = nn.Sequential(OrderedDict(bn=nn.BatchNorm1d(3)))
    state = model.state_dict()
    del state["bn.num_batches_tracked"]
    known = {f"{prefix}bn": {"version": version}} if isinstance(metadata, str) else metadata
    stored = {"bn": {"version": version}} if isinstance(metadata, str) else metadata
    state._metadata = stored  # type: ignore[attr-defined]
    missing = model.load_state_dict(state, strict=False).missing_keys
    source = [TensorSpec(prefix + s.name, s.shape, s.dtype) for s in specs_of(state)]
    target = describe(model, "m")
    arguments = (source, target, correspond(source, target.tensors))
    nothing = FitOptions(may_be_initial=lambda name: False)
    if missing:
        with pytest.raises(PlanError, match="num_batches_tracked"):
            plan_fit(*arguments, nothing, source_metadata=known)
    else:
        item = plan_fit(*arguments, nothing, source_metadata=known).items[-1]
        assert item.status == "initial"
        assert item.is_optional
        assert "0.4.1" in str(item.reason)


def test_a_counter_without_its_batch_norm_is_refused() -> None:
    target = target_of({"a": (1,), "bn.running_mean": (3,), "bn.num_batches_tracked": ()})
    nothing = FitOptions(may_be_initial=lambda name: name == "bn.running_mean")
    with pytest.raises(PlanError, match=r"'bn\.num_batches_tracked' would"):
        plan(specs({"a": (1,)}), target, nothing)


def test_a_deep_name_costs_no_memory_when_a_fill_is_refused() -> None:
    """Every prefix of a name of 20,000 segments would be 400 MB."""
    target = target_of({"a": (1,), "b." * 20_000 + "w": (1,)})
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="the target has no 'bcd'"):
            plan(specs({"a": (1,)}), target, options(fill=["bcd=zeros"]))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("old", "new", "adapt", "expected"),
    [
        ((10, 4), (5, 4), "rows", False),
        ((5, 4), (10, 4), "rows", True),
        ((5, 4), (4, 3), "overlap", False),
        ((5, 4), (4, 5), "overlap", True),
        ((5, 3), (5, 7), "overlap", True),
        ((8, 3, 3, 3), (8, 4, 3, 3), "channels", False),
    ],
)
def test_what_is_partly_initial_has_elements_of_no_checkpoint(old, new, adapt, expected):
    shapes = {"x.weight": old, "same": (2,)}
    if sorted(old) == sorted(new):
        new = (*new[:-1], new[-1] + 1)
    target = target_of({"x.weight": new, "same": (2,)})
    found = plan(specs(shapes), target, options(adapt=[adapt]))
    assert [item.is_partly_initial for item in found.items] == [expected, False]


def test_classes_that_are_all_known_leave_nothing_initial():
    classes = Classes(("cat", "dog", "cow"), ("dog", "cat"))
    found = plan(
        specs({"x.weight": (3, 4)}),
        target_of({"x.weight": (2, 4)}),
        options(adapt=["rows"], classes=classes),
    )
    assert not found.items[0].is_partly_initial
