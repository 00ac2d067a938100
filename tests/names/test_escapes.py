"""Escaped names come back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.names.escapes import escaped, unescaped


@given(st.text(st.characters()))
def test_unescaping_is_the_inverse(text: str) -> None:
    safe = escaped(text)
    if safe is None:
        assert text.isprintable()
    else:
        assert safe.isprintable()
        assert unescaped(safe) == text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("model.pth", None),
        ("a b", None),
        ("é#1", None),
        ("a\nb", "a\\nb"),
        ("C:\\x41", "C:\\\\x41"),
        ("\x1b[0m", "\\x1b[0m"),
        ("\udcff", "\\udcff"),
        ("\u202e", "\\u202e"),
    ],
)
def test_only_what_would_not_print_is_escaped(text: str, safe: str | None) -> None:
    assert escaped(text) == safe
