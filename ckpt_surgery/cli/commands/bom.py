"""``ckpt bom``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ckpt_surgery.cli.base import (
    Command,
    color_of,
    color_option,
    no_color_option,
    traceback_option,
)
from ckpt_surgery.cli.inputs import files_argument, sources_of
from ckpt_surgery.cli.options import quiet_option
from ckpt_surgery.cli.types import InputFile, OutputFile
from ckpt_surgery.errors import UsageError


@click.command(cls=Command)
@files_argument
@click.option(
    "--record",
    metavar="LOG",
    type=InputFile(),
    help="The record of the edit that wrote FILE: its inputs become ancestors.",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=OutputFile(),
    help="Write to OUT instead of standard output.",
)
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@quiet_option
@color_option
@no_color_option
@traceback_option
@click.pass_context
def bom(
    ctx: click.Context,
    /,
    record: str | None,
    output: str | None,
    force: bool,
    quiet: bool,
    **_: Any,
) -> int:
    r"""Print a bill of materials of models (CycloneDX).

    One component of type machine-learning-model for each FILE, with SHA-256, the digest of the
    model, format, element types and counts. With --record the inputs of an edit are the ancestors
    in the pedigree of its output. Needs: pip install 'ckpt-surgery[sign]'.

    \b
    Examples:
      ckpt bom model.safetensors > model.cdx.json
      ckpt bom net.pth --record net.json -o net.cdx.json
    """
    from ckpt_surgery.ops.bom import bill_of_materials
    from ckpt_surgery.render.progress import progress_bar

    sources = sources_of(ctx)
    if record is not None and len(sources) > 1:
        raise UsageError("'--record' is about one FILE")
    if force and output is None:
        raise UsageError("'--force' is about the output of '-o'")
    bar = None if quiet else progress_bar(color=color_of(ctx))
    place = None if output == "-" else output
    text = bill_of_materials(sources, record=record, output=place, progress=bar) + "\n"
    if place is None:
        sys.stdout.write(text)
        return 0
    from ckpt_surgery.fileio.atomic import atomic_output

    with atomic_output(place, force=force) as sink:
        sink.write(text.encode())
    return 0
