"""Texts from a file, made safe and short; numbers made readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.render.text import count, nbytes, printable, shape, shorten, visible

# surrogates come from pickles, so they are part of the game
anything = st.text(st.characters(exclude_categories=()), max_size=300)


@given(anything)
def test_visible_text_prints_as_itself(text):
    assert visible(text).isprintable()
    visible(text).encode()


@given(st.text().filter(str.isprintable))
def test_harmless_text_is_unchanged(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb", "a\\nb"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_visible_is_escaped(text, shown):
    assert visible(text) == shown


@given(anything, st.integers(3, 50))
def test_short_text_keeps_both_ends(text, longest):
    short = shorten(text, longest)
    assert len(short) <= longest
    assert short == text or (short[0], short[-1]) == (text[0], text[-1])


@given(anything, st.integers(3, 50))
def test_printable_is_safe_and_bounded(text, longest):
    assert printable(text, longest).isprintable()
    assert len(printable(text, longest)) <= 10 * longest


@pytest.mark.parametrize("sizes", [(), (10,), (64, 3, 7, 7)])
def test_shape_is_pythons(sizes):
    assert shape(sizes) == str(sizes)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (87_259_072, "83.2 MiB"),
        (100 * 1024**3, "100.0 GiB"),
        (5000 * 1024**6, "5,000.0 EiB"),
    ],
)
def test_bytes_are_readable(number, shown):
    assert nbytes(number) == shown


def test_counts_agree_with_their_noun():
    assert (count(1, "tensor"), count(2, "tensor")) == ("1 tensor", "2 tensors")
    assert count(21_814, "entry", "entries") == "21,814 entries"
