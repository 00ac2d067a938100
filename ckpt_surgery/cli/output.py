"""Where a report is printed, and in which form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TextIO, TypeVar

import click

from ckpt_surgery.cli.base import color_of
from ckpt_surgery.cli.boundary import say_failure
from ckpt_surgery.cli.failing import report_stream
from ckpt_surgery.errors import ReadError, WriteError
from ckpt_surgery.render import edits
from ckpt_surgery.render.plain import to_json, write_json, write_jsonl
from ckpt_surgery.render.screen import Screen
from ckpt_surgery.reports import Failure, Report
from ckpt_surgery.reports.edits import EditReport

_Report = TypeVar("_Report", bound=Report)


def finish_edit(ctx: click.Context, report: EditReport) -> int:
    """Print and record the report of an edit; its exit code."""
    return finish(ctx, report, edits.show)


def finish(
    ctx: click.Context,
    report: _Report,
    show: Callable[[_Report, Screen], None],
    stream: TextIO | None = None,
) -> int:
    """Print and record a report, for people by `show`; its exit code.

    It goes to `stream`, by default standard output, or standard error if standard output carries
    the checkpoint.
    """
    given = ctx.params
    if given["record"] is not None:
        _record(ctx, report, given["record"], force=given["force"])
    return print_report(ctx, report, show, stream)


def print_report(
    ctx: click.Context,
    report: _Report,
    show: Callable[[_Report, Screen], None],
    stream: TextIO | None = None,
) -> int:
    """Print a report, for people by `show`; its exit code."""
    given = ctx.params
    stream = stream or report_stream(given)
    if given["quiet"] or stream is None:
        return report.exit_code
    if given["as_json"]:
        write_json(report, stream)
    elif given.get("jsonl"):
        write_jsonl(report, stream)
    else:
        show(report, Screen(stream, color=color_of(ctx)))
    return report.exit_code


def _record(ctx: click.Context, report: Report, path: str, *, force: bool) -> None:
    from ckpt_surgery.cli.digests import recorded
    from ckpt_surgery.fileio.unchanged import write_unless_same

    try:
        data = to_json(report.to_dict() | recorded(ctx, report)).encode() + b"\n"
        write_unless_same(path, data, force=force, if_changed=ctx.params["if_changed"])
    except WriteError as error:
        error.hint = "the checkpoint itself was written before"
        raise


def say_failures(ctx: click.Context, failures: Iterable[Failure]) -> None:
    """Say on standard error which inputs could not be read, and why."""
    for each in failures:
        error = ReadError(each.message, path=each.file, entry=each.entry)
        say_failure(str(error), each.hint, color_of(ctx))
