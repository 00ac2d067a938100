"""``ckpt set``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import (
    changes_all,
    input_argument,
    output_of,
    output_options,
    report_options,
    source_of,
)
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.types import EntryPath
from ckpt_surgery.errors import UsageError

if TYPE_CHECKING:
    from ckpt_surgery.ops.values import SetRequest


@click.command(name="set", cls=Command, headings={"Values": ("delete", "like_type")})
@input_argument
@click.argument("values", nargs=-1, type=EntryPath(), metavar="[PATH=VALUE]...")
@click.option(
    "--delete",
    multiple=True,
    metavar="PATH",
    type=EntryPath(),
    help="Remove what lies at PATH: 'args', 'args/resume', '__metadata__/note'. Repeatable.",
)
@click.option(
    "--like-type",
    is_flag=True,
    help="Keep the type of the value before: int, float, tuple, a number of numpy.",
)
@output_options
@report_options
@click.pass_context
def set_(ctx: click.Context, /, **_: Any) -> int:
    r"""Set plain values beside the weights.

    PATH joins keys with slashes, as 'ckpt inspect' and 'ckpt get FILE' show them: into
    dictionaries, lists (by number), and attributes of objects such as a Namespace; its last part
    may be new. VALUE is TOML: 3 is an int, 3.0 a float, true, "text", [0.9, 0.99], { a = 1 }; a
    plain word is a text. '__metadata__/KEY' is a text of a safetensors file. What holds tensors is
    never replaced.

    \b
    Examples:
      ckpt set train.pth epoch=0 -o restart.pth
      ckpt set train.pth optimizer/param_groups/0/lr=1e-4 --in-place
      ckpt set train.pth args/data=/data/imagenet --delete args/resume -o t.pth
      ckpt set train.pth best=0.5 --like-type -o t.pth
      ckpt set m.safetensors __metadata__/license=mit --in-place
    """
    import ckpt_surgery.ops.values as verb
    from ckpt_surgery.render import values

    report = verb.set_values(source_of(ctx), output_of(ctx), request_of(ctx))
    given = ctx.params
    to_file = given["in_place"] or given["output"] not in {None, "-"}
    stream = sys.stdout if to_file or given["dry_run"] else sys.stderr
    return finish(ctx, report, values.show, stream)


def request_of(ctx: click.Context) -> SetRequest:
    """Return what the line asks for. Raises `UsageError` for what is no PATH=VALUE."""
    import ckpt_surgery.ops.values as verb

    pairs = []
    for text in ctx.params["values"]:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise UsageError(f"'{text}' is not of the form PATH=VALUE")
        pairs.append((path, verb.typed(path, value)))
    given = ctx.params
    return verb.SetRequest(pairs, given["delete"], given["like_type"], changes_all(ctx))
