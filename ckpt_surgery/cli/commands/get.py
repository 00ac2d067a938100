"""``ckpt get``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command, color_option, no_color_option, traceback_option
from ckpt_surgery.cli.options import pager_option
from ckpt_surgery.cli.types import CheckpointFile, EntryPath

if TYPE_CHECKING:
    from ckpt_surgery.render.values import Form


@click.command(cls=Command)
@click.argument("file", type=CheckpointFile())
@click.argument("path", required=False, type=EntryPath(), metavar="[PATH]")
@click.option("--toml", is_flag=True, help="Print it as TOML, as 'ckpt set' takes it.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@pager_option
@color_option
@no_color_option
@traceback_option
@click.pass_context
def get(ctx: click.Context, /, path: str | None, toml: bool, as_json: bool, **_: Any) -> int:
    r"""Print a plain value of a checkpoint.

    PATH joins keys with slashes: into dictionaries, lists (by number), and attributes of objects.
    A text is printed as it is, a number as TOML has it, a list or a dictionary as JSON. Without
    PATH every text, number, truth value and null beside the weights is listed, with its path.

    \b
    Examples:
      ckpt get train.pth epoch
      ckpt get train.pth optimizer/param_groups/0/lr
      ckpt get train.pth args --json | jq .batch_size
      ckpt set b.pth epoch="$(ckpt get --toml a.pth epoch)" -o c.pth
      ckpt get train.pth
    """
    from ckpt_surgery.cli.options import source_of
    from ckpt_surgery.errors import UsageError
    from ckpt_surgery.ops.values import get_value, list_values
    from ckpt_surgery.render.values import all_lines, value_line

    if toml and as_json:
        raise UsageError("'--toml' and '--json' contradict each other")
    form: Form = "toml" if toml else "json" if as_json else "plain"
    source = source_of(ctx)
    if path is not None:
        click.echo(value_line(get_value(source, path), form))
        return 0
    text = "".join(f"{line}\n" for line in all_lines(list_values(source), form))
    if sys.stdout.isatty() and not ctx.params["no_pager"]:
        import shutil

        from ckpt_surgery.render.pager import page

        page(text, sys.stdout, lines=shutil.get_terminal_size().lines)
    else:
        click.echo(text, nl=False)
    return 0
