"""Hints name what there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


def _commands_said() -> Iterator[tuple[str, str]]:
    """Yield the command lines in the pages' prose and in the texts of the package, by file."""
    root = Path(__file__).resolve().parents[2]
    for page in (*root.glob("*.md"), *(root / "docs").glob("*.md")):
        for found in re.findall(r"`(ckpt [^`\n]+)`", page.read_text("utf-8")):
            yield page.name, found
    for module in (root / "ckpt_surgery").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for found in re.findall(r"ckpt [a-z][^'`\n|$]*", node.value):
                    yield module.name, found


def test_every_command_that_is_named_has_the_options_that_it_is_given():
    known = {
        name: {o for p in cli.get_command(click.Context(cli), name).params for o in p.opts}
        for name in COMMANDS
    }
    said = [(file, line) for file, line in _commands_said() if line.split()[1] in COMMANDS]
    assert len(said) > 200
    wrong = [
        (file, line)
        for file, line in said
        if not set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line))
        <= known[line.split()[1]] | {"--help"}
    ]
    assert not wrong


def test_no_hint_is_for_a_command_that_exists():
    assert not set(_OTHER_WORDS) & set(COMMANDS)


def test_a_word_that_nothing_is_known_of_has_no_hint():
    assert other_word("xyzzy") is None
