"""Many names as few patterns that stand for exactly those names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.models.building import build_target
from ckpt_surgery.names.fold import Fold, fold, fold_names


def test_numbered_layers_are_folded() -> None:
    names = [f"layer3.{i}.conv2.weight" for i in range(6)]
    assert fold_names(names) == [Fold("layer3.{0..5}.conv2.weight", tuple(names))]


def test_gaps_are_listed() -> None:
    (found,) = fold_names([f"a.{i}" for i in (0, 1, 2, 7, 9, 10)])
    assert found.pattern == "a.{0..2,7,9..10}"
    assert found.count == 6


def test_only_complete_products_are_folded_twice() -> None:
    complete = [f"a.{i}.b.{j}" for i in range(2) for j in range(3)]
    assert [f.pattern for f in fold_names(complete)] == ["a.{0..1}.b.{0..2}"]
    partial = [name for name in complete if name != "a.1.b.2"]
    assert [f.pattern for f in fold_names(partial)] == ["a.{0..1}.b.{0..1}", "a.0.b.2"]


def test_different_values_stay_apart() -> None:
    found = fold([("a.0", (3,)), ("a.1", (3,)), ("a.2", (4,))])
    assert [(f.pattern, f.value) for f in found] == [("a.{0..1}", (3,)), ("a.2", (4,))]


def test_the_order_is_that_of_first_names() -> None:
    assert [f.pattern for f in fold_names(["z.0", "a", "z.1"])] == ["z.{0..1}", "a"]


def test_what_is_no_number_is_left_alone() -> None:
    names = ["a.01", "a.02", "a.x", "b²", "b³", "9" * 5000, "8" * 5000]
    assert [f.pattern for f in fold_names(names)] == names


def test_repeated_names_are_kept() -> None:
    assert [f.pattern for f in fold_names(["a.0", "a.0", "a.1"])] == ["a.0", "a.0", "a.1"]


def unfold(pattern: str) -> list[str]:
    """The names that a pattern of `fold` stands for, in the order of their numbers."""
    names: list[list[str]] = [[]]
    for segment in pattern.split(".") if "{" not in pattern else _segments(pattern):
        choices = _choices(segment)
        names = [[*name, choice] for name in names for choice in choices]
    return [".".join(name) for name in names]


def _segments(pattern: str) -> list[str]:
    """Split at dots outside braces."""
    segments = [""]
    inside = False
    for character in pattern:
        inside = character == "{" or (inside and character != "}")
        if character == "." and not inside:
            segments.append("")
        else:
            segments[-1] += character
    return segments


def _choices(segment: str) -> list[str]:
    if not (segment.startswith("{") and segment.endswith("}")):
        return [segment]
    choices: list[str] = []
    for run in segment[1:-1].split(","):
        first, dots, last = run.partition("..")
        choices.extend(str(n) for n in range(int(first), int(last if dots else first) + 1))
    return choices


_SEGMENT = st.one_of(st.sampled_from("ab"), st.integers(0, 4).map(str))
_NAMES = st.lists(
    st.lists(_SEGMENT, min_size=1, max_size=4).map(".".join), unique=True, max_size=30
)


@given(_NAMES)
def test_patterns_stand_for_exactly_the_names(names: list[str]) -> None:
    found = fold_names(names)
    assert sorted(name for f in found for name in f.names) == sorted(names)
    for f in found:
        assert sorted(unfold(f.pattern)) == sorted(f.names)


def test_a_real_network_becomes_short() -> None:
    target = build_target("torchvision:resnet152")
    found = fold((t.name, t.shape) for t in target.tensors)
    assert len(target.tensors) == 932
    assert len(found) < 160
    assert any(f.pattern == "layer3.{0..35}.conv2.weight" for f in found)
