"""``ckpt convert``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.inputs import files_argument, many_outputs_options, takes_many
from ckpt_surgery.cli.options import (
    at_option,
    hash_name_option,
    output_of,
    output_options,
    report_options,
    source_of,
)
from ckpt_surgery.cli.output import finish_edit
from ckpt_surgery.cli.types import KeyName
from ckpt_surgery.errors import UsageError

if TYPE_CHECKING:
    from ckpt_surgery.ops.convert import ConvertRequest


@click.command(cls=Command)
@files_argument
@click.option(
    "--state-dict-only",
    is_flag=True,
    help="Write the state dict alone, without what lies beside it.",
)
@click.option(
    "--tensors-only",
    is_flag=True,
    help="Write the tensors of the state dict and nothing else, each rebuilt.",
)
@at_option
@click.option(
    "--dtype",
    multiple=True,
    metavar="TYPE",
    type=KeyName(),
    help="Cast floating-point tensors to TYPE (bf16, half, float8_e4m3fn), or with SELECTION=TYPE "
    "those of a name, prefix or glob: 'head.**=float32'. Repeatable.",
)
@click.option(
    "--keep-norms/--no-keep-norms",
    default=True,
    show_default=True,
    help="Leave norm layers and running statistics in float32 where --dtype TYPE has fewer bits.",
)
@click.option(
    "--max-loss",
    metavar="SHARE",
    type=float,
    help="Refuse a cast that changes a number by more than SHARE of it: 0.004. A number that "
    "becomes zero changes by 1.",
)
@click.option(
    "--attributes",
    multiple=True,
    metavar="GLOB",
    help="Take tensors that are attributes of a TorchScript archive's modules into its state dict: "
    "'**.running_*', or '**' for all. Repeatable.",
)
@click.option(
    "--legacy", is_flag=True, help="Write the format of torch before 1.6: --format torch-legacy."
)
@hash_name_option
@output_options
@many_outputs_options
@report_options
@click.pass_context
def convert(ctx: click.Context, /, hash_name: bool, **_: Any) -> int:
    r"""Write any readable file in another format.

    The suffix of OUT says which, or --format: an archive as torch.save writes it since 1.6,
    safetensors, a directory of shards of either with an index, or one of
    torch.distributed.checkpoint (dcp). A pickled model becomes its state dict; its class need not
    be importable, and none of its code runs. With --state-dict-only a state dict is written alone;
    --at says which, or which ones --dtype is for.

    \b
    Examples:
      ckpt convert model.pkl -o weights.pth
      ckpt convert train.pth.tar --state-dict-only -o weights.pth
      ckpt convert untrusted.pth --tensors-only -o weights.pth
      ckpt convert train.pth --at state_dict_ema --state-dict-only --hash-name \
          -o resnet18.pth
      ckpt convert silero.safetensors -o silero.pth
      ckpt convert script2019.pt --attributes '**.running_*' -o weights.pth
      ckpt convert runs/ --output-template '{parent}/{stem}.safetensors'
      ckpt convert train.pth.tar --state-dict-only -o model.safetensors
      ckpt convert model.pth --dtype bf16 --dtype 'head.**=float32' -o half.pth
      ckpt convert model.pth --legacy -o for-torch-1.5.pth
      ckpt convert m.pth --format safetensors-index --max-shard-size 5GB -o DIR
      ckpt convert train.pth --format dcp -o DIR
      ckpt convert DIR -o train.pth
    """
    import ckpt_surgery.ops.convert as verb

    if takes_many(ctx):
        from ckpt_surgery.cli.many import edit_each

        request = request_of(ctx)
        return edit_each(ctx, lambda s, o: verb.convert(s, o, request), hash_name=hash_name)
    output = replace(output_of(ctx), hash_name=hash_name)
    if ctx.params["legacy"]:
        if output.format not in {None, "torch-legacy"}:
            raise UsageError(f"'--legacy' and '--format {output.format}' contradict each other")
        output = replace(output, format="torch-legacy")
    report = verb.convert(source_of(ctx), output, request_of(ctx))
    return finish_edit(ctx, report)


def request_of(ctx: click.Context) -> ConvertRequest:
    """Return what the line asks for."""
    given = ctx.params
    import ckpt_surgery.ops.convert as verb

    return verb.ConvertRequest(
        at=given["at"],
        state_dict_only=given["state_dict_only"],
        tensors_only=given["tensors_only"],
        dtypes=given["dtype"],
        keep_norms=given["keep_norms"],
        max_loss=given["max_loss"],
        attributes=given["attributes"],
    )
