"""``ckpt lora``."""

from __future__ import annotations

from typing import Any, Final

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import (
    at_option,
    new_file_options,
    output_of,
    report_options,
    selection_of,
    selection_options,
)
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.types import CheckpointFile
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.parameters import numbers_of
from ckpt_surgery.render.adapters import show

_HEADINGS: Final[dict[str, tuple[str, ...]]] = {
    "What to make": ("rank", "scale", "dtype", "fan_in_fan_out"),
}
_OF_EXTRACTION: Final = ("fan_in_fan_out", "pattern", "prefix", "glob", "name", "keys_from", "at")


@click.command(cls=Command, headings=_HEADINGS)
@click.argument("words", nargs=-1, type=CheckpointFile(), metavar="extract|merge FILE...")
@click.option("--rank", type=int, metavar="N", help="The most that any layer's factors have.")
@click.option(
    "--scale", metavar="S[,S]", help="merge: how much of the adapters, 0.8 or one for each."
)
@click.option("--dtype", metavar="TYPE", help="Floating type of the factors (default: float32).")
@click.option(
    "--fan-in-fan-out",
    is_flag=True,
    help="extract: matrices have their inputs first, as those of GPT-2.",
)
@selection_options
@at_option
@new_file_options
@report_options
@click.pass_context
def lora(ctx: click.Context, /, words: tuple[str, ...], **_: Any) -> int:
    r"""Make a low-rank adapter.

    'extract BASE TUNED' finds the adapter of a rank that makes of BASE nearly what TUNED is, and
    says how much each layer's factors leave out. 'merge' makes one adapter of several: their
    factors side by side, which loses nothing, or cut to a rank by their singular values. The
    result is a directory that PEFT loads, or a file where the adapters are files of other namings.

    \b
    Examples:
      ckpt lora extract base.safetensors tuned.safetensors --rank 16 -o adapter
      ckpt lora extract base/ tuned/ --rank 64 --glob '**.self_attn.**' -o adapter
      ckpt lora merge style/ subject/ --scale 0.7,1 -o both
      ckpt lora merge style/ subject/ --rank 32 -o both
    """
    import ckpt_surgery.ops.lora as verb

    given = ctx.params
    if not words:
        raise UsageError("no word says what to do", hint="say 'extract' or 'merge' first")
    action, *files = words
    if action not in {"extract", "merge"}:
        raise UsageError(
            f"'{action}' is nothing to do with adapters", hint="say 'extract' or 'merge' first"
        )
    if action == "merge":
        for name in _OF_EXTRACTION:
            if given[name]:
                raise UsageError(f"'--{name.replace('_', '-')}' is for 'extract'")
        scales = None if given["scale"] is None else numbers_of("--scale", given["scale"])
        report = verb.merge_loras(
            files, output_of(ctx), rank=given["rank"], scales=scales, dtype=given["dtype"]
        )
        return finish(ctx, report, show)
    if given["scale"] is not None:
        raise UsageError("'--scale' is for 'merge'")
    if len(files) != 2:
        raise UsageError(f"'extract' takes two files, the base first, and not {len(files)}")
    if given["rank"] is None:
        raise UsageError("'extract' needs '--rank N'", hint="16 to 64 is usual")
    report = verb.extract_lora(
        files[0],
        files[1],
        output_of(ctx),
        rank=given["rank"],
        selection=selection_of(ctx),
        at=given["at"],
        dtype=given["dtype"],
        fan_in_fan_out=given["fan_in_fan_out"],
    )
    return finish(ctx, report, show)
