"""``ckpt inspect``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

import ckpt_surgery.ops.inspect as verb
from ckpt_surgery.cli.base import Command, color_of
from ckpt_surgery.cli.inputs import files_argument, takes_many, threads_option
from ckpt_surgery.cli.options import (
    at_option,
    pager_option,
    report_options,
    selection_of,
    selection_options,
    source_of,
)
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.render.plain import write_csv, write_json, write_jsonl, write_keys
from ckpt_surgery.reports.inspection import InspectReport

if TYPE_CHECKING:
    from ckpt_surgery.fileio.sink import Progress
    from ckpt_surgery.writing.output import ProgressBar

_FORMS = {
    "tree": "--tree", "keys": "--keys", "as_json": "--json", "csv": "--csv", "jsonl": "--jsonl",
}  # fmt: skip
_TABLE_ONLY = {"index": "--index", "fold": "--fold"}


@click.command(
    cls=Command,
    headings={
        "What to show": (
            *(
                "keys",
                "csv",
                "jsonl",
                "tree",
                "depth",
                "index",
                "params_only",
                "sort",
                "fold",
                "stats",
            ),
        ),
    },
)
@files_argument
@selection_options
@click.option("--keys", is_flag=True, help="Only the names, one a line, for pipes.")
@click.option("--csv", is_flag=True, help="Comma-separated values.")
@click.option("--jsonl", is_flag=True, help="One JSON document a line, for each file.")
@click.option("--tree", is_flag=True, help="A tree of modules with sums.")
@click.option(
    "--depth", type=click.IntRange(min=1), metavar="N", help="Levels of the tree to show."
)
@click.option(
    "--index", is_flag=True, help="Number the entries of the state dict, and the parameters."
)
@click.option("--params-only", is_flag=True, help="Leave out buffers, as named_parameters() does.")
@click.option(
    "--sort",
    type=click.Choice(["name", "size", "file"]),
    default="file",
    show_default=True,
    help="Order of the entries; 'size' puts the largest first.",
)
@click.option("--fold", is_flag=True, help="Repeated layers in one row: layers.{0..31}.weight.")
@click.option(
    "--stats", is_flag=True, help="Minimum, maximum, mean, ... of every tensor (imports torch)."
)
@threads_option
@at_option
@pager_option
@report_options
@click.pass_context
def inspect(ctx: click.Context, /, params_only: bool, stats: bool, **_: Any) -> int:
    r"""Show what a checkpoint holds.

    Of one FILE the tensors in the order of the file, what lies beside them, ties, and bytes that
    no tensor uses. Nothing in FILE is run, and without --stats no tensor is read. --pattern,
    --prefix, --glob and --keys-from, each as often as wanted, choose the tensors to show. Of
    several files, or of a directory of checkpoints, one line each; one that cannot be read does
    not stop the others.

    \b
    Examples:
      ckpt inspect alexnet.pth
      ckpt inspect train.pth.tar --at state_dict --index
      ckpt inspect vit.pth --tree --depth 2
      ckpt inspect model.pth --prefix layer4 --stats
      ckpt inspect model.pth --params-only --keys > names.txt
      ckpt inspect runs/ *.pth --jsonl
    """
    _check_forms(ctx)
    if takes_many(ctx):
        return _many(ctx, params_only=params_only, stats=stats)
    bar = _progress(ctx) if stats else None
    report = _inspected(ctx, source_of(ctx), params_only=params_only, stats=stats, bar=bar)
    if not ctx.params["quiet"] and sys.stdout is not None:
        _print(ctx, report)
    return report.exit_code


def _inspected(
    ctx: click.Context,
    source: PathLike | Source,
    *,
    params_only: bool,
    stats: bool,
    bar: ProgressBar | None = None,
) -> InspectReport:
    return verb.inspect(
        source,
        selection_of(ctx),
        at=ctx.params["at"],
        params_only=params_only,
        stats=stats,
        recognise=not (ctx.params["keys"] or ctx.params["csv"]),
        look_beside=not (ctx.params["keys"] or ctx.params["csv"]),
        progress=bar,
    )


def _many(ctx: click.Context, *, params_only: bool, stats: bool) -> int:
    """Show several files, one line each; return the exit code, 2 if one could not be read."""
    given = ctx.params
    for name, option in {**_FORMS, **_TABLE_ONLY}.items():
        if given[name] and name != "jsonl":
            raise UsageError(
                f"'{option}' is for one file", hint="--jsonl prints a document for each of several"
            )
    from ckpt_surgery.cli.many import run_each
    from ckpt_surgery.render.inspection import show_many

    def work(source: PathLike | Source, advance: Progress) -> InspectReport:
        bar = (lambda _: nullcontext(advance)) if stats else None
        return _inspected(ctx, source, params_only=params_only, stats=stats, bar=bar)

    return run_each(ctx, work, show_many)


def _progress(ctx: click.Context) -> ProgressBar | None:
    from ckpt_surgery.render.progress import progress_bar

    return None if ctx.params["quiet"] else progress_bar(color=color_of(ctx))


def _check_forms(ctx: click.Context) -> None:
    given = ctx.params
    forms = [option for name, option in _FORMS.items() if given[name]]
    table = [option for name, option in _TABLE_ONLY.items() if given[name]]
    for options in (forms, [*forms[:1], *table]):
        if len(options) > 1:
            raise UsageError(f"'{options[0]}' and '{options[1]}' contradict each other")
    if given["fold"] and given["stats"]:
        raise UsageError("'--fold' and '--stats' contradict each other")
    if given["depth"] is not None and not given["tree"]:
        raise UsageError("'--depth' is about the tree", hint="add --tree")


def _print(ctx: click.Context, report: InspectReport) -> None:
    given = ctx.params
    if given["sort"] != "file":
        from ckpt_surgery.render.listing import in_sequence

        report = in_sequence(report, given["sort"])
    if given["keys"]:
        write_keys(report, sys.stdout)
    elif given["as_json"]:
        write_json(report, sys.stdout)
    elif given["jsonl"]:
        write_jsonl(report, sys.stdout)
    elif given["csv"]:
        write_csv(report, sys.stdout)
    else:
        from ckpt_surgery.render.inspection import View, show
        from ckpt_surgery.render.screen import paged

        view = View(given["index"], given["fold"], given["tree"], given["depth"])
        with paged(sys.stdout, color=color_of(ctx), pager=not given["no_pager"]) as screen:
            show(report, view, screen)
