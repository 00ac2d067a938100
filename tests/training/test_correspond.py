from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_helpers import understood

from ckpt_surgery.training.optimizers import OptimizerState, correspond
from ckpt_surgery.training.optimizers import correspond as correspond_function
from ckpt_surgery.training.optimizers.correspond import bare_name

Shapes = list[tuple[str, tuple[int, ...]]]


def fake(groups: list[list[tuple[int, ...] | None]], **more: Any) -> OptimizerState:
    """An optimizer with states of these shapes, None for a parameter without state."""
    count = 0
    states: dict[int, Any] = {}
    made = []
    for shapes_of in groups:
        indices = list(range(count, count + len(shapes_of)))
        count += len(shapes_of)
        made.append({"params": indices, **more})
        for index, shape in zip(indices, shapes_of, strict=True):
            if shape is not None:
                states[index] = {"momentum_buffer": torch.empty(shape, device="meta")}
    return understood({"state": states, "param_groups": made})


def named(*sizes: int | tuple[int, ...]) -> Shapes:
    return [(f"p{i}", s if isinstance(s, tuple) else (s,)) for i, s in enumerate(sizes)]


def test_as_many_in_order_is_certain() -> None:
    found = correspond(fake([[(1,), (2,), (1,)]]), named(1, 2, 1))
    assert (found.certainty, dict(found.names)) == ("order", {0: "p0", 1: "p1", 2: "p2"})
    assert found.certain
    assert "3 states" in found.reason
    assert found.key_of("p1") == 1
    assert found.key_of("p9") is None


def test_without_any_state_the_count_is_enough_for_one_group() -> None:
    assert correspond(fake([[None, None]]), named(1, 2)).certainty == "order"


def test_a_tail_is_found_by_its_shapes() -> None:
    found = correspond(fake([[(5, 2), (5,)]]), named(3, 2, 2, (5, 2), 5))
    assert dict(found.names) == {0: "p3", 1: "p4"}


def test_an_ambiguous_subset_is_not_called_certain() -> None:
    found = correspond(fake([[(2,), (5,)]]), named(3, 2, 2, 5))
    assert (found.certainty, found.certain) == ("partial", False)
    assert dict(found.names) == {1: "p3"}
    assert found.candidates(0) == ("p1", "p2")
    assert found.candidates(1) == ("p3",)
    assert found.candidates(7) == ()


def test_doubt_that_does_not_matter_is_no_doubt() -> None:
    found = correspond(fake([[(2,), (5,)]]), named(3, 2, 2, 5))
    assert found.holds(0, {"p1"}) is None
    assert found.holds(0, {"p1", "p2"}) is True
    assert found.holds(0, {"p3"}) is False
    assert found.holds(7, {"p3"}) is None


@pytest.mark.parametrize(
    ("groups", "model"),
    [
        ([[(3,), (2,)]], named(2, 3)),
        ([[(2,), (2,)]], named(2, 3)),
        ([[(4,)]], named(2, 3)),
        ([[(1,), (2,), (3,)]], named(1, 2)),
        ([[(2,)], [(2,)]], named(2, 3)),
        ([[(1,), (2,)], [(2,), (1,)]], named(1, 2, 1, 3)),
    ],
)
def test_a_contradiction_claims_nothing(groups: Any, model: Shapes) -> None:
    found = correspond(fake(groups), model)
    assert (found.certainty, dict(found.names)) == ("none", {})
    assert found.holds(0, {"p0"}) is None
    assert found.reason


def test_groups_that_interleave_are_told_apart_by_shape() -> None:
    # timm's decay and no_decay: matrices in one group, vectors in the other
    found = correspond(fake([[(2, 2), (3, 2)], [(2,), (3,)]]), named((2, 2), 2, (3, 2), 3))
    assert dict(found.names) == {0: "p0", 1: "p2", 2: "p1", 3: "p3"}


def test_what_only_one_can_be_is_its_place() -> None:
    # both groups could have p0; the first must, because nothing else of it fits p1
    found = correspond(fake([[(2,), (9,)], [(2,), (7,)]]), named(2, 9, 2, 7))
    assert dict(found.names) == {0: "p0", 1: "p1", 2: "p2", 3: "p3"}


def test_two_groups_of_one_shape_stay_in_doubt() -> None:
    found = correspond(fake([[(2,)], [(2,)]]), named(2, 2))
    assert found.certainty == "partial"
    assert found.candidates(0) == found.candidates(1) == ("p0", "p1")


def test_too_much_doubt_is_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules[correspond_function.__module__]
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 3)
    assert correspond(fake([[(2,)], [(2,)]]), named(2, 2)).certainty == "none"


def test_stored_names_are_believed() -> None:
    found = correspond(fake([[(2,), (2,)]], param_names=["p1", "p0"]), named(2, 2))
    assert (found.certainty, dict(found.names)) == ("stored", {0: "p1", 1: "p0"})
    assert found.foreign == ()


def test_stored_names_of_other_modules_are_foreign() -> None:
    found = correspond(fake([[(2,), (9,)]], param_names=["p1", "loss.w"]), named(2, 2))
    assert (found.certainty, found.foreign) == ("stored", ("loss.w",))


def test_stored_names_and_keys_may_differ_by_a_wrapper() -> None:
    model = [("module._orig_mod.fc.weight", (2,)), ("module._orig_mod.fc.bias", (3,))]
    found = correspond(fake([[(2,), (3,)]], param_names=["fc.weight", "module.fc.bias"]), model)
    assert list(found.names.values()) == [name for name, _ in model]


def test_stored_names_with_other_shapes_claim_nothing() -> None:
    found = correspond(fake([[(3,)]], param_names=["p0"]), named(2))
    assert found.certainty == "none"
    assert "'p0'" in found.reason


def test_one_stored_name_for_two_parameters_claims_nothing() -> None:
    assert correspond(fake([[(2,), (2,)]], param_names=["p0", "p0"]), named(2)).certainty == "none"


def test_names_as_keys_are_stored_names() -> None:
    state = {"state": {"p1": {"momentum_buffer": torch.empty(2)}},
             "param_groups": [{"params": ["p1", "p0"]}]}  # fmt: skip
    found = correspond(understood(state), named(2, 2))
    assert (found.certainty, dict(found.names)) == ("stored", {"p1": "p1", "p0": "p0"})


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module.fc.weight", "fc.weight"),
        ("module.module.fc", "fc"),
        ("_orig_mod.module.fc", "fc"),
        ("layer._orig_mod.0.w", "layer.0.w"),
        ("module", "module"),
        ("net.module.w", "net.module.w"),
    ],
)
def test_a_bare_name_has_no_wrappers(name: str, bare: str) -> None:
    assert bare_name(name) == bare


def test_fifteen_thousand_parameters_are_matched_in_no_time() -> None:
    block = (("q", (4, 4)), ("k", (4, 4)), ("n", (4,)), ("m", (4, 9)))
    model: Shapes = [(f"layers.{i}.{leaf}", shape) for i in range(3750) for leaf, shape in block]
    matrices: list[Any] = [s for _, s in model if len(s) == 2]
    vectors: list[Any] = [s for _, s in model if len(s) == 1]
    found = correspond(fake([matrices, vectors]), model)
    assert found.certainty == "order"
    assert [found.names[i] for i in range(3)] == ["layers.0.q", "layers.0.k", "layers.0.m"]


@settings(deadline=None)
@given(st.data())
def test_the_true_assignment_is_never_ruled_out(data: st.DataObject) -> None:
    """Whatever the groups, subsets and gaps: each parameter's own name stays a candidate."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    model = named(*sizes)
    home = [data.draw(st.sampled_from([None, 0, 0, 1, 2])) for _ in model]
    groups: list[list[tuple[int, ...] | None]] = []
    truth: list[str] = []
    for group in range(3):
        members = [i for i in range(len(model)) if home[i] == group]
        truth += [model[i][0] for i in members]
        groups.append([model[i][1] if data.draw(st.booleans()) else None for i in members])
    found = correspond(fake(groups), model)
    assert found.certainty in {"order", "partial"}
    for key, name in enumerate(truth):
        assert name in found.candidates(key)
    if found.certain:
        assert [found.names[key] for key in range(len(truth))] == truth
