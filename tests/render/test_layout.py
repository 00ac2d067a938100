"""Tables fit any width; names are shortened at their dots; nothing vanishes without a sign."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_surgery.render.layout import (
    Column,
    Grid,
    _shorten_name,
    _wrap,
    cells,
    fit,
    hanging,
    padded,
)

NAME = "backbone.layer3.0.conv1.weight"
names = st.text(st.sampled_from("ab.宽é/"), max_size=60)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (30, NAME),
        (29, "backbone.…0.conv1.weight"),
        (22, "backbone.…conv1.weight"),
        (21, "backbone.…weight"),
        (15, "…weight"),
        (5, "ba…ht"),
    ],
)
def test_name_is_shortened_at_its_dots(width, shown):
    assert _shorten_name(NAME, width) == shown


def test_name_without_dots_is_cut_in_its_middle():
    assert _shorten_name("x" * 20 + "y" * 20, 9) == "xxxx…yyyy"


def test_guide_of_a_tree_stays():
    assert _shorten_name("│   └── a.long.name.of.a.module", 20) == "│   └── a.…a.module"


@given(names, st.integers(3, 60))
def test_shortened_name_fits(name, width):
    shown = _shorten_name(name, width)
    assert cells(shown) <= width
    assert shown == name or "…" in shown


@given(st.text(st.sampled_from("ab 宽"), max_size=60), st.integers(2, 30))
def test_wrapped_text_fits_and_loses_nothing(text, width):
    lines = list(_wrap(text, width))
    assert all(cells(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_word_is_broken_only_if_it_is_wider_than_the_screen():
    assert list(_wrap("the middle of it", 6)) == ["the", "middle", "of it"]
    assert list(_wrap("a verylongword b", 6)) == ["a", "verylo", "ngword", "b"]
    # a name behind one of its dots, as long as that fills the line
    assert list(_wrap("layers.{0..2}.attention.weight (3)", 26)) == [
        "layers.{0..2}.attention.",
        "weight (3)",
    ]
    assert list(_wrap("a.relative_position_bias", 12)) == ["a.relative_p", "osition_bias"]


GRID = Grid(
    (
        Column("index", right=True, spare=2),
        Column("name", names=True),
        Column("bytes", right=True, spare=3),
        Column("note", wraps=True),
    ),
    [("1", NAME, "1,024", "a note of a few words that goes on for a while"), ("2", "b", "4", "")],
)


def test_what_fits_is_left_alone():
    fitted = fit(GRID, 200)
    assert [list(row) for row in fitted.rows] == [list(row) for row in GRID.rows]
    assert fitted.sign() == ""


def test_columns_go_by_their_rank_and_are_told():
    assert fit(GRID, 62).sign() == "not shown at this width: bytes"
    assert fit(GRID, 52).sign() == "not shown at this width: index, bytes"


@given(st.integers(24, 120), st.lists(st.tuples(names, names), max_size=5))
def test_no_line_is_wider_than_the_screen(width, pairs):
    grid = Grid(
        GRID.columns, [(str(i), name, "7" * i, note) for i, (name, note) in enumerate(pairs)]
    )
    fitted = fit(grid, width)
    for row in fitted.rows:
        assert cells(padded(row, fitted, lambda cell, _: cell)) <= width


def test_text_wraps_below_its_row():
    fitted = fit(GRID, 56)
    shown = [padded(row, fitted, lambda cell, _: cell).rstrip() for row in fitted.rows]
    assert shown == [
        f"{NAME}  a note of a few words",
        " " * 32 + "that goes on for a while",
        "b",
    ]


@given(st.text(st.sampled_from("ab 宽"), max_size=60), st.integers(8, 30), st.integers(0, 6))
@example("  宽", 8, 5)
def test_hanging_text_fits_and_loses_nothing(text, width, indent):
    shown = hanging(" " * indent + text, width)
    assert all(cells(line) <= width for line in shown.split("\n"))
    assert shown.replace(" ", "").replace("\n", "") == text.replace(" ", "")


def test_wrapped_lines_hang_below_their_first():
    assert hanging("  a.long.name: of many words", 18) == "  a.long.name: of\n      many words"
