"""What a record has beside the report: SHA-256 of whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from ckpt_surgery.errors import PathLike
from ckpt_surgery.reports import Report

_BEFORE: Final = "ckpt_surgery.cli.digests"


def file_digest(path: PathLike) -> str | None:
    """Return the SHA-256 of a file as 64 hexadecimal digits; None for anything but a file."""
    if not Path(path).is_file():
        return None
    from ckpt_surgery.fileio import ByteRange, FileSource
    from ckpt_surgery.fileio.digest_sink import DigestSink

    sink = DigestSink()
    with FileSource.open(path) as source:
        sink.copy(ByteRange(source, 0, source.size))
    return sink.hexdigest()


def remember_input(ctx: click.Context, path: str) -> None:
    """Take the digest of a file that is about to be replaced."""
    ctx.meta.setdefault(_BEFORE, {})[path] = file_digest(path)


def recorded(ctx: click.Context, report: Report) -> dict[str, Any]:
    """Return the fields that a record has and its report has not.

    The digest of what is no file is null: of a directory, of standard input or output.
    """
    document = report.to_dict()
    before: dict[str, str | None] = ctx.meta.get(_BEFORE, {})
    written = [each["output"] for each in document.get("outputs", [document])]
    return {
        "digests": {
            "inputs": {name: before.get(name) or file_digest(name) for name in document["inputs"]},
            "outputs": {name: file_digest(name) for name in written if name is not None},
        },
    }
