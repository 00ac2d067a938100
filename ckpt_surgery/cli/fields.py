"""Errors about a request in the words of the command line: options where the library has fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import click

from ckpt_surgery.errors import CkptError

# Fields whose option has a parameter of another name.
_PARAMETERS: Final[Mapping[str, str]] = {
    "weights": "weight",
    "overrides": "weight_for",
    "parameters": "parameter",
    "model_args": "model_arg",
    "renames": "rename_map",
    "entries": "entry",
}


# What an error of the library advises, and not every command has.
_ADVICE: Final = re.compile(r"--state-dict-only( --at PATH)?(?= writes)")


def name_options(error: CkptError, parameters: Sequence[click.Parameter]) -> None:
    """Put options in the place of the fields that an error speaks of.

    A field stands in quotes, alone or before its value: ``'weights'``, ``'at model'``. A hint at
    an option that the command does not have names one that has it.
    """
    options = [each for each in parameters if isinstance(each, click.Option)]
    spelling = {option.name: max(option.opts, key=len) for option in options}
    if error.hint and "state_dict_only" not in spelling:
        error.hint = _ADVICE.sub(r"'ckpt convert --state-dict-only\1'", error.hint)
    spelled = {f"--{field.replace('_', '-')}" for field in error.fields}
    spelling |= {o[2:].replace("-", "_"): o for each in options for o in each.opts if o in spelled}
    for field in error.fields:
        long = spelling.get(_PARAMETERS.get(field, field))
        if long is None:
            continue
        quoted = re.compile(rf"'{field}(?=[' ])")
        error.message = quoted.sub(f"'{long}", error.message)
        error.hint = error.hint and quoted.sub(f"'{long}", error.hint)
