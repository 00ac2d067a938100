"""Hints that need a look around: files of near names, options of other commands."""

from __future__ import annotations

import os
from itertools import islice
from typing import Final

import click

_MOST_FILES: Final = 5000  # names of a directory that are looked at
_ALIKE: Final = 0.75  # difflib's ratio; all names end alike, in .pth


def near_files(path: str) -> str | None:
    """Return a hint at files whose names are near that of `path`, which is not there."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _MOST_FILES)]
    except OSError:
        return f"there is no folder '{folder}'" if folder else None
    import difflib

    alike = difflib.get_close_matches(name, names, n=2, cutoff=_ALIKE)
    before = path[: len(path) - len(name)]  # as it was typed
    meant = " or ".join(f"'{before}{each}'" for each in alike)
    return f"did you mean {meant}?" if meant else None


def where_option_is(spelling: str, group: click.Group, ctx: click.Context) -> str | None:
    """Return a hint at the commands of `group` that have the option `spelling`, if any has."""
    having = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and any(spelling in p.opts for p in command.params):
            having.append(f"'ckpt {name}'")
    if not having:
        return None
    return f"'{spelling}' is an option of {', '.join(having[:4])}" + (" …" * (len(having) > 4))
