"""``ckpt match``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command, color_of
from ckpt_surgery.cli.inputs import files_argument, many_options, takes_many
from ckpt_surgery.cli.options import (
    at_option,
    pager_option,
    report_options,
    source_of,
)
from ckpt_surgery.cli.target_options import target_of, target_options
from ckpt_surgery.render.plain import write_json, write_jsonl
from ckpt_surgery.render.screen import paged

if TYPE_CHECKING:
    from ckpt_surgery.matching.request import MatchRequest


@click.command(
    cls=Command,
    headings={"Target": ("model", "model_arg", "settings", "build", "like")},
)
@files_argument
@target_options
@at_option
@many_options
@pager_option
@report_options
@click.pass_context
def match(ctx: click.Context, /, **_: Any) -> int:
    r"""Say what load_state_dict would say.

    Missing, unexpected and mismatched names of FILE against a model or another checkpoint, in
    torch's words. The model is built without weights, and no tensor is read. Exit code 0 if FILE
    loads strictly, 1 if it does not.

    \b
    Examples:
      ckpt match resnet34.pth --model torchvision:resnet34
      ckpt match r.pth --model torchvision:resnet34 --set fc.out_features=5
      ckpt match r.pth --model my_project.models:build --model-arg depth=18
      ckpt match runs/ --model torchvision:resnet34 -j 4
      ckpt match train.pth --at state_dict --like init.pth --json
    """
    from ckpt_surgery.ops.match import match as run

    if takes_many(ctx):
        from ckpt_surgery.cli.many import run_each
        from ckpt_surgery.render.many import show_matches

        request = request_of(ctx)
        return run_each(ctx, lambda source, _: run(source, request), show_matches)
    report = run(source_of(ctx), request_of(ctx))
    if not ctx.params["quiet"] and sys.stdout is not None:
        if ctx.params["as_json"]:
            write_json(report, sys.stdout)
        elif ctx.params["jsonl"]:
            write_jsonl(report, sys.stdout)
        else:
            from ckpt_surgery.render.matching import show_match

            with paged(sys.stdout, color=color_of(ctx), pager=not ctx.params["no_pager"]) as screen:
                show_match(report, screen)
    return report.exit_code


def request_of(ctx: click.Context) -> MatchRequest:
    """Return what the line asks for. Raises `UsageError` for what cannot work."""
    from ckpt_surgery.matching.request import MatchRequest

    return MatchRequest(**target_of(ctx), at=ctx.params["at"])
