"""``ckpt consolidate``."""

from __future__ import annotations

from typing import Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import at_option, new_file_options, output_of, report_options
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.types import CheckpointFile
from ckpt_surgery.render.consolidating import show


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=CheckpointFile(), metavar="DIR|FILE...")
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="GLOB=AXIS",
    help="Join the tensors whose names match GLOB along AXIS ('**.wq.weight=0'); 'copies' says "
    "that every rank has all of them, 'first' takes the first rank's. Repeatable.",
)
@click.option("--state-dict-only", is_flag=True, help="Write the state dict alone.")
@at_option
@new_file_options
@report_options
@click.pass_context
def consolidate(
    ctx: click.Context, /, files: tuple[str, ...], axes: tuple[str, ...], **_: Any
) -> int:
    r"""Put the files of ranks together.

    DIR holds what each rank of a training run saved, or the FILEs of all ranks are named.
    Understood are DTensors and ShardedTensors (FSDP, tensor parallelism), which know their places,
    flat parameters of fairscale, LLaMA's consolidated.NN.pth, tensor parallelism of Megatron-LM,
    and ZeRO checkpoints of DeepSpeed, of which the float32 weights are taken. How other tensors are
    split is never guessed: --axis says it.

    \b
    Examples:
      ckpt consolidate DIR -o model.safetensors
      ckpt consolidate rank*.pt -o model.pth
      ckpt consolidate rank*.pt --state-dict-only -o weights.safetensors
      ckpt consolidate global_step100 -o model.safetensors --max-shard-size 5GB \
        --format safetensors-index
      ckpt consolidate tp --axis '**.weight=0' --axis '**norm*.*=copies' -o m.pth
    """
    import ckpt_surgery.ops.consolidate as verb

    given = ctx.params
    report = verb.consolidate(
        files,
        output_of(ctx),
        axes=axes,
        state_dict_only=given["state_dict_only"],
        at=given["at"],
    )
    return finish(ctx, report, show)
