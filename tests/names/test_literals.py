"""Names in JSON and TOML are read back equal, and speak to no terminal on the way."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.names.literals import json_string, toml_string

HOSTILE = [
    "\x9b31mred\u202e",
    "\x00\x1f\x7f",
    'a "b" \\ c\n',
    "\u2028",
    "\U000e0001",
    "é\u200f",
    "",
]


@given(st.text())
def test_any_text_is_read_back_and_prints(text: str) -> None:
    assert json.loads(json_string(text)) == text
    assert json_string(text).isprintable()
    if not any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        assert tomllib.loads(f"{toml_string(text)} = {toml_string(text)}") == {text: text}
        assert toml_string(text).isprintable()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_read_back_and_prints(text: str) -> None:
    test_any_text_is_read_back_and_prints.hypothesis.inner_test(text)


def test_every_character_that_does_not_print_is_escaped() -> None:
    odd = [c for c in map(chr, range(sys.maxunicode + 1)) if not c.isprintable()]
    for character in odd:
        assert json_string(character).isascii()
        assert toml_string(character).isascii() or "\ud800" <= character <= "\udfff"


def test_letters_stay_letters() -> None:
    assert toml_string("größe.重み") == json_string("größe.重み") == '"größe.重み"'


def test_half_of_a_pair_stays_for_others_to_refuse() -> None:
    assert toml_string("\ud800") == '"\ud800"'
    assert json_string("\ud800") == '"\\ud800"'
