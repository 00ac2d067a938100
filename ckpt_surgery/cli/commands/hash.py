"""``ckpt hash``."""

from __future__ import annotations

import sys
from typing import Any

import click

import ckpt_surgery.ops.hash as verb
from ckpt_surgery.cli.base import Command, color_of
from ckpt_surgery.cli.inputs import files_argument, jsonl_option, sources_of
from ckpt_surgery.cli.options import at_option, read_text, report_options
from ckpt_surgery.cli.output import say_failures
from ckpt_surgery.cli.types import InputFile
from ckpt_surgery.errors import UsageError
from ckpt_surgery.render.hashing import write_checked, write_digests
from ckpt_surgery.render.plain import write_json, write_jsonl
from ckpt_surgery.render.progress import progress_bar
from ckpt_surgery.reports.hashing import CheckReport, HashReport


@click.command("hash", cls=Command)
@files_argument
@at_option
@click.option("--per-tensor", is_flag=True, help="The digest of every tensor, one a line.")
@click.option("--files", "whole", is_flag=True, help="SHA-256 of whole files, as sha256sum has it.")
@click.option(
    "--check",
    metavar="LIST",
    type=InputFile(),
    help="Compare with the digests in LIST, which this command printed.",
)
@click.option(
    "-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads (default: all)."
)
@jsonl_option
@report_options
@click.pass_context
def hash_(ctx: click.Context, /, check: str | None, **_: Any) -> int:
    r"""Say what a model is by one digest.

    The digest depends on the names, shapes, element types and elements of its tensors and on
    nothing else: the same weights in another container, order, compression or sharding have the
    same. docs/hash.md defines it. A file with several state dicts has one digest for each.

    \b
    Examples:
      ckpt hash resnet34.pth resnet34.safetensors
      ckpt hash checkpoints/ > DIGESTS
      ckpt hash --check DIGESTS
      ckpt hash --per-tensor train.pth --at state_dict
      ckpt hash --files *.pth | sha256sum -c
    """
    report = _compare(ctx, check) if check is not None else _compute(ctx)
    say_failures(ctx, report.failures)
    if ctx.params["quiet"] or sys.stdout is None:
        return report.exit_code
    if ctx.params["as_json"]:
        write_json(report, sys.stdout)
    elif ctx.params["jsonl"] and isinstance(report, HashReport):
        for each in report.each():
            write_jsonl(each, sys.stdout)
    elif ctx.params["jsonl"]:
        write_jsonl(report, sys.stdout)
    elif isinstance(report, CheckReport):
        write_checked(report, sys.stdout)
    else:
        write_digests(report, sys.stdout)
    return report.exit_code


def _compute(ctx: click.Context) -> HashReport:
    given = ctx.params
    return verb.digest(
        sources_of(ctx),
        at=given["at"],
        per_tensor=given["per_tensor"],
        files=given["whole"],
        threads=given["threads"],
        progress=None if given["quiet"] else progress_bar(color=color_of(ctx)),
    )


def _compare(ctx: click.Context, check: str) -> CheckReport:
    given = ctx.params
    if given["files"] or given["at"] or given["per_tensor"] or given["whole"]:
        raise UsageError("'--check' takes files and state dicts from the list, and no others")
    from ckpt_surgery.ops.digest_lists import check_digests

    return check_digests(
        read_text(check, "--check"),
        list_name=check,
        threads=given["threads"],
        progress=None if given["quiet"] else progress_bar(color=color_of(ctx)),
    )
