"""``ckpt edit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt_surgery.cli.base import Command, in_order
from ckpt_surgery.cli.inputs import files_argument, many_outputs_options, takes_many
from ckpt_surgery.cli.options import (
    all_of,
    at_option,
    changes_all,
    output_of,
    output_options,
    report_options,
    source_of,
)
from ckpt_surgery.cli.output import finish_edit
from ckpt_surgery.cli.types import KeyName

if TYPE_CHECKING:
    from ckpt_surgery.ops.edit import EditRequest

# Option: metavar, help. They are carried out in the order of the line.
_RULES: Final[dict[str, tuple[str, str]]] = {
    "cast": ("SEL=TYPE", "Another element type, rounded once: float16, bfloat16, float32, …"),
    "transpose": ("SEL[=A,B]", "Exchange two axes: 0 and 1, or those given."),
    "permute": ("SEL=AXES", "Put the axes into this order: 4,0,1,2,3."),
    "reshape": ("SEL=SHAPE", "Another shape for the same elements; one size may be -1."),
    "squeeze": ("SEL=DIM", "Take away an axis of size 1."),
    "unsqueeze": ("SEL=DIM", "Put in an axis of size 1."),
    "flip": ("SEL=DIM", "Turn an axis round."),
    "take": ("SEL=DIM:I,J,…", "The slices at these indices, in this order: 1:2,1,0."),
    "slice": ("SEL=DIM:A:B", "The slices from A to B, as Python counts."),
    "pad": ("SEL=DIM:N[:V]", "Fill an axis up to N at its end, with V or zeros."),
    "repeat": ("SEL=DIM:N[:mean]", "An axis N times over; 'mean' divides by N (inflation)."),
    "scale": ("SEL=F", "Multiply by F, rounded once."),
    "add": ("SEL=F", "Add F, rounded once."),
    "fill": ("SEL=HOW", "Other numbers: zeros, ones, constant:V, normal:STD[:SEED] (or --seed)."),
    "split": ("NAME=A,B,…", "Split into the parts A, B, …; then :heads=N, :sizes=…, :dim=D."),
    "concat": ("NAMES=A", "Join to A what 'a.{q,k}.w' or 'x,y' name; then :heads=N, :dim=D."),
    "copy": ("OLD=NEW", "The same entry a second time, with bytes of its own."),
    "tie": ("NAME=TO", "Let NAME be the tensor that TO is."),
    "untie": ("SEL", "Give entries bytes that no other shares."),
    "clone": ("SEL", "The same for views of more: as clone(), with its own elements alone."),
    "layers": ("P=0-7,4-11", "Stack the layers below P anew: left out, moved, or repeated."),
    "renumber": ("LAYERS.*", "Close the gaps in the numbers at the star."),
    "fold_batch_norm": (
        "CONV=NORM",
        "Put a batch norm into the layer before it: conv1=bn1; then :eps=E (1e-5), :dim=1.",
    ),
    "fold_weight_norm": ("SEL", "Plain weights for magnitudes and directions, old and new style."),
    "fold_spectral_norm": ("SEL", "Plain weights for spectrally normed ones; then :dim=D."),
    "fold_repvgg": ("SEL", "One kernel for the branches of RepVGG's and MobileOne's blocks."),
}


def _rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return all_of(
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                name,
                multiple=True,
                metavar=form,
                type=KeyName(),
                help=text,
            )
            for name, (form, text) in _RULES.items()
        )
    )(command)


@click.command(cls=Command, headings={"Rules, in the order given": tuple(_RULES)})
@files_argument
@_rule_options
@click.option("--seed", type=int, default=0, help="What --fill normal draws from (default: 0).")
@click.option(
    "--optimizer",
    type=click.Choice(["auto", "reset", "keep", "drop"]),
    default="auto",
    show_default=True,
    help="Moments follow where elements only move; where numbers change: refuse, let their state "
    "begin anew, leave it, or drop the optimizer.",
)
@at_option
@output_options
@many_outputs_options
@report_options
@click.pass_context
def edit(ctx: click.Context, /, **_: Any) -> int:
    r"""Edit what tensors hold.

    The rules apply one after the other, in the order given, to every state dict in FILE. SEL is a
    name, a prefix, a glob with * and **, or says which: name:, prefix:, glob:, pattern:. What a
    star took stands for the star in a new name; a new name without one takes the place of the
    last segments. A rule that matches nothing, or does not fit a shape, is an error.

    \b
    Examples:
      ckpt edit gpt2.pth --transpose 'h.*.attn.c_attn.weight' -o linear.pth
      ckpt edit vit.pth --split 'blocks.*.qkv.weight=q.weight,k.weight,v.weight' \
          -o split.pth
      ckpt edit r50.pth --take conv1.weight=1:2,1,0 -o rgb.pth
      ckpt edit r50.pth --unsqueeze '**.conv?.weight=2' \
          --repeat '**.conv?.weight=2:3:mean' -o inflated.pth
      ckpt edit r18.pth --fold-batch-norm conv1=bn1 \
          --fold-batch-norm '**.conv*=**.bn*' \
          --fold-batch-norm '**.downsample.0=1' -o folded.pth
      ckpt edit lm.pth --copy embed.weight=lm_head.weight -o untied.pth
    """
    from ckpt_surgery.ops.edit import edit as run

    request = request_of(ctx)
    if takes_many(ctx):
        from ckpt_surgery.cli.many import edit_each

        return edit_each(ctx, lambda source, output: run(source, output, request))
    return finish_edit(ctx, run(source_of(ctx), output_of(ctx), request))


def request_of(ctx: click.Context) -> EditRequest:
    """Return what the line asks for. Raises `UsageError` for a rule that cannot work."""
    from ckpt_surgery.edits.value_rules import ValueRule
    from ckpt_surgery.ops.edit import EditRequest

    given = ctx.params
    rules = [
        ValueRule(name.replace("_", "-"), text, given["seed"])
        for name, text in in_order(ctx, _RULES)
    ]
    return EditRequest(
        rules, at=given["at"], optimizer=given["optimizer"], allow_nothing=changes_all(ctx)
    )
