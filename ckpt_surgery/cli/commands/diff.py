"""``ckpt diff``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from ckpt_surgery.cli.base import Command, color_of
from ckpt_surgery.cli.options import at_option, pager_option, read_text, report_options
from ckpt_surgery.cli.types import CheckpointFile, InputFile
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import FileSource, Source
from ckpt_surgery.names.rewrite import parse_name_map
from ckpt_surgery.render.plain import write_json
from ckpt_surgery.render.progress import progress_bar
from ckpt_surgery.render.screen import paged
from ckpt_surgery.reports.difference import DiffReport

_FORMS = {"stat": "--stat", "names_only": "--names-only", "as_json": "--json"}


@click.command(
    cls=Command,
    headings={
        "What to compare": ("values", "rtol", "atol", "structure", "map_file"),
        "Form": ("stat", "names_only", "fold", "textconv"),
    },
)
@click.argument("files", nargs=-1, type=CheckpointFile(), metavar="A B")
@at_option
@click.option("--values", is_flag=True, help="Say how far numbers are apart (imports torch).")
@click.option(
    "--rtol",
    type=float,
    default=0.0,
    metavar="R",
    help="Numbers within R times the larger one are close.",
)
@click.option(
    "--atol",
    type=float,
    default=0.0,
    metavar="D",
    help="Numbers within D are close, which is no difference.",
)
@click.option("--structure", is_flag=True, help="Names, shapes and types only; read no tensor.")
@click.option(
    "--map",
    "map_file",
    metavar="MAP",
    type=InputFile(),
    help="Names of A and of B, as rename takes them: TOML or JSON.",
)
@click.option("--stat", is_flag=True, help="Only how many tensors differ in what.")
@click.option("--names-only", is_flag=True, help="Only the names of what differs, one a line.")
@click.option("--fold", is_flag=True, help="Repeated layers in one line: layers.{0..31}.weight.")
@click.option("--textconv", is_flag=True, help="Print one FILE as text, for git diff.")
@pager_option
@report_options
@click.pass_context
def diff(ctx: click.Context, /, textconv: bool, **_: Any) -> int:
    r"""Say what differs between two checkpoints.

    Tensors by name, whatever container, wrapper or prefix they are in: added, removed, renamed,
    other in shape, type or values; ties, metadata, and what lies beside the weights. Checksums
    that are equal prove equality without reading. Exit code 0 if nothing differs, 1 if something
    does, 2 for trouble.

    \b
    Examples:
      ckpt diff before.pth after.pth
      ckpt diff pretrained.pth finetuned.safetensors --values --fold
      ckpt diff a.pth b.pth --rtol 1e-5 --values --stat
      ckpt diff a.pth b.pth --map names.toml --names-only
      git config diff.ckpt.textconv 'ckpt diff --textconv'
    """
    given = ctx.params
    if textconv:
        return _print_text(ctx)
    if len(given["files"]) != 2:
        raise UsageError("two files are compared", hint=f"see '{ctx.command_path} --help'")
    _check_forms(given)
    report = _compare(ctx)
    if not given["quiet"] and sys.stdout is not None:
        _print(ctx, report)
    return report.exit_code


def _compare(ctx: click.Context) -> DiffReport:
    from ckpt_surgery.ops.diff import DiffRequest
    from ckpt_surgery.ops.diff import diff as run

    given = ctx.params
    request = DiffRequest(
        structure=given["structure"],
        values=given["values"],
        rtol=given["rtol"],
        atol=given["atol"],
        renames=_renames(given["map_file"]),
        at=given["at"],
    )
    a, b = _opened(given["files"])
    bar = None if given["quiet"] else progress_bar(color=color_of(ctx))
    return run(a, b, request, progress=bar)


def _renames(path: str | None) -> Mapping[str, str]:
    return {} if path is None else parse_name_map(read_text(path, "--map"), path).names


def _opened(files: tuple[str, ...]) -> list[PathLike | Source]:
    if files.count("-") > 1:
        raise UsageError("standard input is named twice")
    if "-" in files and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("standard input is a terminal or closed")
    return [FileSource.from_stream(sys.stdin.buffer) if name == "-" else name for name in files]


def _check_forms(given: Mapping[str, Any]) -> None:
    forms = [option for name, option in _FORMS.items() if given[name]]
    if len(forms) > 1:
        raise UsageError(f"'{forms[0]}' and '{forms[1]}' contradict each other")
    if given["fold"] and forms:
        raise UsageError(f"'--fold' and '{forms[0]}' contradict each other")


def _print(ctx: click.Context, report: DiffReport) -> None:
    from ckpt_surgery.render.difference import DiffView, show, write_names

    given = ctx.params
    if given["as_json"]:
        write_json(report, sys.stdout)
    elif given["names_only"]:
        write_names(report, sys.stdout)
    else:
        most = DiffView().most if sys.stdout.isatty() else None
        view = DiffView(stat=given["stat"], fold=given["fold"], most=most)
        with paged(sys.stdout, color=color_of(ctx), pager=not given["no_pager"]) as screen:
            show(report, view, screen)


def _print_text(ctx: click.Context) -> int:
    from ckpt_surgery.ops.textconv import text_lines
    from ckpt_surgery.render.text import visible

    files = ctx.params["files"]
    if len(files) != 1:
        raise UsageError("'--textconv' prints one file")
    for path, text in text_lines(_opened(files)[0]):
        sys.stdout.write(f"{visible(path)}: {visible(text)}\n")
    return 0
