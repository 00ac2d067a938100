import pytest
from freeze_helpers import NET, net

from ckpt_surgery.errors import UsageError
from ckpt_surgery.freeze.selectors import (
    Before,
    ByName,
    First,
    FirstChildren,
    Last,
    Selector,
    Until,
    _Everything,
    _Head,
    _HeadOrModule,
    parse_selector,
)
from ckpt_surgery.names import Rule as NameRule
from ckpt_surgery.training.parameters import Inventory, NamedEntry, Structure

NAMES = [p.name for p in net().parameters]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (First(4), NAMES[:4]),
        (First(11), NAMES),
        (Last(2), ["fc.weight", "fc.bias"]),
        (Last(11), NAMES),
        (FirstChildren(2), NAMES[:3]),
        (Before("layer1"), NAMES[:3]),
        (Before("layer1.1"), NAMES[:6]),
        (Before("conv1"), []),
        (Until("layer1.0"), NAMES[:6]),
        (Until("bn1.weight"), NAMES[:2]),
        (_Head(), NAMES[-2:]),
        (_Everything(), NAMES),
    ],
)
def test_positions_count_parameters(selector: Selector, expected: list[str]) -> None:
    assert selector.select(net()) == set(expected)


@pytest.mark.parametrize(
    "selector", [First(0), First(12), Last(0), Last(12), FirstChildren(0), FirstChildren(5)]
)
def test_a_count_out_of_range_is_refused(selector: Selector) -> None:
    with pytest.raises(UsageError) as caught:
        selector.select(net())
    assert selector.option in caught.value.message


@pytest.mark.parametrize(
    ("selector", "meant"),
    [(Before("layer9"), "'layer1' or 'layer1.1' or 'layer1.0'"), (Until("fcc"), "'fc'")],
)
def test_an_unknown_place_is_refused_with_near_names(selector: Selector, meant: str) -> None:
    with pytest.raises(UsageError, match="no module or parameter") as caught:
        selector.select(net())
    assert caught.value.hint == f"did you mean {meant}?"


def test_an_unknown_place_with_nothing_near_points_to_inspect() -> None:
    with pytest.raises(UsageError) as caught:
        Before("zzzzzz").select(net())
    assert "ckpt inspect" in (caught.value.hint or "")


def test_parameterless_children_count_where_the_model_is_known() -> None:
    structure = Structure(("conv1", "bn1", "relu", "layer1", "fc"), {})
    assert FirstChildren(3).select(Inventory.of(NET, structure)) == set(NAMES[:3])
    assert FirstChildren(3).select(net()) == set(NAMES[:9])


def test_a_parameterless_module_has_a_place_where_the_model_is_known() -> None:
    modules = ["conv1", "bn1", "relu", "layer1", "layer1.0", "layer1.0.conv1", "layer1.0.bn1"]
    inventory = Inventory.of(NET, Structure((), dict.fromkeys(modules, "other")))
    assert Before("relu").select(inventory) == set(NAMES[:3])
    assert Until("relu").select(inventory) == set(NAMES[:3])
    first = Inventory.of(NET, Structure((), {"relu": "other", "conv1": "other"}))
    assert Before("relu").select(first) == set()


def test_tied_names_are_counted_once_and_chosen_together() -> None:
    tied = Inventory.of(
        [NamedEntry("a.w", (1,), tie=0), NamedEntry("b.w", (1,)), NamedEntry("c.w", (1,), tie=0)]
    )
    assert First(1).select(tied) == {"a.w", "c.w"}
    assert Last(1).select(tied) == {"b.w"}
    assert Until("c").select(tied) == {"a.w", "c.w"}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("fc", "prefix:fc"),
        (" layer4 ", "prefix:layer4"),
        ("*.bias", "glob:*.bias"),
        ("pattern=bn[12]:x", "pattern:bn[12]:x"),
        ("prefix=head", "prefix:head"),
        ("glob=fc", "glob:fc"),
        ("a=b", "prefix:a=b"),
    ],
)
def test_a_selection_is_spelled_in_one_word(text: str, spelled: str) -> None:
    kind, _, rest = spelled.partition(":")
    selector = parse_selector(text, "--group")
    assert isinstance(selector, ByName)
    assert selector.matcher == NameRule(kind, rest)  # type: ignore[arg-type]


def test_head_is_the_module_of_that_name_or_else_the_output_layer() -> None:
    selector = parse_selector("head", "--stage")
    assert isinstance(selector, _HeadOrModule)
    assert selector.select(net()) == {"fc.weight", "fc.bias"}
    named = Inventory.of([NamedEntry("head.a", (2,)), NamedEntry("fc.weight", (2, 2))])
    assert selector.select(named) == {"head.a"}


def test_all_is_everything_and_nothing_is_refused() -> None:
    assert parse_selector("all", "--stage").select(net()) == set(NAMES)
    with pytest.raises(UsageError, match="selects nothing"):
        parse_selector("  ", "--stage")


def test_labels_and_options_tell_selectors_apart() -> None:
    selectors: list[Selector] = [
        First(1), Last(1), FirstChildren(1), Before("a"), Until("a"), _Head(), _Everything(),
    ]  # fmt: skip
    assert len({s.option for s in selectors}) == len({s.label for s in selectors}) == 7
