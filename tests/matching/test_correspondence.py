"""Which tensor is which: found as safely as possible, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import UsageError
from ckpt_surgery.matching import correspondence
from ckpt_surgery.matching.alignment import align_in_order
from ckpt_surgery.matching.correspondence import (
    LEVELS,
    AmbiguousMatchError,
    Correspondence,
    Level,
    correspond,
)
from ckpt_surgery.models.building import build_target
from ckpt_surgery.models.target import TensorSpec
from ckpt_surgery.names.spellings import modern_spelling, unwrapped


@cache
def tensors(name: str, **arguments: int) -> tuple[TensorSpec, ...]:
    return build_target(f"torchvision:{name}", dict(arguments)).tensors


def renamed(source: Iterable[TensorSpec], change: Callable[[str], str]) -> list[TensorSpec]:
    return [TensorSpec(change(spec.name), spec.shape, spec.dtype) for spec in source]


def specs(*names: str, shape: tuple[int, ...] = (2,)) -> list[TensorSpec]:
    return [TensorSpec(name, shape) for name in names]


def assert_pairs_all(
    found: Correspondence, source: Sequence[TensorSpec], target: Sequence[TensorSpec]
) -> None:
    assert [(p.source, p.target) for p in found.pairs] == [
        (old.name, new.name) for old, new in zip(source, target, strict=True)
    ]
    assert found.unmatched_source == found.unmatched_target == ()


@pytest.mark.parametrize("level", LEVELS)
def test_equal_names_pair_at_every_level(level: Level) -> None:
    target = tensors("resnet18")
    found = correspond(target, target, level=level)
    assert_pairs_all(found, target, target)
    assert found.renames == {}


def test_a_changed_head_still_pairs_by_name() -> None:
    found = correspond(tensors("resnet18"), tensors("resnet18", num_classes=5))
    assert found.by_target["fc.weight"] == "fc.weight"


def test_a_deeper_network_takes_what_it_shares() -> None:
    found = correspond(tensors("resnet18"), tensors("resnet34"))
    assert len(found.pairs) == 122
    assert len(found.unmatched_target) == 218 - 122
    assert {pair.how for pair in found.pairs} == {"name"}


WRAPPED = {
    "module.": lambda n: f"module.{n}",
    "nested": lambda n: f"module._orig_mod.{n}",
    "deep": lambda n: f"module.base_model.{n}",
    "other": lambda n: f"backbone.{n}",
    "inside": lambda n: n.replace("layer1.", "layer1._checkpoint_wrapped_module."),
    "last": lambda n: n.replace("conv2.", "conv2._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_are_found_in_either_direction(how: str) -> None:
    plain = tensors("resnet18")
    wrapped = renamed(plain, WRAPPED[how])
    assert_pairs_all(correspond(wrapped, plain), wrapped, plain)
    assert_pairs_all(correspond(plain, wrapped), plain, wrapped)
    assert not correspond(wrapped, plain, level="name").pairs or how in ("inside", "last")


def test_one_prefix_is_exchanged_for_another() -> None:
    ours = renamed(tensors("resnet18"), lambda n: f"net.body.{n}")
    theirs = renamed(tensors("resnet18"), lambda n: f"module.base_model.{n}")
    assert_pairs_all(correspond(ours, theirs), ours, theirs)


def test_a_backbone_is_found_within_a_larger_file() -> None:
    plain = tensors("resnet18")
    whole = [*renamed(plain, lambda n: f"model.backbone.{n}"), *specs("model.neck.weight")]
    found = correspond(whole, plain)
    assert len(found.pairs) == len(plain)
    assert found.unmatched_source == ("model.neck.weight",)
    assert found.pairs[0].how == "prefix 'model.backbone.' removed"


def test_a_backbone_is_found_within_a_larger_target() -> None:
    plain = tensors("resnet18")
    whole = [*renamed(plain, lambda n: f"backbone.{n}"), *specs("neck.weight")]
    found = correspond(plain, whole)
    assert len(found.pairs) == len(plain)
    assert found.unmatched_target == ("neck.weight",)
    assert found.pairs[0].how == "prefix 'backbone.' added"


def test_names_outside_the_prefix_are_kept() -> None:
    ours = [*renamed(tensors("resnet18")[:-2], lambda n: f"net.{n}"), *tensors("resnet18")[-2:]]
    assert_pairs_all(correspond(ours, tensors("resnet18")), ours, tensors("resnet18"))


def test_two_equally_good_prefixes_are_ambiguous() -> None:
    plain = tensors("resnet18")
    both = [
        *renamed(plain, lambda n: f"student.{n}"),
        *renamed(plain, lambda n: f"teacher.{n}"),
    ]
    with pytest.raises(AmbiguousMatchError) as raised:
        correspond(both, plain)
    assert "'student.conv1.weight', 'teacher.conv1.weight'" in str(raised.value)
    with pytest.raises(AmbiguousMatchError):
        correspond(plain, both)


def test_exact_names_win_over_a_prefix() -> None:
    plain = list(tensors("resnet18"))
    both = [*renamed(plain, lambda n: f"ema.{n}"), *plain]
    assert all(p.source == p.target for p in correspond(both, plain).pairs)


def test_a_coincidence_is_no_prefix() -> None:
    ours = [*specs("a.weight", "a.bias"), *specs("b.c", "b.d", "b.e", "b.f", shape=(3,))]
    theirs = [*specs("weight", "bias"), *specs("u", "v", "w", "x", "y", shape=(4,))]
    assert correspond(ours, theirs).pairs == ()


def test_old_spellings_of_densenet_are_renamed() -> None:
    new = tensors("densenet121")
    old = renamed(
        new,
        lambda n: (
            n.replace("norm1.", "norm.1.")
            .replace("norm2.", "norm.2.")
            .replace("conv1.", "conv.1.")
            .replace("conv2.", "conv.2.")
            if "denselayer" in n
            else n
        ),
    )
    counted = [s for s in old if not s.name.endswith("num_batches_tracked")]
    found = correspond(counted, new, level="name")
    assert found.unmatched_source == ()
    assert all(name.endswith("num_batches_tracked") for name in found.unmatched_target)
    assert found.renames["features.denseblock1.denselayer1.norm.1.weight"] == (
        "features.denseblock1.denselayer1.norm1.weight"
    )
    wrapped = renamed(counted, lambda n: f"module.{n}")
    assert correspond(wrapped, new).unmatched_source == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder.layers.encoder_layer_0.mlp.linear_1.weight",
         "encoder.layers.encoder_layer_0.mlp.0.weight"),
        ("encoder.layers.encoder_layer_0.mlp.linear_2.bias",
         "encoder.layers.encoder_layer_0.mlp.3.bias"),
        ("rpn.head.conv.weight", "rpn.head.conv.0.0.weight"),
        ("backbone.fpn.inner_blocks.2.weight", "backbone.fpn.inner_blocks.2.0.weight"),
        ("head.classification_head.conv.6.bias", "head.classification_head.conv.3.0.bias"),
        ("roi_heads.mask_head.mask_fcn4.weight", "roi_heads.mask_head.3.0.weight"),
        ("conv.weight_g", "conv.parametrizations.weight.original0"),
        ("conv.weight_v", "conv.parametrizations.weight.original1"),
        ("bert.LayerNorm.gamma", "bert.LayerNorm.weight"),
        ("bert.LayerNorm.beta", "bert.LayerNorm.bias"),
    ],
)  # fmt: skip
def test_known_old_spellings(old: str, new: str) -> None:
    assert modern_spelling(old, {new}) == new
    assert modern_spelling(old, {old, new}) is None
    assert modern_spelling(old, set()) is None


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "vit_b_16"])
def test_new_spellings_exist_in_torchvision(name: str) -> None:
    known = set(build_target(f"torchvision:{name}").names)
    olds = {
        "retinanet_resnet50_fpn": "head.regression_head.conv.2.weight",
        "maskrcnn_resnet50_fpn": "roi_heads.mask_head.mask_fcn1.bias",
        "vit_b_16": "encoder.layers.encoder_layer_11.mlp.linear_2.weight",
    }
    assert modern_spelling(olds[name], known) in known


def test_a_wrapper_is_a_segment_and_never_the_leaf() -> None:
    assert unwrapped("module.a._orig_mod.b.module") == "a.b.module"
    assert unwrapped("modules.a") == "modules.a"


def test_what_the_models_code_renames_is_taken() -> None:
    found = correspond(specs("a.old"), specs("b.new"), level="name", upgraded={"a.old": "b.new"})
    assert found.renames == {"a.old": "b.new"}


def test_a_reviewed_map_goes_before_everything() -> None:
    found = correspond(
        specs("a", "b"), specs("a", "b"), renames={"a": "b", "absent": "a", "b": "absent"}
    )
    assert found.renames == {"a": "b"}
    assert found.unmatched_target == ("a",)


@pytest.mark.parametrize("back", [False, True])
def test_an_infix_is_found_by_suffix_only_when_asked(back: bool) -> None:
    plain = tensors("resnet18")
    infixed = renamed(plain, lambda n: n.replace("layer", "net.layer"))
    ours, theirs = (plain, infixed) if back else (infixed, plain)
    assert_pairs_all(correspond(ours, theirs, level="suffix"), ours, theirs)


def test_an_infix_in_the_middle_is_found() -> None:
    plain = tensors("resnet18")
    infixed = renamed(
        plain, lambda n: n.replace(".conv", ".net.conv") if n.startswith("layer") else n
    )
    found = correspond(infixed, plain, level="suffix")
    assert_pairs_all(found, infixed, plain)
    assert any(pair.how == "segment 'net' removed" for pair in found.pairs)


def test_the_longest_suffix_pairs_what_is_left() -> None:
    ours = [
        *specs("enc.a.fc.weight", shape=(3, 2)),
        *specs("old.b.fc.weight", shape=(4, 2)),
        *specs("old.c.x"),
        *specs("lonely"),
    ]
    theirs = [
        *specs("e.a.fc.weight", shape=(3, 2)),
        *specs("new.b.fc.weight", shape=(4, 2)),
        *specs("c.x"),
        *specs("y.lonely"),
    ]
    found = correspond(ours, theirs, level="suffix")
    assert_pairs_all(found, ours, theirs)
    assert correspond(ours, theirs, level="prefix").pairs == ()


def test_one_common_segment_is_no_suffix() -> None:
    ours, theirs = specs("a.weight", "x"), specs("b.weight", "y")
    assert correspond(ours, theirs, level="suffix").pairs == ()


def test_a_segment_that_few_names_have_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying it costs a look at every name; of thousands each may have a segment of its own."""
    tried: list[str] = []
    original = correspondence._without
    monkeypatch.setattr(
        correspondence, "_without", lambda s, name: tried.append(s) or original(s, name)
    )
    ours = specs(*(f"l{i}.w" for i in range(20)))
    theirs = specs(*(f"m.k{i}.w" for i in range(20)))
    assert correspond(ours, theirs, level="suffix").pairs == ()
    assert set(tried) == {"m"}
    tried.clear()
    assert len(correspond(ours, ours, level="suffix").pairs) == 20
    assert tried == []


def test_a_name_that_is_one_segment_is_a_suffix_of_those_that_end_in_it() -> None:
    """A segment that both end in is none, however many do."""
    many = specs(*(f"l{i}.w" for i in range(50)), "b", "z.c")
    found = correspond(many, specs("x.y.b", "c", "k.w"), level="suffix")
    assert [(pair.source, pair.target) for pair in found.pairs] == [("b", "x.y.b"), ("z.c", "c")]
    with pytest.raises(AmbiguousMatchError, match=r"'w' could correspond to 'l0\.w', 'l1\.w'"):
        correspond(many, specs("w"), level="suffix")


def test_equally_long_suffixes_are_ambiguous() -> None:
    ours = specs("u.fc.weight", "v.fc.weight", "p", "q", "r")
    theirs = specs("w.fc.weight", "s", "t", "o")
    with pytest.raises(AmbiguousMatchError, match=r"'u\.fc\.weight', 'v\.fc\.weight'"):
        correspond(ours, theirs, level="suffix")
    with pytest.raises(AmbiguousMatchError, match=r"'w\.fc\.weight' could correspond to 'u\.fc"):
        correspond(theirs, ours, level="suffix")


def test_order_carries_a_vgg_into_one_with_batch_norms() -> None:
    plain, normed = tensors("vgg16"), tensors("vgg16_bn")
    found = correspond(plain, normed, level="order")
    assert len(found.pairs) == 32
    assert found.unmatched_source == ()
    assert found.renames["features.28.weight"] == "features.40.weight"
    assert found.renames["features.28.bias"] == "features.40.bias"
    # by name alone, one bias lands in another layer by accident
    by_name = correspond(plain, normed, level="name").by_target
    assert by_name["features.24.bias"] == "features.24.bias"


def test_order_prefers_equal_names_among_equals() -> None:
    found = correspond(tensors("resnet18"), tensors("resnet34"), level="order")
    assert len(found.pairs) == 122
    assert found.renames == {}


def test_order_sees_names_through_wrappers() -> None:
    wrapped = renamed(tensors("resnet18"), lambda n: f"module.{n}")
    assert len(correspond(wrapped, tensors("resnet34"), level="order").pairs) == 122


def test_order_leaves_a_changed_head_to_its_name() -> None:
    """It could not be adapted, and was reported as not in the checkpoint."""
    wrapped = renamed(tensors("resnet18"), lambda n: f"module.{n}")
    head = build_target("torchvision:resnet34", {"num_classes": 5}).tensors
    found = correspond(wrapped, head, level="order")
    assert len(found.pairs) == 122
    assert found.renames["module.fc.weight"] == "fc.weight"
    assert found.unmatched_source == ()


def test_an_ambiguous_order_lists_the_candidates() -> None:
    ours = specs("a.w", "b.w", "c.w")
    with pytest.raises(AmbiguousMatchError) as raised:
        correspond(ours, specs("x.w", "y.w"), level="order")
    assert "'x' could correspond to 'a', 'b'" in str(raised.value)
    with pytest.raises(AmbiguousMatchError, match="'a' could correspond to 'x', 'y', 'z'"):
        correspond(specs("a.w"), specs("x.w", "y.w", "z.w"), level="order")


def test_reordered_layers_are_ambiguous() -> None:
    ours = [*specs("a.w", shape=(2,)), *specs("b.w", shape=(3,))]
    theirs = [*specs("x.w", shape=(3,)), *specs("y.w", shape=(2,))]
    with pytest.raises(AmbiguousMatchError, match="not in the same order"):
        correspond(ours, theirs, level="order")


def test_order_pairs_leaves_by_name_where_they_have_names() -> None:
    ours = [TensorSpec("a.weight", (2,)), TensorSpec("a.bias", (2,))]
    theirs = [TensorSpec("b.bias", (2,)), TensorSpec("b.weight", (2,))]
    assert dict(align_in_order(ours, theirs)) == {"a.weight": "b.weight", "a.bias": "b.bias"}
    gammas = [TensorSpec("b.gamma", (2,)), TensorSpec("b.beta", (2,))]
    assert dict(align_in_order(ours, gammas)) == {"a.weight": "b.gamma", "a.bias": "b.beta"}


def test_leaves_whose_names_contradict_their_shapes_pair_in_order() -> None:
    ours = [TensorSpec("a.u", (2,)), TensorSpec("a.v", (3,))]
    theirs = [TensorSpec("b.v", (2,)), TensorSpec("b.u", (3,))]
    assert dict(align_in_order(ours, theirs)) == {"a.u": "b.v", "a.v": "b.u"}


def test_too_many_layers_are_refused_not_waited_for() -> None:
    many = specs(*(f"m{i}.w" for i in range(1200)))
    with pytest.raises(UsageError, match="too many to align"):
        correspond(many, many, level="order")


def test_nothing_pairs_with_nothing() -> None:
    for level in LEVELS:
        assert correspond([], specs("a"), level=level).unmatched_target == ("a",)
        assert correspond(specs("a"), [], level=level).unmatched_source == ("a",)


_NAME = st.lists(
    st.sampled_from(["module", "net", "a", "b", "0", "1", "weight"]), min_size=1, max_size=4
).map(".".join)
_SIDE = st.lists(_NAME, unique=True, max_size=8)


@given(_SIDE, _SIDE, st.sampled_from(LEVELS), st.integers(1, 2))
def test_pairs_are_one_to_one_and_complete(
    ours: list[str], theirs: list[str], level: Level, sizes: int
) -> None:
    source = [TensorSpec(name, (len(name) % sizes,)) for name in ours]
    target = [TensorSpec(name, (len(name) % sizes,)) for name in theirs]
    try:
        found = correspond(source, target, level=level)
    except AmbiguousMatchError:
        return
    used, taken = [p.source for p in found.pairs], [p.target for p in found.pairs]
    assert len(set(used)) == len(used)
    assert sorted([*used, *found.unmatched_source]) == sorted(ours)
    assert sorted([*taken, *found.unmatched_target]) == sorted(theirs)
    if level in ("suffix", "order"):
        shapes = {spec.name: spec.shape for spec in source}
        by_target = {spec.name: spec.shape for spec in target}
        assert all(shapes[p.source] == by_target[p.target] for p in found.pairs if p.how == level)
