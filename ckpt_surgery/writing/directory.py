"""Write a layout of several files: a directory."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.atomic_directory import atomic_directory
from ckpt_surgery.fileio.sink import Progress
from ckpt_surgery.formats.base import Layout
from ckpt_surgery.writing.output import Output


def write_directory(
    layout: Layout,
    file: Source,
    output: Output,
    inputs: Sequence[Source],
    progress: Progress | None,
) -> None:
    """Write every file of `layout` into the directory that `output` names.

    Raises `UsageError` if the output is a stream, or an input that is no directory.
    """
    path = file.path if output.in_place else output.path
    if path is None:
        raise UsageError(
            "the output is a directory", hint="give -o DIRECTORY, or --format for one file"
        )
    with atomic_directory(
        path,
        force=output.replaces,
        replacing=file if output.in_place else None,
        inputs=inputs,
        replaceable=(*(each.name for each in layout.files), *layout.owned),
        fsync=output.fsync,
        progress=progress,
    ) as new_file:
        for each in layout.files:
            with new_file(each.name) as sink:
                each.write(sink)
        for source in inputs:
            source.require_unchanged()
