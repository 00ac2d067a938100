from typing import Any

import pytest
from freeze_helpers import NET, codes, frozen, net, norm, plan, prefix, trainable
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import UsageError
from ckpt_surgery.freeze.build import (
    FreezeRecipe,
    FreezeRule,
    GroupRule,
    Stage,
    _frozen_statistics,
    parse_group,
    parse_stage,
)
from ckpt_surgery.freeze.selectors import First, FirstChildren, Last, _Everything, _Head
from ckpt_surgery.training.parameters import Inventory, NamedEntry, Structure

NAMES = [p.name for p in net().parameters]


def freeze(text: str) -> FreezeRule:
    return FreezeRule("freeze", prefix(text))


def train(text: str) -> FreezeRule:
    return FreezeRule("train", prefix(text))


def groups(recipe: FreezeRecipe) -> dict[str, dict[str, Any]]:
    return {g.name: dict(g.options) for g in plan(recipe).groups}


def membership(recipe: FreezeRecipe) -> dict[str, str | None]:
    return {p.name: p.group for p in plan(recipe).parameters}


def test_without_rules_everything_trains_in_one_group() -> None:
    made = plan(FreezeRecipe())
    assert trainable(made) == NAMES
    assert [(g.name, dict(g.options)) for g in made.groups] == [("base", {})]


def test_the_later_rule_wins() -> None:
    assert frozen(plan(FreezeRecipe([freeze("layer1"), train("layer1.1")]))) == NAMES[3:6]
    assert frozen(plan(FreezeRecipe([freeze("layer1.1"), train("layer1")]))) == []


def test_a_first_train_rule_begins_with_everything_frozen() -> None:
    assert trainable(plan(FreezeRecipe([train("fc")]))) == NAMES[-2:]
    assert trainable(plan(FreezeRecipe([train("layer1"), freeze("layer1.1")]))) == NAMES[3:6]


def test_train_only_the_head() -> None:
    assert trainable(plan(FreezeRecipe([FreezeRule("train", _Head())]))) == NAMES[-2:]


def test_first_counts_parameters_as_parameters_does() -> None:
    made = plan(FreezeRecipe([FreezeRule("freeze", First(4))]))
    assert frozen(made) == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]


def test_what_cannot_have_a_gradient_never_trains() -> None:
    inventory = Inventory.of([NamedEntry("w", (2, 2), role="parameter"),
                              NamedEntry("q", (2,), "int8", role="parameter")])  # fmt: skip
    made = plan(FreezeRecipe(), inventory)
    assert frozen(made) == ["q"]
    assert made.parameters[1].group is None


def test_a_rule_that_takes_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(UsageError, match="'--prefix layer2' matches no parameter") as caught:
        plan(FreezeRecipe([freeze("layer2")]))
    assert "layer1" in (caught.value.hint or "")


def test_a_rule_that_takes_nothing_is_a_warning_where_that_is_allowed() -> None:
    made = plan(FreezeRecipe([freeze("layer2")], allow_unmatched=True))
    assert "unmatched-rule" in codes(made)
    assert trainable(made) == NAMES


@pytest.mark.parametrize(
    "recipe",
    [
        FreezeRecipe(groups=[GroupRule(prefix("zz"), {"lr": 1.0})]),
        FreezeRecipe(stages=[Stage(0, prefix("zz"))]),
        FreezeRecipe(no_decay=[prefix("zz")]),
    ],
)
def test_groups_stages_and_decay_want_matches_too(recipe: FreezeRecipe) -> None:
    with pytest.raises(UsageError, match="matches no parameter"):
        plan(recipe)


def test_a_group_has_its_own_learning_rate() -> None:
    recipe = FreezeRecipe(lr=1e-3, groups=[GroupRule(prefix("fc"), {"lr": 1e-2})])
    assert groups(recipe) == {"base": {"lr": 1e-3}, "fc": {"lr": 1e-2}}
    assert [n for n, g in membership(recipe).items() if g == "fc"] == NAMES[-2:]


def test_of_one_option_the_later_group_wins_and_others_add_up() -> None:
    recipe = FreezeRecipe(
        groups=[
            GroupRule(prefix("layer1"), {"lr": 1.0, "momentum": 0.5}),
            GroupRule(prefix("layer1.1"), {"lr": 2.0}),
        ]
    )
    assert groups(recipe)["layer1_layer1.1"] == {"lr": 2.0, "momentum": 0.5}


def test_groups_of_one_name_and_other_options_are_told_apart() -> None:
    recipe = FreezeRecipe(
        groups=[GroupRule(prefix("conv1"), {"lr": 1.0}), GroupRule(prefix("fc"), {"lr": 2.0})]
    )
    renamed = FreezeRecipe(
        groups=[
            GroupRule(prefix("conv1"), {"lr": 1.0}),
            GroupRule(type(prefix("fc"))(prefix("fc").matcher, "conv1", "--x"), {"lr": 2.0}),
        ]
    )
    assert set(groups(recipe)) == {"conv1", "base", "fc"}
    assert groups(renamed) == {"conv1": {"lr": 1.0}, "base": {}, "conv1_2": {"lr": 2.0}}


def test_layer_decay_is_timms() -> None:
    recipe = FreezeRecipe(lr=1.0, layer_decay=0.5)
    assert groups(recipe) == {
        "layer_0": {"lr": 0.125},
        "layer_1": {"lr": 0.25},
        "layer_2": {"lr": 0.5},
        "layer_3": {"lr": 1.0},
    }
    assert [g.lr_scale for g in plan(recipe).groups] == [0.125, 0.25, 0.5, 1.0]


def test_the_head_multiplier_is_the_heads_alone() -> None:
    assert groups(FreezeRecipe(lr=0.5, head_multiplier=10)) == {
        "base": {"lr": 0.5},
        "head": {"lr": 5.0},
    }
    both = groups(FreezeRecipe(lr=0.5, layer_decay=0.5, head_multiplier=10))
    assert both["layer_3"] == {"lr": 5.0}
    assert both["layer_2"] == {"lr": 0.25}


def test_a_given_learning_rate_is_not_scaled() -> None:
    recipe = FreezeRecipe(lr=1.0, layer_decay=0.5, groups=[GroupRule(prefix("conv1"), {"lr": 0.3})])
    assert groups(recipe)["conv1"] == {"lr": 0.3}


def test_no_decay_spares_biases_and_norms() -> None:
    recipe = FreezeRecipe(weight_decay=0.1, no_decay=("bias", "norm"))
    assert groups(recipe) == {"base": {"weight_decay": 0.1}, "no_decay": {"weight_decay": 0.0}}
    decayed = [n for n, g in membership(recipe).items() if g == "base"]
    assert decayed == [n for n in NAMES if "conv" in n] + ["fc.weight"]


def test_no_decay_can_be_chosen() -> None:
    biases = membership(FreezeRecipe(weight_decay=0.1, no_decay=("bias",)))
    assert [n for n, g in biases.items() if g == "no_decay"] == [n for n in NAMES if "bias" in n]
    chosen = membership(FreezeRecipe(weight_decay=0.1, no_decay=(prefix("conv1"),)))
    assert [n for n, g in chosen.items() if g == "no_decay"] == ["conv1.weight"]


def test_a_groups_own_weight_decay_comes_first() -> None:
    recipe = FreezeRecipe(
        weight_decay=0.1,
        no_decay=("bias",),
        groups=[GroupRule(prefix("fc"), {"weight_decay": 9.0})],
    )
    assert groups(recipe)["fc"] == {"weight_decay": 9.0}


def test_stages_unfreeze_step_by_step() -> None:
    made = plan(
        FreezeRecipe(
            stages=[Stage(0, _Head()), Stage(5, prefix("layer1")), Stage(9, _Everything())]
        )
    )
    assert trainable(made) == NAMES[-2:]
    assert trainable(made.at(4)) == NAMES[-2:]
    assert trainable(made.at(5)) == NAMES[3:]
    assert trainable(made.at(100)) == NAMES
    assert made.stages == (0, 5, 9)


def test_a_stage_comes_after_the_rules() -> None:
    made = plan(FreezeRecipe([freeze("layer1")], stages=[Stage(3, prefix("layer1.1"))]))
    assert frozen(made) == NAMES[3:9]
    assert frozen(made.at(3)) == NAMES[3:6]


def test_without_warnings_there_are_none() -> None:
    inventory = Inventory.of([NamedEntry("a.weight", (2, 2), role="parameter"),
                              NamedEntry("b.weight", (2, 2), role="parameter")])  # fmt: skip
    assert codes(plan(FreezeRecipe([freeze("a")]), inventory)) == []


def test_frozen_norms_with_moving_statistics_are_named() -> None:
    made = plan(FreezeRecipe([freeze("layer1")]))
    (warning,) = (w for w in made.warnings if w.code == "moving-statistics")
    assert warning.names == ("layer1.0.bn1", "layer1.1.bn1")
    assert "train_mode" in warning.message


def test_a_half_frozen_norm_is_not_called_frozen() -> None:
    made = plan(FreezeRecipe([freeze("bn1.weight")]))
    assert "moving-statistics" not in codes(made)


def test_a_norm_without_parameters_goes_by_the_module_above_it() -> None:
    entries = [
        *NET,
        NamedEntry("layer1.0.free.running_mean", (2,)),
        NamedEntry("lone.running_mean", (2,)),
    ]
    made = plan(FreezeRecipe([freeze("layer1.0")]), Inventory.of(entries))
    assert _frozen_statistics(made.parameters, made.statistics) == ["layer1.0.bn1", "layer1.0.free"]
    alone = plan(FreezeRecipe([FreezeRule("freeze", _Everything())]), Inventory.of(entries))
    assert "lone" in _frozen_statistics(alone.parameters, alone.statistics)


def test_a_frozen_head_is_warned_of() -> None:
    assert "frozen-head" in codes(plan(FreezeRecipe([freeze("fc")])))
    assert codes(plan(FreezeRecipe([FreezeRule("freeze", _Everything())])))[0] == "nothing-trains"


def test_a_rule_that_later_rules_undo_is_warned_of() -> None:
    made = plan(FreezeRecipe([freeze("layer1.1"), train("layer1")]))
    assert "overridden-rule" in codes(made)


def test_a_group_of_frozen_parameters_is_warned_of() -> None:
    recipe = FreezeRecipe([freeze("fc")], groups=[GroupRule(prefix("fc"), {"lr": 1.0})])
    assert "group-frozen" in codes(plan(recipe))


def test_guessed_roles_and_named_children_are_told() -> None:
    made = plan(FreezeRecipe([FreezeRule("freeze", FirstChildren(2))]))
    assert {"guessed-roles", "named-children"} <= set(codes(made))
    known = Inventory.of(NET, Structure(("conv1", "bn1", "relu"), {}))
    assert "named-children" not in codes(
        plan(FreezeRecipe([FreezeRule("freeze", FirstChildren(3))]), known)
    )


def tied() -> Inventory:
    return Inventory.of(
        [
            NamedEntry("enc.w", (2, 2), tie=1),
            NamedEntry("x.w", (2, 2)),
            NamedEntry("dec.w", (2, 2), tie=1),
        ]
    )


def test_tied_parameters_treated_in_two_ways_are_warned_of() -> None:
    made = plan(FreezeRecipe([freeze("dec")]), tied())
    assert "tied-differently" in codes(made)
    assert "enc.w" in trainable(made)


def test_tied_parameters_in_two_groups_are_warned_of() -> None:
    made = plan(FreezeRecipe(groups=[GroupRule(prefix("dec"), {"lr": 1.0})]), tied())
    assert "tied-in-two-groups" in codes(made)
    assert made.parameters[0].group == "base"


def test_positions_treat_tied_names_alike() -> None:
    made = plan(FreezeRecipe([FreezeRule("freeze", First(1))]), tied())
    assert "tied-differently" not in codes(made)
    assert frozen(made) == ["enc.w"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (FreezeRecipe(lr=-1.0), "--lr"),
        (FreezeRecipe(weight_decay=float("nan")), "--weight-decay"),
        (FreezeRecipe(lr=1.0, layer_decay=float("inf")), "--layer-decay"),
        (FreezeRecipe(layer_decay=0.5), "scale a learning rate"),
        (FreezeRecipe(head_multiplier=2), "scale a learning rate"),
        (FreezeRecipe(no_decay=("biases",)), "biases"),
        (FreezeRecipe(groups=[GroupRule(prefix("fc"), {"lrr": 1.0})]), "lrr"),
    ],
)
def test_what_cannot_be_meant_is_refused(recipe: FreezeRecipe, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(recipe)


def test_an_empty_inventory_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameters"):
        plan(FreezeRecipe(), Inventory.of(norm("bn", 2)[2:]))


def test_group_options_are_parsed() -> None:
    text = "pattern=(?:a|b):lr=1e-2, weight_decay=0,betas=0.9/0.95,nesterov=True"
    assert parse_group(text) == (
        "pattern=(?:a|b)",
        {"lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.95), "nesterov": True},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fc", "SELECTION:name=value"),
        (":lr=1", "SELECTION:name=value"),
        ("fc:lr", "form name=value"),
        ("fc:", "form name=value"),
        ("fc:lr=1,lr=2", "twice"),
        ("fc:lrr=1", "lrr"),
        ("fc:lr=fast", "no number"),
        ("fc:lr=true", "no number"),
        ("fc:lr=-1", "at least 0"),
        ("fc:nesterov=1", "true or false"),
        ("fc:betas=0.9", "two numbers"),
        ("fc:betas=1/2/3", "two numbers"),
        ("fc:qqqq=1", "qqqq"),
    ],
)
def test_bad_group_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_group(text)


def test_a_misspelt_option_names_the_near_one() -> None:
    with pytest.raises(UsageError) as caught:
        parse_group("fc:weight_decy=1")
    assert caught.value.hint == "did you mean 'weight_decay' or 'decoupled_weight_decay'?"


def test_stages_are_parsed() -> None:
    assert parse_stage("5: layer4") == (5, "layer4")
    assert parse_stage("0:pattern=a:b") == (0, "pattern=a:b")


@pytest.mark.parametrize("text", ["layer4", "-1: fc", "x: fc", "3:", "²: fc"])
def test_bad_stages_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="EPOCH: SELECTION"):
        parse_stage(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(["freeze", "train"]), st.integers(1, 11), st.booleans()),
        max_size=5,
    ),
    st.sampled_from([None, 0.5]),
    st.sampled_from([(), ("bias", "norm")]),
)
def test_every_trainable_parameter_is_in_exactly_one_group(
    rules: list[tuple[Any, int, bool]], decay: float | None, spared: tuple[str, ...]
) -> None:
    made = plan(
        FreezeRecipe(
            [FreezeRule(action, First(n) if first else Last(n)) for action, n, first in rules],
            lr=1.0,
            layer_decay=decay,
            no_decay=spared,
        )
    )
    names = [g.name for g in made.groups]
    assert len(set(names)) == len(names)
    for parameter in made.parameters:
        assert (parameter.group in names) == (parameter.train_from is not None)
    assert {p.group for p in made.trainable} == set(names)
