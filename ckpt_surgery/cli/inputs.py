"""Commands that take any number of files: names, directories of checkpoints, standard input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import click

from ckpt_surgery.cli.options import all_of, standard_input
from ckpt_surgery.cli.types import CheckpointFile
from ckpt_surgery.errors import PathLike, ReadError, UsageError
from ckpt_surgery.fileio import Source

_SUFFIXES: Final = frozenset(
    {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".safetensors", ".th", ".tar", ".jit", ".ptl"}
)
"""What checkpoints in a directory end with; a file that is named is read whatever it is called."""

_METADATA: Final = ".metadata"  # of a distributed checkpoint, beside its parts
_PART_SUFFIX: Final = ".distcp"

files_argument = click.argument("files", nargs=-1, type=CheckpointFile(), metavar="[FILE]...")

threads_option = click.option(
    "-j",
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="How many of several files to work on at once (default: 1).",
)
jsonl_option = click.option(
    "--jsonl", is_flag=True, help="One JSON document a line, for each of several files."
)
many_options = all_of(jsonl_option, threads_option)
many_outputs_options = all_of(
    click.option(
        "--output-template",
        metavar="TEMPLATE",
        help="Write each of several files to a name of its own: '{stem}.safetensors', "
        "'{parent}/{stem}-lean{suffix}'.",
    ),
    many_options,
)


def takes_many(ctx: click.Context) -> bool:
    """Return whether the line is about several files; if not, its one file becomes ``file``.

    Raises `UsageError` for options that only several files can have.
    """
    given = ctx.params
    if _is_many(ctx) or given.get("output_template") is not None:
        return True
    ctx.params["file"] = next(iter(given["files"]), None)
    return False


def split_names(ctx: click.Context) -> None:
    """Take what follows FILE apart: words that are files, or patterns of files, and names."""
    given = ctx.params
    if given["file"] is None:
        given["files"] = ()
        return
    files = [word for word in given["names"] if _is_file(word)]
    given["files"] = (given["file"], *files)
    given["names"] = tuple(word for word in given["names"] if word not in files)


def _is_file(word: str) -> bool:
    return (
        os.path.lexists(word)
        or (_is_pattern(word) and bool(_matches(word)))
        or any(sign == ":" and os.path.isfile(word[:at]) for at, sign in enumerate(word))  # noqa: PTH113 - in an archive
    )


def _is_many(ctx: click.Context) -> bool:
    """Return whether the line names several files, or a directory of several checkpoints."""
    names: tuple[str, ...] = ctx.params["files"]
    return len(names) > 1 or any(_is_collection(name) or _is_pattern(name) for name in names)


def _is_pattern(name: str) -> bool:
    """Return whether `name` is a pattern that the shell left alone."""
    return any(sign in name for sign in "*?[") and not os.path.lexists(name)


def _is_collection(name: str) -> bool:
    """Return whether `name` is a directory that is no checkpoint itself."""
    if name == "-" or not os.path.isdir(name):  # noqa: PTH112
        return False
    from ckpt_surgery.formats.detect import is_checkpoint_directory

    return not is_checkpoint_directory(name)


def sources_of(ctx: click.Context) -> list[PathLike | Source]:
    """Return the inputs in order: files, those in directories, and standard input as an open file.

    Raises `UsageError` if none is named and standard input is a terminal or closed, if it is named
    twice, and for a directory that holds no checkpoint.
    """
    names: tuple[str, ...] = ctx.params["files"]
    if names.count("-") > 1:
        raise UsageError("standard input is named twice")
    if not names:
        return [standard_input(ctx, named=False)]
    return [standard_input(ctx) if name == "-" else name for name in _expanded(names)]


def _expanded(names: Iterable[str]) -> Iterator[str]:
    """Yield the files that are named, and those found in directories and by patterns, once each."""
    known: set[str] = set()
    for name in names:
        named = not (_is_pattern(name) or _is_collection(name))
        for file in [name] if named else _found(name):
            place = os.path.abspath(file)  # noqa: PTH100 - links are files of their own
            if named or place not in known:
                yield file
            known.add(place)


def _found(name: str) -> list[str]:
    """Return the files of a pattern or a directory. Raises `UsageError` if there are none."""
    if _is_pattern(name):
        return _matching(name)
    found = sorted(_checkpoints_in(name))
    if not found:
        raise UsageError(
            f"there is no checkpoint in the directory '{name}'",
            hint="files are recognised by their suffix: " + " ".join(sorted(_SUFFIXES)),
        )
    return found


def _matching(pattern: str) -> list[str]:
    found = _matches(pattern)
    if not found:
        raise UsageError(f"no file matches '{pattern}'")
    return found


def _matches(pattern: str) -> list[str]:
    import glob

    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute


def _checkpoints_in(folder: str) -> Iterator[str]:
    """Yield files by their suffixes; what lies in several, once: by its index or directory."""
    from ckpt_surgery.formats.sharded_index import INDEX_SUFFIX

    for parent, _, files in os.walk(folder):
        if _METADATA in files and any(file.endswith(_PART_SUFFIX) for file in files):
            yield parent
        shards: set[str] = set()
        for index in (file for file in files if file.endswith(INDEX_SUFFIX)):
            found = _shards_of(os.path.join(parent, index))  # noqa: PTH118
            if found:
                shards |= found
                yield os.path.join(parent, index)  # noqa: PTH118
        for file in files:
            if file not in shards and os.path.splitext(file)[1].lower() in _SUFFIXES:  # noqa: PTH122
                yield os.path.join(parent, file)  # noqa: PTH118


def _shards_of(index: str) -> set[str]:
    """Return the files that an index names; none if it is something else."""
    from ckpt_surgery.fileio import FileSource
    from ckpt_surgery.formats.sharded_index import read_index

    with suppress(ReadError):
        source = FileSource.open(index)
        try:
            return set(read_index(source).files)
        finally:
            source.close()
    return set()
