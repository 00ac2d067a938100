"""``ckpt rename``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt_surgery.cli.base import Command, in_order
from ckpt_surgery.cli.inputs import files_argument, many_outputs_options, takes_many
from ckpt_surgery.cli.options import (
    at_option,
    changes_all,
    optimizer_option,
    output_of,
    output_options,
    read_text,
    report_options,
    selection_of,
    selection_options,
    source_of,
)
from ckpt_surgery.cli.output import finish_edit
from ckpt_surgery.cli.spellings import Renamed
from ckpt_surgery.cli.types import EntryPath, InputFile, KeyName
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.rewrite import (
    AddPrefix,
    Delete,
    Replace,
    RewriteRule,
    StripPrefix,
    Substitute,
    Unwrap,
    Within,
    parse_name_map,
)

if TYPE_CHECKING:
    from ckpt_surgery.ops.rename import RenameRequest

_RULES: Final[dict[str, Callable[[Any], RewriteRule]]] = {
    "strip_prefix": StripPrefix,
    "add_prefix": AddPrefix,
    "replace": lambda pair: Replace(*pair),
    "sub": lambda pair: Substitute(*pair),
    "delete": Delete,
    "map": lambda path: parse_name_map(read_text(path, "--map"), path),
}


@click.command(
    cls=Command,
    headings={
        "Rules": ("unwrap", "unwrap_model", *_RULES),
        "Beside the names": ("entry", "wrap", "state_dict_only"),
    },
)
@files_argument
@click.option(
    "--unwrap",
    is_flag=True,
    help="First take off what wrappers add, however nested, if anything: 'module.', '_orig_mod.', "
    "'_fsdp_wrapped_module.', '_checkpoint_wrapped_module.'.",
)
@click.option("--unwrap-model", is_flag=True, help="As --unwrap, and Lightning's 'model.' as well.")
@click.option(
    "--strip-prefix",
    multiple=True,
    metavar="P",
    type=KeyName(),
    help="Take the leading segments P off names that have them.",
)
@click.option("--add-prefix", multiple=True, metavar="P", help="Put P before every name.")
@click.option(
    "--replace",
    multiple=True,
    nargs=2,
    metavar="OLD NEW",
    help="Replace the text OLD, wherever it stands; NEW may be ''.",
)
@click.option(
    "--delete",
    multiple=True,
    metavar="TEXT",
    help="Take the text TEXT out, wherever it stands.",
)
@click.option(
    "--sub",
    multiple=True,
    nargs=2,
    metavar="RE REPL",
    help=r"Replace what the regular expression RE matches; REPL may name groups as \1.",
)
@click.option(
    "--map",
    cls=Renamed,
    aliases=["--rename-map"],
    multiple=True,
    metavar="MAP",
    type=InputFile(),
    help="Rename as the file MAP says: TOML or JSON, old = new.",
)
@click.option(
    "--entry",
    multiple=True,
    metavar="PATH=KEY",
    type=EntryPath(),
    help="Call what lies at PATH, a state dict or anything else, KEY: 'state_dict=model'. "
    "Repeatable.",
)
@click.option(
    "--wrap", metavar="KEY", help="Put everything under KEY into a dictionary of its own."
)
@click.option(
    "--state-dict-only",
    is_flag=True,
    help="Write the state dict alone, without what lies beside it.",
)
@selection_options
@at_option
@optimizer_option
@output_options
@many_outputs_options
@report_options
@click.pass_context
def rename(ctx: click.Context, /, **_: Any) -> int:
    r"""Rename the entries of a checkpoint.

    The rules apply one after the other, in the order given, to every state dict in FILE; module
    versions (_metadata) and the names that an optimizer stores follow. A rule that changes nothing,
    a collision or an empty name is an error, and nothing is written. --pattern, --prefix, --glob,
    --name and --keys-from choose the names that rules are for; without them all.

    \b
    Examples:
      ckpt rename train.pth --strip-prefix module. -o model.pth
      ckpt rename compiled.pth --unwrap -o model.pth
      ckpt rename model.pth --add-prefix module.base_model. -o wrapped.pth
      ckpt rename m.pth --delete .net --sub '^layer(\d)' 'stage\1' -o new.pth
      ckpt rename model.pth --map names.toml --dry-run
      ckpt rename net.pth --prefix head --replace fc classifier -o new.pth
      ckpt rename runs/*.pth --strip-prefix module. -i
      ckpt rename train.pth --entry state_dict=model -o for_their_loader.pth
      ckpt rename weights.pth --wrap model -o wrapped.pth
    """
    import ckpt_surgery.ops.rename as verb

    request = request_of(ctx)
    if takes_many(ctx):
        from ckpt_surgery.cli.many import edit_each

        return edit_each(ctx, lambda source, output: verb.rename(source, output, request))
    return finish_edit(ctx, verb.rename(source_of(ctx), output_of(ctx), request))


def request_of(ctx: click.Context) -> RenameRequest:
    """Return what the line asks for. Raises `UsageError` for a rule that cannot work."""
    import ckpt_surgery.ops.rename as verb

    given = ctx.params
    return verb.RenameRequest(
        _rules(ctx),
        at=given["at"],
        optimizer=given["optimizer"],
        state_dict_only=given["state_dict_only"],
        entries=[_pair(text) for text in given["entry"]],
        wrap=given["wrap"],
        allow_nothing=changes_all(ctx),
    )


def _rules(ctx: click.Context) -> list[RewriteRule]:
    """Return the rules in the order of the line, each for the names that are selected."""
    rules = [_RULES[name](value) for name, value in in_order(ctx, _RULES)]
    selection = selection_of(ctx)
    given = ctx.params
    if given["unwrap"] or given["unwrap_model"]:
        if selection.rules:
            raise UsageError("'--unwrap' is for all names, and others are selected")
        return [Unwrap(given["unwrap_model"]), *rules]
    return [Within(rule, selection) for rule in rules] if selection.rules else rules


def _pair(text: str) -> tuple[str, str]:
    path, equals, key = text.partition("=")
    if not equals:
        raise UsageError(f"'--entry {text}' says no new key", hint="write PATH=KEY")
    return path, key
