"""Layouts are found by names and shapes together; where both are silent there is a doubt."""

from __future__ import annotations

import pytest

from ckpt_surgery.fit.layouts import decide, parse_layout_answers, rules_of
from ckpt_surgery.matching.fused_names import spelled
from ckpt_surgery.matching.layouts import layouts_of
from ckpt_surgery.matching.target_source import Aim, Described
from ckpt_surgery.models.target import Target, TensorSpec


def specs(**shapes):
    return [TensorSpec(name.replace("__", "."), shape) for name, shape in shapes.items()]


def find_layouts(source, target, **options):
    described = Described(tuple(source), None, (), ())
    return layouts_of(described, Aim(Target("a target", tuple(target))), **options)


def found(source, target, **options):
    return find_layouts(specs(**source), specs(**target), **options)


def rules(layouts, names, *answers):
    decided = decide(layouts, parse_layout_answers(answers))
    return [(rule.option, rule.text) for rule in rules_of(decided, names)]


def test_what_fits_as_it_is_has_no_layout():
    assert found({"a__weight": (4, 4), "b__weight": (2, 3)}, {"a__weight": (4, 4)}) == ()
    assert found({}, {"a__weight": (4, 4)}) == ()


@pytest.mark.parametrize(
    ("have", "want", "how", "text"),
    [
        ((2, 3), (3, 2), "transpose", "a.weight"),
        ((3, 2, 1, 1), (3, 2), "reshape", "a.weight=3,2"),
        ((3, 2), (3, 2, 1), "reshape", "a.weight=3,2,1"),
        ((3, 2, 7, 7), (3, 98), "reshape", "a.weight=3,98"),
        ((3, 98), (3, 2, 7, 7), "reshape", "a.weight=3,2,7,7"),
    ],
)
def test_one_tensor_in_another_layout(have, want, how, text):
    (layout,) = found({"a__weight": have, "b": (1,)}, {"a__weight": want, "b": (1,)})
    assert (layout.how, layout.is_certain) == (how, True)
    assert rules([layout], ["a.weight", "b"]) == [(how, text)]


@pytest.mark.parametrize(
    ("have", "want"), [((3, 4), (5, 4)), ((4, 4), (4,)), ((2, 3, 5), (5, 3, 2))]
)
def test_other_shapes_are_left_to_adaptations(have, want):
    assert found({"a__weight": have, "b": (1,)}, {"a__weight": want, "b": (1,)}) == ()


def test_positions_are_no_kernels():
    assert found({"pos_embed": (1, 4, 6)}, {"pos_embed": (1, 24)}) == ()


def test_integers_and_numbers_of_eight_bits_stay():
    for dtype in ("int64", "float8_e4m3fn"):
        source = [TensorSpec("a.weight", (2, 3), dtype)]
        assert find_layouts(source, [TensorSpec("a.weight", (3, 2), dtype)]) == ()


QKV = {
    "plain": ((6, 2), [(2, 2)] * 3, "split", ""),
    "grouped": ((8, 4), [(4, 4), (2, 4), (2, 4)], "split", ":sizes=4,2,2"),
    "bias": ((6,), [(2,)] * 3, "split", ""),
    "convolution": ((6, 2, 1), [(2, 2)] * 3, "reshape and split", ""),
}


@pytest.mark.parametrize("case", QKV)
def test_query_key_and_value_are_split(case):
    have, wants, how, options = QKV[case]
    leaf = "bias" if case == "bias" else "weight"
    source = [TensorSpec(f"l.{i}.attn.qkv.{leaf}", have) for i in range(2)]
    target = [
        TensorSpec(f"l.{i}.attn.{part}_proj.{leaf}", want)
        for i in range(2)
        for part, want in zip("qkv", wants, strict=True)
    ]
    layouts = find_layouts(source, target)
    assert [each.how for each in layouts] == [how, how]
    assert all(each.is_certain for each in layouts)
    parts = ",".join(f"l.*.attn.{part}_proj.{leaf}" for part in "qkv")
    text = f"l.*.attn.qkv.{leaf}={parts}{options}"
    assert rules(layouts, [s.name for s in source])[-1] == ("split", text)


def test_query_key_and_value_are_joined():
    source = [TensorSpec(f"l.{i}.attn.{part}.weight", (2, 2)) for i in (0, 11) for part in "qkv"]
    target = [TensorSpec(f"l.{i}.attn.in_proj_weight", (6, 2)) for i in (0, 11)]
    layouts = find_layouts(source, target)
    parts = ",".join(f"l.*.attn.{part}.weight" for part in "qkv")
    text = f"{parts}=l.*.attn.in_proj_weight"
    assert rules(layouts, [s.name for s in source]) == [("concat", text)]


def test_a_part_that_is_missing_is_not_made_up():
    source = {"attn__q__weight": (2, 2), "attn__k__weight": (2, 2), "o": (1,)}
    assert found(source, {"attn__qkv__weight": (6, 2), "o": (1,)}) == ()
    target = {"attn__q__weight": (2, 2), "attn__k__weight": (2, 2), "o": (1,)}
    assert found({"attn__qkv__weight": (6, 2), "o": (1,)}, target) == ()


def test_a_part_that_the_checkpoint_has_is_not_made_twice():
    source = {"attn__qkv__weight": (6, 2), "attn__q__weight": (3, 3)}
    target = {f"attn__{part}__weight": (2, 2) for part in "qkv"}
    assert found(source, target) == ()


def test_parts_of_several_types_are_not_joined():
    source = [TensorSpec(f"{p}.weight", (2, 2), t) for p, t in (("q", "float32"), ("k", "float16"))]
    source.append(TensorSpec("v.weight", (2, 2)))
    assert find_layouts(source, [TensorSpec("qkv.weight", (6, 2))]) == ()


def test_other_families_are_known():
    source = {"mlp__gate_up_proj__weight": (8, 3), "kv__weight": (6, 2)}
    target = {
        "mlp__gate_proj__weight": (4, 3), "mlp__up_proj__weight": (4, 3),
        "k__weight": (3, 2), "v__weight": (3, 2),
    }  # fmt: skip
    assert [each.how for each in found(source, target)] == ["split", "split"]


def test_a_prefix_is_seen_through():
    source = {f"module__h__0__{n}": s for n, s in (("qkv__weight", (6, 2)), ("o__weight", (2, 5)))}
    target = {f"h__0__{part}__weight": (2, 2) for part in "qkv"} | {"h__0__o__weight": (2, 5)}
    (layout,) = found(source, target)
    assert layout.sources == ("module.h.0.qkv.weight",)
    assert layout.targets == tuple(f"h.0.{part}.weight" for part in "qkv")


BLOCK = {"h__0__c_fc__weight": (4, 16), "h__0__mlp__c_proj__weight": (16, 4)}
TURNED = {name: shape[::-1] for name, shape in BLOCK.items()}
SQUARE = {"h__0__attn__c_proj__weight": (4, 4)}


def test_a_square_is_transposed_by_its_name_or_in_doubt():
    by_name = found(BLOCK | SQUARE, TURNED | SQUARE)
    assert [(each.how, each.doubt) for each in by_name] == [("transpose", "")] * 3
    other = {"h__0__attn__out__weight": (4, 4)}
    *_, doubtful = found(BLOCK | other, TURNED | other)
    assert doubtful.doubt == "it is square, and beside what is transposed"
    assert [way.name for way in doubtful.ways] == ["transposed", "as-is"]
    # names that disagree tell nothing
    more = {"h__0__x__c_proj__weight": (3, 5)}
    *_, mixed = found(BLOCK | more | SQUARE, TURNED | more | SQUARE)
    assert mixed.doubt


def test_a_square_in_a_block_that_stays_is_no_matter():
    stays = {"g__0__a__weight": (3, 5), "g__0__b__weight": (4, 4)}
    assert [each.targets for each in found(BLOCK | stays, TURNED | stays)] == [
        ("h.0.c_fc.weight",), ("h.0.mlp.c_proj.weight",)
    ]  # fmt: skip


PARTS = {f"h__0__attn__{part}__weight": (4, 4) for part in "qkv"}


@pytest.mark.parametrize(
    ("fused", "around", "steps", "doubt"),
    [
        ((12, 4), False, ["split"], ""),
        ((12, 4), True, ["split", "transpose", "transpose", "transpose"], ""),
        ((4, 12), True, ["transpose", "split"], ""),
        ((4, 12), False, ["split"], "its parts are square"),
    ],
)
def test_square_parts_are_read_by_what_is_around(fused, around, steps, doubt):
    source, target = (BLOCK, TURNED) if around else ({"x": (1,)}, {"x": (1,)})
    whole = {"h__0__attn__c_attn__weight": fused}
    (split,) = (e for e in found(source | whole, target | PARTS) if len(e.targets) == 3)
    assert ([step.option for step in split.ways[0].steps], split.doubt) == (steps, doubt)
    (joined,) = (e for e in found(target | PARTS, source | whole) if len(e.sources) == 3)
    again = [step.replace("split", "concat") for step in steps[::-1]]
    assert ([step.option for step in joined.ways[0].steps], joined.doubt) == (again, doubt)


@pytest.mark.parametrize("joins", [False, True])
def test_embeddings_do_not_say_how_layers_lie(joins):
    beside = {"wte__weight": (9, 4), "lm_head__weight": (9, 4), "h__0__c_proj__weight": (4, 4)}
    whole = beside | {"h__0__attn__c_attn__weight": (4, 12)}
    parts = beside | {f"h__0__attn__{part}_proj__weight": (4, 4) for part in "qkv"}
    layouts = found(parts, whole) if joins else found(whole, parts)
    doubts = {each.targets[0]: each.doubt for each in layouts}
    fused = "h.0.attn.c_attn.weight" if joins else "h.0.attn.q_proj.weight"
    square = "it is square, and beside what is transposed"
    assert doubts == {fused: "its parts are square", "h.0.c_proj.weight": square}


def test_layers_beside_a_transposed_head_may_be_transposed():
    source = {"head__weight": (4, 9), "h__0__attn__qkv__weight": (12, 4)}
    target = {"head__weight": (9, 4)} | {f"h__0__attn__{p}__weight": (4, 4) for p in "qkv"}
    split = found(source, target)[-1]
    assert (split.how, split.doubt) == ("split and transpose", "its parts are square")


def test_squares_beside_a_transposed_whole_are_in_doubt():
    source = {"attn__c_attn__weight": (4, 8), "attn__c_proj__weight": (4, 4)}
    sizes = {"q": (4, 4), "k": (2, 4), "v": (2, 4)}
    target = {f"attn__{part}_proj__weight": size for part, size in sizes.items()}
    layouts = found(source, target | {"attn__c_proj__weight": (4, 4)})
    assert [each.is_certain for each in layouts] == [True, False]
    plain = {"attn__qkv__weight": (8, 4), "attn__c_proj__weight": (4, 4)}
    (split,) = found(plain, target | {"attn__c_proj__weight": (4, 4)})
    assert split.is_certain


def test_parts_that_may_lie_head_by_head_are_in_doubt():
    (layout,) = found({"query_key_value__weight": (6, 2)}, {f"{p}__weight": (2, 2) for p in "qkv"})
    assert layout.by_heads
    assert layout.doubt == "its rows may lie head by head"
    names = ["query_key_value.weight"]
    assert rules([layout], names) == []
    text = "query_key_value.weight=q.weight,k.weight,v.weight"
    assert rules([layout], names, "*.weight=as-is") == [("split", text)]
    assert rules([layout], names, "query*=heads:2") == []  # the glob ends at a dot
    assert rules([layout], names, "query**=heads:2") == [("split", f"{text}:heads=2")]


def test_ambiguous_names_have_no_layout():
    source = {"a__qkv__weight": (6, 2), "b__qkv__weight": (6, 2)}
    target = {f"{part}__weight": (2, 2) for part in "qkv"}
    assert found(source, target) == ()


def test_rules_with_stars_match_nothing_else():
    source = specs(l__0__w=(2, 3), l__1__w=(2, 3), l__2__w=(3, 2))
    layouts = find_layouts(source, specs(l__0__w=(3, 2), l__1__w=(3, 2), l__2__w=(3, 2)))
    assert rules(layouts, ["l.0.w", "l.1.w", "l.2.w"]) == [
        ("transpose", "l.0.w"), ("transpose", "l.1.w")
    ]  # fmt: skip


def test_names_that_no_rule_can_hold_are_left_alone():
    source = [TensorSpec("a[0].weight", (2, 3))]
    assert find_layouts(source, [TensorSpec("a[0].weight", (3, 2))]) == ()


def test_names_are_told_apart():
    assert spelled("attn.in_proj_weight").called("q", ".") == "attn.q.weight"
    assert spelled("q_proj_bias").called("k", "_") == "k_bias"
    assert spelled("a" * 600 + ".weight") is None
    assert spelled("weight") is None


def test_deep_names_are_looked_at_as_far_as_is_sensible():
    deep = "a." * 300 + "qkv.weight"
    target = [TensorSpec("a." * 300 + f"{p}.weight", (2, 2)) for p in "qkv"]
    assert find_layouts([TensorSpec(deep, (6, 2))], target) == ()


def test_very_many_names_are_looked_at_only_if_that_is_asked_for():
    shapes = {f"l__{i}__w": (2, 3) for i in range(5001)}
    turned = dict.fromkeys(shapes, (3, 2))
    assert found(shapes, turned) == ()
    assert len(found(shapes, turned, asked_for=True, level="order")) == 5001
