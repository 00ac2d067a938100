"""Hints that need a look around: files of near names, options of other commands."""

from __future__ import annotations

import os
from itertools import islice
from typing import Final

import click

from ckpt_surgery.cli.spellings import spellings

_MOST_FILES: Final = 5000  # names of a directory that are looked at
_ALIKE: Final = 0.75  # difflib's ratio; all names end alike, in .pth


# What people call what ckpt calls otherwise, or does by another command.
_OTHER_WORDS: Final = {
    "cast": "'ckpt convert FILE --dtype float16' casts all tensors",
    "split": "'ckpt strip FILE --keep --prefix P' writes a part; without --keep, the rest",
    "extract": "'ckpt convert FILE --state-dict-only --at PATH' writes one state dict alone",
    "average": "'ckpt merge A B -m average' averages checkpoints",
    "freeze": "'ckpt freeze-plan' decides what trains",
    "compare": "'ckpt diff A B' says what differs, 'ckpt match A --like B' whether names and "
    "shapes are those of B",
    "unwrap": "'ckpt rename FILE --unwrap' takes off what wrappers add",
    "ema": "'ckpt strip FILE --training-state --ema' publishes the moving average",
    "compact": "'ckpt strip FILE --compact' drops bytes that no tensor uses",
    "shard": "'ckpt convert FILE --max-shard-size 5GB -o DIRECTORY' splits into files",
    **dict.fromkeys(("half", "dtype"), "'ckpt convert FILE --dtype float16' casts all tensors"),
    "join": "'ckpt convert DIR -o FILE' joins shards, 'ckpt consolidate' the files of ranks",
    **dict.fromkeys(("show", "list", "info", "cat", "tree", "keys"), "that is 'ckpt inspect'"),
    **dict.fromkeys(("remove", "delete", "del", "drop", "prune"), "that is 'ckpt strip'"),
    **dict.fromkeys(
        ("load", "check", "validate", "scan", "test"),
        "'ckpt match' says whether FILE loads into a model, 'ckpt verify' whether it is whole",
    ),
    **dict.fromkeys(("sha256", "digest", "checksum"), "that is 'ckpt hash'"),
}


def other_word(command: str) -> str | None:
    """Return a hint at what does what `command`, which there is not, would do."""
    return _OTHER_WORDS.get(command.lower())


def near_files(path: str) -> str | None:
    """Return a hint at files whose names are near that of `path`, which is not there."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _MOST_FILES)]
    except OSError:
        return f"there is no folder '{folder}'" if folder else None
    import difflib

    from ckpt_surgery.names.suggest import did_you_mean

    alike = difflib.get_close_matches(name, names, n=2, cutoff=_ALIKE)
    before = path[: len(path) - len(name)]  # as it was typed
    return did_you_mean([before + each for each in alike])


def where_option_is(spelling: str, group: click.Group, ctx: click.Context) -> str | None:
    """Return a hint at the commands of `group` that have the option `spelling`, if any has."""
    having = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and any(spelling in spellings(p) for p in command.params):
            having.append(f"'ckpt {name}'")
    if not having:
        return None
    return f"'{spelling}' is an option of {', '.join(having[:4])}" + (" …" * (len(having) > 4))
