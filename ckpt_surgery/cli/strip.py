"""``ckpt strip``."""

from __future__ import annotations

from typing import Any

import click

from ckpt_surgery import ops
from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import (
    at_option,
    input_argument,
    output_of,
    output_options,
    report_options,
    selection_of,
    selection_options,
    source_of,
)
from ckpt_surgery.cli.output import finish_edit


@click.command(cls=Command)
@input_argument
@selection_options
@click.option(
    "--training-state",
    is_flag=True,
    help="Remove optimizers, schedulers, scalers and the like.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Drop bytes that no tensor uses; true ties stay ties.",
)
@at_option
@output_options
@report_options
@click.pass_context
def strip(ctx: click.Context, /, training_state: bool, compact: bool, **_: Any) -> int:
    r"""Remove entries from a checkpoint.

    The entries that any rule matches go, from every state dict in FILE; everything else stays as
    it is. A rule that matches nothing is an error.

    \b
    Examples:
      ckpt strip resnet34.pth --pattern fc -o backbone.pth
      ckpt strip vgg16.pth --keep --prefix features -o features.pth
      ckpt strip train.pth.tar --training-state --compact --in-place
      ckpt strip model.pth --glob '**.num_batches_tracked' --dry-run
    """
    output, selection = output_of(ctx), selection_of(ctx)
    report = ops.strip(
        source_of(ctx),
        output,
        selection,
        at=ctx.params["at"],
        training_state=training_state,
        compact=compact,
    )
    return finish_edit(ctx, report)
