"""Options that several commands share, and what their values come to.

A decorator adds the options; the function beside it makes of them what `ops` takes. The values of
these options stay in the context, so that a command's own parameters are only its own.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

import click

from ckpt_surgery.cli.base import (
    color_of,
    color_option,
    in_order,
    no_color_option,
    traceback_option,
)
from ckpt_surgery.cli.types import (
    CheckpointFile,
    FormatName,
    FormatOption,
    InputFile,
    KeyName,
    OutputFile,
    StateDictPath,
)
from ckpt_surgery.errors import PathLike, ReadError, UsageError
from ckpt_surgery.fileio import FileSource, Source
from ckpt_surgery.names import Rule, RuleKind, Selection, parse_key_list

if TYPE_CHECKING:
    from ckpt_surgery.writing.output import Output

SELECTING: Final[dict[str, RuleKind]] = {
    "pattern": "pattern",
    "prefix": "prefix",
    "glob": "glob",
    "name": "name",
    "keys_from": "keys",
}
_MOST_TEXT: Final = 64 << 20  # bytes of a list of keys or a map of names

_Callback = TypeVar("_Callback", bound=Callable[..., Any])
_Decorator = Callable[[_Callback], _Callback]


def all_of(*decorators: Callable[[Any], Any]) -> Callable[[_Callback], _Callback]:
    """Return one decorator that does what several do, the first first."""

    def decorate(callback: _Callback) -> _Callback:
        return functools.reduce(lambda f, add: add(f), reversed(decorators), callback)

    return decorate


input_argument = click.argument("file", required=False, type=CheckpointFile(), metavar="[FILE]")

names_argument = click.argument("names", nargs=-1, type=KeyName(), metavar="[FILE|NAME]...")

at_option = click.option(
    "--at",
    multiple=True,
    metavar="PATH",
    type=StateDictPath(),
    help="Only the state dict at PATH in the file, such as 'state_dict'. Repeatable.",
)


def one_at(ctx: click.Context) -> str | None:
    """Return what ``--at`` says to a command that is about one state dict; None if it says nothing.

    Raises `UsageError` if it is given more than once.
    """
    paths: tuple[str, ...] = ctx.params["at"]
    if len(paths) > 1:
        raise UsageError(f"'{ctx.command_path}' is about one state dict, and '--at' names several")
    return next(iter(paths), None)


hash_name_option = click.option(
    "--hash-name",
    is_flag=True,
    help="Put the file's SHA-256 into its name, as torch.hub expects: name-f37072fd.pth. One that "
    "is there is renewed.",
)

selection_options = all_of(
    click.option(
        "--pattern",
        multiple=True,
        metavar="RE",
        type=KeyName(),
        help="Names in which the regular expression RE is found.",
    ),
    click.option(
        "--prefix",
        multiple=True,
        metavar="P",
        type=KeyName(),
        help="P and the names below it: 'fc' takes 'fc.weight', never 'fcn.weight'.",
    ),
    click.option(
        "--glob",
        multiple=True,
        metavar="G",
        type=KeyName(),
        help="Names that match G; '*' stays within a segment, '**' crosses dots.",
    ),
    click.option(
        "--name",
        multiple=True,
        metavar="NAME",
        type=KeyName(),
        help="The entry of exactly this name.",
    ),
    click.option(
        "--keys-from",
        multiple=True,
        metavar="LIST",
        type=InputFile(),
        help="The names in the file LIST, one a line.",
    ),
    click.option("--keep", is_flag=True, help="Invert: all names but these."),
    click.option("--allow-unmatched", is_flag=True, help="A rule may match nothing."),
)

_in_place_option = click.option(
    "-i", "--in-place", is_flag=True, help="Replace FILE, at once or not at all."
)

if_changed_option = click.option(
    "--if-changed",
    is_flag=True,
    help="Leave an existing OUT alone if it holds the same already; replace it if not.",
)

new_file_options = all_of(
    click.option(
        "-o",
        "--output",
        metavar="OUT",
        type=OutputFile(),
        help="Write to OUT; '-' is standard output, the default if that is no terminal.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing OUT."),
    if_changed_option,
    click.option("--fsync", is_flag=True, help="Wait until the output is safe on the disk."),
    click.option(
        "--format",
        "output_format",
        cls=FormatOption,
        type=FormatName(),
        metavar="FORMAT",
        help="Format of the output, whatever OUT is called.",
    ),
    click.option(
        "--allow-loss",
        is_flag=True,
        help="Leave out what the output's format cannot hold; keep what its element type turns "
        "into infinity or another number.",
    ),
    click.option(
        "--sidecar",
        metavar="JSON",
        type=OutputFile(),
        help="Keep plain values that the output's format cannot hold in the file JSON.",
    ),
    click.option(
        "--metadata",
        multiple=True,
        metavar="KEY=VALUE",
        help="Put a text beside the tensors of a safetensors file. Repeatable.",
    ),
    click.option(
        "--duplicate-ties",
        is_flag=True,
        help="Write tied tensors once for each name, into a format without ties.",
    ),
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        help="Most bytes in one shard: '5GB', '200MB'. For a sharded output; by default the "
        "input's own shards, or 5GB.",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu"]),
        help="Say of all tensors that they were saved on the CPU, wherever they were.",
    ),
    click.option(
        "--provenance",
        is_flag=True,
        help="Keep in OUT how it came about: version, command, digests of the inputs, plan.",
    ),
    click.option(
        "--plain",
        is_flag=True,
        help="Write numpy scalars, Namespaces and paths as plain values, which "
        "torch.load(weights_only=True) takes.",
    ),
    click.option(
        "--verify/--no-verify",
        default=None,
        help="Compare all that is copied with the checksums of its file; without it only what is "
        "read anyway is. The default with --record and --hash-name.",
    ),
    click.option("--dry-run", is_flag=True, help="Report what would be done; write nothing."),
    click.option(
        "--record",
        metavar="LOG",
        type=OutputFile(),
        help="Also write the report, with every edit, to the file LOG as JSON.",
    ),
)
"""What a command writes to another file than it reads."""

output_options = all_of(new_file_options, _in_place_option)

optimizer_option = click.option(
    "--optimizer",
    type=click.Choice(["auto", "keep", "drop"]),
    default="auto",
    show_default=True,
    help="Keep the state of an optimizer in step with its model, leave it as it is, or drop it.",
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")

report_options = all_of(
    click.option("--json", "as_json", is_flag=True, help="Report as one JSON document."),
    quiet_option,
    color_option,
    no_color_option,
    traceback_option,
)

pager_option = click.option(
    "--no-pager", is_flag=True, help="Never show a long report in the pager (PAGER, less)."
)


def source_of(ctx: click.Context) -> PathLike | Source:
    """Return the input: a path, or what comes from standard input, as an open file.

    Raises `UsageError` if no file is named and standard input is a terminal or closed.
    """
    name: str | None = ctx.params["file"]
    if name not in {None, "-"}:
        return str(name)
    return standard_input(ctx, named=name is not None)


def standard_input(ctx: click.Context, *, named: bool = True) -> FileSource:
    """Return standard input as an open file; `named` says that the line asks for it: ``-``.

    Raises `UsageError` if it is a terminal or closed, and if it is a device that is not named.
    """
    kind = _no_pipe(sys.stdin)
    if kind and not (named and kind == "a device"):
        raise UsageError(
            f"no FILE is named, and standard input is {kind}",
            hint=f"see '{ctx.command_path} --help'",
        )
    return FileSource.from_stream(sys.stdin.buffer)


def _no_pipe(stream: TextIO | None) -> str:
    """Return why nothing can be read from standard input; empty if it is a pipe or a file.

    Without FILE a device is no input: cron and many CI systems give ``/dev/null``.
    """
    if stream is None:
        return "closed"
    if stream.isatty():
        return "a terminal"
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # no descriptor behind it, as in a test
        return ""
    return "a device" if stat.S_ISCHR(mode) else ""


def selection_of(ctx: click.Context, *, keeps_entries: bool = False) -> Selection:
    """Return the rules in the order given. Raises `UsageError` for one that cannot work.

    `keeps_entries` says that ``--keep`` has a meaning without a rule.
    """
    rules = tuple(rule_of(name, value) for name, value in in_order(ctx, SELECTING))
    rules += tuple(Rule("name", name) for name in ctx.params.get("names", ()))
    keep = ctx.params["keep"] and bool(rules or not keeps_entries)
    return Selection(rules, keep, ctx.params["allow_unmatched"])


def rule_of(name: str, value: str) -> Rule:
    """Return the rule of one of the options `SELECTING`. Raises what reading a list raises."""
    if name == "keys_from":
        return Rule("keys", value, parse_key_list(read_text(value, "--keys-from")))
    return Rule(SELECTING[name], value)


def output_of(ctx: click.Context) -> Output:
    """Return where the output goes. Raises `UsageError` if it would go to a terminal."""
    from ckpt_surgery.fileio.distinct import Role
    from ckpt_surgery.formats.base import LayoutOptions
    from ckpt_surgery.render.progress import progress_bar
    from ckpt_surgery.writing.output import Output

    given = ctx.params
    path, in_place, dry_run = given["output"], given.get("in_place", False), given["dry_run"]
    to_stdout = path == "-" or (path is None and not in_place)
    if in_place and to_stdout:
        raise UsageError("'-o -' and '--in-place' contradict each other")
    _check_record(ctx)
    record = given["record"]
    return Output(
        path=None if to_stdout else path,
        stream=_stdout_descriptor() if to_stdout and not dry_run else None,
        in_place=in_place,
        force=given["force"],
        if_changed=given["if_changed"],
        fsync=given["fsync"] or None,
        dry_run=dry_run,
        format=given["output_format"],
        allow_loss=given["allow_loss"],
        sidecar=given["sidecar"],
        options=LayoutOptions(
            _metadata(given["metadata"]), given["duplicate_ties"], size_of(given["max_shard_size"])
        ),
        progress=None if given["quiet"] else progress_bar(color=color_of(ctx)),
        device=given["device"],
        plain=given["plain"],
        provenance=given["provenance"],
        verify=given["verify"],
        recorded=record is not None,
        beside=() if record is None else (Role("'--record'", record),),
    )


def size_of(text: str | None) -> int | None:
    """Return ``--max-shard-size`` in bytes. Raises `UsageError` if it is no size."""
    if text is None:
        return None
    from ckpt_surgery.formats.sharded_write import parse_shard_size

    return parse_shard_size(text)


def changes_all(ctx: click.Context) -> bool:
    """Return whether the output options change what is written, so that no rule is needed."""
    return bool(ctx.params.get("plain") or ctx.params.get("device"))


def _metadata(items: Sequence[str]) -> dict[str, str]:
    """Return KEY=VALUE pairs as a dictionary. Raises `UsageError` for one that is none."""
    found: dict[str, str] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not key or not sign:
            raise UsageError(f"'--metadata {item}' is not of the form KEY=VALUE")
        if key in found:
            raise UsageError(f"'--metadata' gives '{key}' twice")
        found[key] = value
    return found


def _stdout_descriptor() -> int:
    if sys.stdout is None or sys.stdout.isatty():
        where = "closed" if sys.stdout is None else "a terminal"
        raise UsageError(
            f"there is no output, and standard output is {where}",
            hint="give -o FILE, or --in-place to replace the input",
        )
    sys.stdout.flush()
    return sys.stdout.fileno()


def _check_record(ctx: click.Context) -> None:
    """Find out before anything is written that the record could not be."""
    record = ctx.params["record"]
    if record is None:
        return
    if ctx.params["dry_run"]:
        raise UsageError(
            "'--record' and '--dry-run' contradict each other: a dry run writes nothing",
            hint="'--dry-run --json' prints the same document",
        )
    if record == "-":
        raise UsageError("'--record -' names no file", hint="'--json' prints the same document")
    from pathlib import Path  # for those who ask for a record

    if not Path(os.path.realpath(record)).parent.is_dir():
        raise UsageError(f"the directory of '--record {record}' does not exist")
    if Path(record).exists() and not (ctx.params["force"] or ctx.params["if_changed"]):
        raise UsageError(f"'--record {record}' already exists", hint="give --force to replace it")
    if ctx.params.get("in_place") and ctx.params.get("file") is not None:
        from ckpt_surgery.cli.digests import remember_input

        remember_input(ctx, ctx.params["file"])


def _checkpoint_is_on_stdin() -> bool:
    ctx = click.get_current_context(silent=True)
    given: dict[str, Any] = {} if ctx is None else ctx.params
    return given.get("file", "") in {None, "-"} or "-" in given.get("files", ())


def read_text(path: str, option: str) -> str:
    """Return a text file that `option` names ('-': standard input).

    Raises `ReadError`, and `UsageError` if the checkpoint comes from standard input as well.
    """
    if path == "-" and _checkpoint_is_on_stdin():
        raise UsageError(f"'{option} -' and FILE are both standard input", hint="name one of them")
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MOST_TEXT + 1) if sys.stdin is not None else b""
        else:
            from pathlib import Path

            with Path(path).open("rb") as file:
                data = file.read(_MOST_TEXT + 1)
        if len(data) > _MOST_TEXT:
            raise ReadError(f"too large for '{option}'", path=path)
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReadError(f"'{option}' needs a text file in UTF-8", path=path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReadError(f"cannot be read: {reason.lower()}", path=path) from error
