"""``ckpt verify``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

import ckpt_surgery.ops.verify as verb
from ckpt_surgery.cli.base import Command, color_of
from ckpt_surgery.cli.inputs import files_argument, jsonl_option, sources_of
from ckpt_surgery.cli.options import pager_option, read_text, report_options
from ckpt_surgery.cli.output import say_failures
from ckpt_surgery.cli.types import InputFile, OutputFile
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.ops.digest_lists import DigestList
from ckpt_surgery.ops.proofs import Proofs
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.ops.verify_digests import is_digest
from ckpt_surgery.ops.verify_policy import parse_policy
from ckpt_surgery.render.plain import to_json, write_json, write_jsonl
from ckpt_surgery.render.progress import progress_bar
from ckpt_surgery.render.screen import paged
from ckpt_surgery.reports.verification import SalvageReport, VerifyReport

_FORMS: Final = {"json": "as_json"}  # options whose parameter has another name


@click.command(
    cls=Command,
    headings={
        "What to check": ("values", "require_checksums", "strict", "against_hash", "policy"),
        "Signatures": ("signature", "statement", "public_key"),
        "Salvage": ("salvage", "force"),
    },
)
@files_argument
@click.option(
    "--values",
    is_flag=True,
    help="Look for NaN, infinity, constant and subnormal numbers (imports torch).",
)
@click.option("--require-checksums", is_flag=True, help="Bytes without a checksum are an error.")
@click.option("--strict", is_flag=True, help="Warnings are errors.")
@click.option(
    "--against-hash",
    multiple=True,
    metavar="DIGEST|LIST",
    help="The file, or a model in it, has this digest of 'ckpt hash' or sha256sum; or all that a "
    "list of them says of it. Repeatable.",
)
@click.option(
    "--policy",
    metavar="POLICY",
    type=InputFile(),
    help="What is allowed, as TOML: globals, types, sizes, names.",
)
@click.option(
    "--signature",
    metavar="SIG",
    type=InputFile(),
    help="FILE has this signature of 'ckpt sign' or model-signing.",
)
@click.option(
    "--statement",
    metavar="INTOTO",
    type=InputFile(),
    help="FILE is the output of the edit in this signed record of 'ckpt sign --record'.",
)
@click.option(
    "--public-key",
    metavar="PEM",
    type=InputFile(),
    help="The key of which the signature is to be.",
)
@click.option(
    "--salvage",
    metavar="OUT",
    type=OutputFile(),
    help="Write what is whole of a truncated or damaged FILE to OUT.",
)
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@click.option(
    "-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads (default: all)."
)
@click.option("--sarif", is_flag=True, help="Report as SARIF 2.1.0, for hosts of code.")
@jsonl_option
@pager_option
@report_options
@click.pass_context
def verify(ctx: click.Context, /, **_: Any) -> int:
    r"""Say whether a file is whole and safe to load.

    Every checksum is compared with the bytes, the structure with what torch writes, and the names
    in pickles with what is known to do harm. Nothing in FILE is run. Exit code 0 if nothing is
    wrong, 1 if something is, 2 if a file cannot be checked.

    \b
    Examples:
      ckpt verify resnet34.pth
      ckpt verify checkpoints/ --values --sarif > ckpt.sarif
      ckpt verify model.pth --policy policy.toml --strict
      ckpt verify model.pth --against-hash "$DIGEST"
      ckpt verify checkpoints/ --against-hash DIGESTS
      ckpt verify model.pth --signature model.pth.sig --public-key key.pub
      ckpt verify cut.pth --salvage rest.pth
    """
    sources = sources_of(ctx)
    given = ctx.params
    forms = [f"--{name}" for name in ("json", "jsonl", "sarif") if given[_FORMS.get(name, name)]]
    if len(forms) > 1:
        raise UsageError(f"'{forms[0]}' and '{forms[1]}' contradict each other")
    if given["force"] and given["salvage"] is None:
        raise UsageError("'--force' is about the output of '--salvage'")
    if given["salvage"] is not None and (len(sources) > 1 or not isinstance(sources[0], str)):
        raise UsageError("'--salvage' takes one FILE that is named")
    _require_key(given, sources)
    progress = None if given["quiet"] else progress_bar(color=color_of(ctx))
    report = verb.verify(sources, _checks(ctx), threads=given["threads"], progress=progress)
    if given["salvage"] is not None and not report.failures:
        report = replace(report, salvaged=_salvage(ctx, sources[0]))
    say_failures(ctx, report.failures)
    if not given["quiet"] and sys.stdout is not None:
        _print(ctx, report)
    return report.exit_code


def _checks(ctx: click.Context) -> Checks:
    given = ctx.params
    policy = given["policy"]
    against = given["against_hash"]
    return Checks(
        values=given["values"],
        require_checksums=given["require_checksums"],
        strict=given["strict"],
        digests=[each for each in against if is_digest(each)],
        lists=[_list(each) for each in against if not is_digest(each)],
        policy=None if policy is None else parse_policy(read_text(policy, "--policy"), policy),
        proofs=None
        if given["public_key"] is None
        else Proofs(given["public_key"], given["signature"], given["statement"]),
    )


def _require_key(given: Mapping[str, Any], sources: Sequence[PathLike | Source]) -> None:
    """Raise `UsageError` for signatures without a key, a key without them, or several files."""
    signatures = given["signature"] is not None or given["statement"] is not None
    if signatures != (given["public_key"] is not None):
        raise UsageError(
            "'--public-key' goes with '--signature' or '--statement', and they with it"
        )
    if signatures and (len(sources) > 1 or not isinstance(sources[0], str)):
        raise UsageError("'--signature' and '--statement' take one FILE that is named")


def _list(name: str) -> DigestList:
    """Read a list of digests. Raises `UsageError` for what is neither a digest nor a file."""
    if name != "-" and not Path(name).exists():
        raise UsageError(
            f"'--against-hash {name}' is neither a digest nor a file with a list of them",
            hint="'ckpt hash FILE' prints both",
        )
    return DigestList.parse(read_text(name, "--against-hash"), name)


def _salvage(ctx: click.Context, source: PathLike | Source) -> SalvageReport:
    from ckpt_surgery.ops.salvage import salvage
    from ckpt_surgery.writing.output import Output

    given = ctx.params
    bar = None if given["quiet"] else progress_bar(color=color_of(ctx))
    return salvage(source, Output(given["salvage"], force=given["force"], progress=bar))


def _print(ctx: click.Context, report: VerifyReport) -> None:
    if ctx.params["as_json"]:
        write_json(report, sys.stdout)
    elif ctx.params["jsonl"]:
        for each in report.each():
            write_jsonl(each, sys.stdout)
    elif ctx.params["sarif"]:
        from ckpt_surgery.render.sarif import to_sarif
        from ckpt_surgery.startup.version import __version__

        sys.stdout.write(to_json(to_sarif(report, __version__)) + "\n")
    else:
        from ckpt_surgery.render.verification import show

        with paged(sys.stdout, color=color_of(ctx), pager=not ctx.params["no_pager"]) as screen:
            show(report, screen)
