"""Hints name what there is."""

from __future__ import annotations

import re

import click
import pytest

from ckpt_surgery.cli.hints import _OTHER_WORDS, other_word
from ckpt_surgery.cli.main import COMMANDS, cli


@pytest.mark.parametrize("word", _OTHER_WORDS)
def test_hint_at_another_word_names_commands_and_options_that_exist(word):
    hint = other_word(word.upper())
    commands = re.findall(r"'ckpt ([a-z-]+)([^']*)'", hint)
    assert commands
    for name, rest in commands:
        assert name in COMMANDS
        known = {
            spelling
            for p in cli.get_command(click.Context(cli), name).params
            for spelling in p.opts
        }
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known


def test_no_hint_is_for_a_command_that_exists():
    assert not set(_OTHER_WORDS) & set(COMMANDS)


def test_a_word_that_nothing_is_known_of_has_no_hint():
    assert other_word("xyzzy") is None
