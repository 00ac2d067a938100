"""``ckpt strip``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.inputs import many_outputs_options, split_names, takes_many
from ckpt_surgery.cli.options import (
    at_option,
    changes_all,
    hash_name_option,
    input_argument,
    names_argument,
    optimizer_option,
    output_of,
    output_options,
    report_options,
    selection_of,
    selection_options,
    source_of,
)
from ckpt_surgery.cli.output import finish_edit
from ckpt_surgery.cli.types import EntryPath

if TYPE_CHECKING:
    from ckpt_surgery.ops.strip import StripRequest


@click.command(
    cls=Command,
    headings={
        "What else": (
            *("entry", "training_state", "ema", "state_dict_only", "unwrap", "compact"),
            *("break_views", "optimizer"),
        )
    },
)
@input_argument
@names_argument
@selection_options
@click.option(
    "--entry",
    multiple=True,
    metavar="PATH",
    type=EntryPath(),
    help="What lies at PATH beside the weights, or a glob of paths: 'args', 'hyper_parameters/**'. "
    "With --keep all others go. Repeatable.",
)
@click.option(
    "--training-state",
    is_flag=True,
    help="Remove optimizers, schedulers, scalers and the like, and moving averages.",
)
@click.option(
    "--ema",
    is_flag=True,
    help="With --training-state: put the moving average in the model's place.",
)
@click.option(
    "--state-dict-only",
    is_flag=True,
    help="Write the state dict alone, without what lies beside it.",
)
@click.option(
    "--unwrap",
    is_flag=True,
    help="Take off the dictionary around everything, if it has one entry.",
)
@hash_name_option
@click.option(
    "--compact",
    is_flag=True,
    help="Drop bytes that no tensor uses; true ties stay ties.",
)
@click.option(
    "--break-views",
    is_flag=True,
    help="With --compact: give each of several overlapping tensors its own bytes, as clone() does.",
)
@at_option
@optimizer_option
@output_options
@many_outputs_options
@report_options
@click.pass_context
def strip(ctx: click.Context, /, hash_name: bool, **_: Any) -> int:
    r"""Remove entries from a checkpoint.

    The entries called NAME go, and those that any rule matches, from every state dict in FILE;
    everything else stays as it is. Rules are --pattern, --prefix, --glob, --name and --keys-from,
    each as often as wanted; one that matches nothing is an error. An optimizer loses the state of
    removed parameters, so that it still fits the model. --entry is for what lies beside the
    weights.

    \b
    Examples:
      ckpt strip resnet34.pth --pattern fc -o backbone.pth
      ckpt strip resnet34.pth fc.weight fc.bias -o backbone.pth
      ckpt strip vgg16.pth --keep --prefix features -o features.pth
      ckpt strip train.pth.tar --training-state --compact --in-place
      ckpt strip train.pth --training-state --ema --state-dict-only -o net.pth
      ckpt strip model.pth --glob '**.num_batches_tracked' --dry-run
      ckpt strip train.pth --entry args --entry 'hyper_parameters/**' -o lean.pth
      ckpt strip wrapped.pth --unwrap -o model.pth
      ckpt strip runs/ --training-state --output-template 'lean/{name}' -j 4
    """
    import ckpt_surgery.ops.strip as verb

    split_names(ctx)
    if takes_many(ctx):
        from ckpt_surgery.cli.many import edit_each

        request = request_of(ctx)
        return edit_each(ctx, lambda s, o: verb.strip(s, o, request), hash_name=hash_name)
    output = replace(output_of(ctx), hash_name=hash_name)
    report = verb.strip(source_of(ctx), output, request_of(ctx))
    return finish_edit(ctx, report)


def request_of(ctx: click.Context) -> StripRequest:
    """Return what the line asks for. Raises `UsageError` for a rule that cannot work."""
    import ckpt_surgery.ops.strip as verb

    given = ctx.params
    entries = given["entry"]
    return verb.StripRequest(
        selection_of(ctx, keeps_entries=bool(entries)),
        at=given["at"],
        training_state=given["training_state"],
        ema=given["ema"],
        compact=given["compact"],
        break_views=given["break_views"],
        optimizer=given["optimizer"],
        state_dict_only=given["state_dict_only"],
        entries=entries,
        keep_entries=bool(entries) and given["keep"],
        unwrap=given["unwrap"],
        allow_nothing=changes_all(ctx),
    )
