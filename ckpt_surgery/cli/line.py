"""The words of a command line, before Click gives them to options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import click

from ckpt_surgery.cli.spellings import spellings
from ckpt_surgery.errors import UsageError

_END_OF_OPTIONS: Final = "--"


def refuse_swallowed_options(
    command: str, parameters: Sequence[click.Parameter], words: Sequence[str]
) -> None:
    """Raise `UsageError` if an option would take the next option of the line for its value.

    Click gives an option that lacks its value the word that follows, so that ``-o --force`` would
    write a file called ``--force``. A value that is part of its option's word
    (``--replace=--force``, ``-o--force``) is a value whatever it looks like.
    """
    known = {
        spelling: option
        for option in parameters
        if isinstance(option, click.Option)
        for spelling in (*spellings(option), *option.secondary_opts)
    }
    waiting = iter(words)
    for word in waiting:
        if word == _END_OF_OPTIONS:
            return
        spelling, wanted = _open_option(word, known)
        for number in range(wanted):
            value = next(waiting, None)
            if value is not None and _is_option(value, known):
                raise _swallowed(command, spelling, value, attachable=number == 0)


def _open_option(word: str, known: Mapping[str, click.Option]) -> tuple[str, int]:
    """Return the option that the following words are values of, and how many it lacks."""
    if word.startswith("--"):
        spelling, equals, _ = word.partition("=")
        option = known.get(spelling)
        return spelling, _values(option) - bool(equals) if _values(option) else 0
    if word.startswith("-"):
        for end, letter in enumerate(word[1:], 2):
            option = known.get(f"-{letter}")
            if option is None:
                break
            if _values(option):
                return f"-{letter}", _values(option) - (end < len(word))
    return word, 0


def _values(option: click.Option | None) -> int:
    """Return the number of words that `option` takes as its value."""
    return 0 if option is None or option.is_flag or option.count else option.nargs


def _is_option(word: str, known: Mapping[str, click.Option]) -> bool:
    """Return whether `word` means options: a misspelled long one, too, is no value."""
    if word.startswith("--"):
        return word == _END_OF_OPTIONS or word[2:3].isalpha()
    if word == "-" or not word.startswith("-"):
        return False
    for letter in word[1:]:
        option = known.get(f"-{letter}")
        if option is None or _values(option):
            return option is not None
    return True


def _swallowed(command: str, spelling: str, value: str, *, attachable: bool) -> UsageError:
    hint = "write '' for an empty value"
    if attachable:
        attached = f"{spelling}={value}" if spelling.startswith("--") else f"{spelling}{value}"
        hint += f", or {attached} if that is meant"
    return UsageError(
        f"'{spelling}' lacks a value: the word after it, '{value}', is spelled like an option",
        hint=f"{hint}; see '{command} --help'",
    )
