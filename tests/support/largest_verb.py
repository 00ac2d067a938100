"""A toy verb: the tensor with the most elements. One file and one registration."""

from __future__ import annotations

import click

import ckpt_surgery as ckpt
from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import input_argument, source_of
from ckpt_surgery.errors import CkptError


@click.command("largest", cls=Command)
@input_argument
@click.pass_context
def largest(ctx: click.Context, /, **_: object) -> int:
    """Name the tensor with the most elements."""
    with ckpt.read(source_of(ctx)) as checkpoint:
        sizes = {name: tensor.numel for name, tensor in checkpoint.tensors}
    if not sizes:
        raise CkptError("there is no tensor", hint="'ckpt inspect' shows what there is")
    click.echo(max(sizes, key=sizes.__getitem__))
    return 0
