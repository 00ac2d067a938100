"""What can be carried over into another shape: named, and never something else."""

from __future__ import annotations

import pytest

from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.adaptations import (
    KINDS,
    Adaptation,
    AdaptRule,
    Classes,
    adaptation,
    below,
    parse_adaptations,
    parse_classes,
    possible,
)
from ckpt_surgery.fit.fills import Fill, parse_fills
from ckpt_surgery.fit.grids import parse_grids

ALL = tuple(AdaptRule(kind) for kind in KINDS)


@pytest.mark.parametrize(
    ("name", "source", "target", "kinds"),
    [
        ("c.weight", (10, 512), (10, 512, 1, 1), ("squeeze",)),
        ("c.weight", (1, 1, 5), (5,), ("squeeze",)),
        ("c.weight", (1,), (), ("squeeze",)),
        ("c.weight", (2, 3), (3, 2), ()),
        ("c.weight", (3, 4, 5, 64), (64, 5, 3, 4), ()),
        ("pos_embed", (1, 8, 4, 6), (1, 8, 6, 4), ("interpolate",)),
        ("fc6.weight", (12, 8, 7, 7), (12, 392), ("reshape",)),
        ("fc6.weight", (12, 392), (12, 8, 7, 7), ("reshape",)),
        ("fc6.weight", (12, 392), (12, 8, 49), ("reshape",)),
        ("fc6.weight", (12, 392), (8, 12, 7, 7), ()),
        ("fc6.weight", (12, 392), (12, 8, 1, 1), ()),
        ("pos_embed", (1, 8, 14, 14), (1, 1568), ()),
        ("c.weight", (6,), (2, 3), ()),
        ("conv1.weight", (64, 3, 7, 7), (64, 4, 7, 7), ("channels", "overlap")),
        ("conv1.weight", (64, 3, 7, 7), (32, 4, 7, 7), ("overlap",)),
        ("fc.weight", (1000, 512), (10, 512), ("rows", "overlap")),
        ("fc.bias", (1000,), (10,), ("rows", "overlap")),
        ("fc.weight", (10, 512), (10, 256), ("overlap",)),
        ("fc.weight", (0, 512), (10, 512), ()),
        ("enc.pos_embedding", (1, 197, 768), (1, 577, 768), ("interpolate", "overlap")),
        ("pos_embed", (1, 198, 768), (1, 578, 768), ("interpolate", "overlap")),
        ("visual.positional_embedding", (50, 64), (197, 64), ("interpolate", "rows", "overlap")),
        ("embeddings.position_embeddings.weight", (50, 64), (197, 64),
         ("interpolate", "rows", "overlap")),
        ("positional_embedding", (77, 64), (154, 64), ("rows", "overlap")),
        ("pos_embed", (1, 197, 768), (1, 577, 384), ("overlap",)),
        ("pos_embed", (1, 8, 14, 14), (1, 8, 24, 24), ("interpolate", "overlap")),
        ("pos_embed", (1, 0, 8), (1, 5, 8), ()),
        ("a.relative_position_bias_table", (169, 3), (529, 3), ("interpolate",)),
        ("a.relative_position_bias_table", (732, 3), (964, 3), ("interpolate",)),
        ("a.relative_position_bias_table", (169, 3), (105, 3), ()),
        ("a.relative_position_bias_table", (169, 3), (529, 6), ()),
        ("attn.rel_pos_h", (27, 96), (55, 96), ("interpolate",)),
        ("pos_embed", (1, 4, 4, 8), (1, 8, 6, 8), ("interpolate", "overlap")),
        ("x.repos_embed.weight", (50, 64), (197, 64), ("rows", "overlap")),
    ],
)  # fmt: skip
def test_each_shape_has_its_adaptations(
    name: str, source: tuple[int, ...], target: tuple[int, ...], kinds: tuple[str, ...]
) -> None:
    assert possible(name, source, target) == kinds
    found = adaptation(name, source, target, ALL)
    assert (found.kind if found else None) == (kinds[0] if kinds else None)
    assert adaptation(name, source, target, ()) is None
    for kind in KINDS:
        alone = adaptation(name, source, target, [AdaptRule(kind)])
        assert (alone is not None) == (kind in kinds)


@pytest.mark.parametrize(
    ("old", "new", "extra"), [(196, 576, 0), (197, 577, 1), (198, 578, 2), (261, 1374, 5)]
)
def test_prefix_tokens_are_those_that_leave_squares(old: int, new: int, extra: int) -> None:
    found = adaptation("pos_embed", (1, old, 8), (1, new, 8), ALL)
    assert found is not None
    assert (found.grid, found.prefix_tokens) == ("tokens", extra)


@pytest.mark.parametrize(
    ("grids", "shapes", "sizes"),
    [
        ("4x6", ((1, 9 + 1, 8), (1, 24 + 1, 8)), ((3, 3), (4, 6))),
        ("4x6", ((9, 8), (24, 8)), ((3, 3), (4, 6))),
        ("2x8:4x6", ((1, 16 + 5, 8), (1, 24 + 5, 8)), ((2, 8), (4, 6))),
        ("2x8:4x4", ((1, 16, 8), (1, 16, 8)), ((2, 8), (4, 4))),
        ("4x6", ((1, 9, 8), (1, 16, 8)), ((3, 3), (4, 4))),  # another tensor's grid: squares
        ("4x6", ((1, 9, 8), (1, 26, 8)), None),
        ("4x6", ((1, 10, 8), (1, 24, 8)), None),
    ],
)
def test_positions_go_to_the_grid_that_is_asked_for(grids, shapes, sizes) -> None:
    rules = parse_adaptations(["interpolate"], parse_grids(grids))
    found = adaptation("pos_embed", *shapes, rules)
    assert (found and (found.old_size, found.new_size)) == sizes
    table = adaptation("a.relative_position_bias_table", (9, 2), (7 * 11, 2), rules)
    assert table is not None or grids != "4x6"
    assert table is None or (table.old_size, table.new_size) == ((3, 3), (7, 11))


@pytest.mark.parametrize("text", ["4", "4x", "0x3", "4x6x8", "a:4x6", "4x6:", "٤x6", "4 x 6"])
def test_a_malformed_grid_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="is no grid"):
        parse_grids(text)


def test_a_grid_without_interpolation_is_an_error() -> None:
    assert str(parse_grids(" 14x14:4x6 ")) == "14x14:4x6"
    with pytest.raises(UsageError, match="'grid 4x6' says what is interpolated to"):
        parse_adaptations(["rows"], parse_grids("4x6"))


def test_no_two_numbers_of_prefix_tokens_fit_one_pair_of_sizes() -> None:
    squares = {n * n for n in range(1, 60)}
    for old in range(1, 1000):
        readings = [extra for extra in (0, 1, 2, 3, 5) if old - extra in squares]
        for new in range(old + 1, 1000) if len(readings) > 1 else ():
            assert sum(new - extra in squares for extra in readings) <= 1, (old, new)


def test_confined_rules_go_before_general_ones() -> None:
    rules = [*parse_adaptations(["channels=zero"]), *parse_fills(["stem.conv=mean"])[1]]
    shapes = (8, 3, 3, 3), (8, 6, 3, 3)
    assert str(adaptation("stem.conv.weight", *shapes, rules)) == "channels=mean"
    assert str(adaptation("stem.conv2.weight", *shapes, rules)) == "channels=zero"


def test_below_counts_whole_segments() -> None:
    assert below("fc.weight", "fc")
    assert below("fc", "fc")
    assert below("anything", "")
    assert not below("fcn.weight", "fc")


def test_adaptations_are_parsed() -> None:
    assert parse_adaptations(["squeeze", "channels", "channels=mean", "channels=mean:scaled"]) == (
        AdaptRule("squeeze"),
        AdaptRule("channels", "repeat", scaled=True),
        AdaptRule("channels", "mean"),
        AdaptRule("channels", "mean", scaled=True),
    )
    assert str(Adaptation("channels", "mean", scaled=True)) == "channels=mean:scaled"
    assert str(Adaptation("rows")) == "rows"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqeeze", "no adaptation 'sqeeze'"),
        ("zzzz", "no adaptation 'zzzz'"),
        ("rows=3", "'rows' takes no value"),
        ("channels=median", "cannot be adapted by 'median'"),
        ("channels=mean:big", "cannot be adapted by 'mean:big'"),
        ("channels=", "cannot be adapted by ''"),
    ],
)
def test_an_unknown_adaptation_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        parse_adaptations([text])
    assert raised.value.hint or "takes no value" in message


def test_classes_carry_rows_by_name() -> None:
    classes = Classes(("cat", "dog", "eel"), ("eel", "fox", "cat", "gnu"))
    assert classes.rows == ((0, 2), (2, 0))
    found = adaptation("fc.weight", (3, 8), (4, 8), ALL, classes)
    assert found is not None
    assert found.rows == classes.rows
    assert found.needs_initial


def test_without_classes_the_leading_rows_are_carried() -> None:
    found = adaptation("wte.weight", (5, 8), (7, 8), ALL)
    assert found is not None
    assert found.rows == tuple((row, row) for row in range(5))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ((), ("a",), "old classes is empty"),
        (("a",), (), "new classes is empty"),
        (("a", "a"), ("a",), "names 'a' twice"),
        (("a",), ("b",), "no name in common"),
    ],
)
def test_class_lists_that_make_no_sense_are_errors(
    old: tuple[str, ...], new: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Classes(old, new)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((4, 8), (2, 8), "list of old classes has 3 names, but 'fc.weight' has 4 rows"),
        ((3, 8), (5, 8), "new classes has 2 names, but 'fc.weight' has 5 rows in the target"),
    ],
)
def test_class_lists_that_disagree_with_the_head_are_errors(
    source: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        adaptation("fc.weight", source, target, ALL, Classes(("a", "b", "c"), ("a", "d")))


def test_class_files_have_one_name_a_line() -> None:
    assert parse_classes("cat\n big dog \r\neel\n\n") == ("cat", "big dog", "eel")
    assert parse_classes("") == ()
    with pytest.raises(UsageError, match="line 2 of the class list is blank"):
        parse_classes("cat\n\ndog\n")


def test_fills_are_parsed() -> None:
    fills, rules = parse_fills(
        ["zeros", "fc=normal", "a.b=normal:0.1", "c=constant:-2", "d=init", "conv1=first:scaled"]
    )
    assert fills == (
        Fill("zeros"),
        Fill("normal", 0.02, "fc"),
        Fill("normal", 0.1, "a.b"),
        Fill("constant", -2.0, "c"),
        Fill("init", 0.0, "d"),
    )
    assert rules == (AdaptRule("channels", "first", scaled=True, prefix="conv1"),)
    assert [str(fill) for fill in fills[:4]] == [
        "zeros",
        "normal:0.02",
        "normal:0.1",
        "constant:-2",
    ]
    assert parse_fills(["conv1=repeat"])[1][0].scaled


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["=zeros"], "fills nothing"),
        (["fc=zeros", "fc=ones"], "two fills for 'fc'"),
        (["zeros", "ones"], "two fills for 'everything'"),
        (["c=mean", "c=zeros"], "two fills for 'c'"),
        (["fc=zeroes"], "no way 'zeroes'"),
        (["mean"], "no way 'mean'"),
        (["fc=constant"], "has no number"),
        (["fc=normal:x"], "has no number"),
        (["fc=zeros:1"], "'zeros' takes no value"),
        (["fc=normal:-1"], "negative or not finite"),
        (["fc=uniform:inf"], "negative or not finite"),
        (["fc=normal:nan"], "negative or not finite"),
    ],
)
def test_a_fill_that_makes_no_sense_is_an_error(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_fills(texts)
