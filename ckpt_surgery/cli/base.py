"""What every command is made of: a command that remembers the order of its options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import click

from ckpt_surgery.cli.failing import note_running
from ckpt_surgery.cli.fields import name_options
from ckpt_surgery.cli.files import refuse_inputs_as_outputs
from ckpt_surgery.cli.line import refuse_swallowed_options
from ckpt_surgery.errors import CkptError
from ckpt_surgery.render.color import COLOR_CHOICES, ColorChoice

COMPLETION_VARIABLE: Final = "_CKPT_COMPLETE"
"""The environment variable by which a shell asks for completions: its value names the shell."""

HELP_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
# The headings that help has options under, after those of the command's own.
_SHARED_HEADINGS: Final[dict[str, tuple[str, ...]]] = {
    "Which names": (
        *("pattern", "prefix", "glob", "name", "keys_from", "keep", "allow_unmatched", "at"),
    ),
    "What is written": (
        *("plain", "device", "allow_loss", "sidecar", "metadata", "duplicate_ties"),
        *("max_shard_size", "provenance"),
    ),
    "Output": (
        *(
            "output",
            "in_place",
            "output_template",
            "force",
            "if_changed",
            "fsync",
            "output_format",
            "hash_name",
            "dry_run",
        ),
        *("record",),
    ),
    "Report": ("as_json", "jsonl", "quiet", "color", "no_pager", "traceback", "help"),
}
_REST: Final = "Options"
_ORDER: Final = "ckpt_surgery.cli.order"

color_option = click.option(
    "--color",
    type=click.Choice(COLOR_CHOICES),
    default="auto",
    metavar="WHEN",
    help="Colors: auto (on terminals), always or never. NO_COLOR and FORCE_COLOR hold.",
)
no_color_option = click.option(
    "--no-color", is_flag=True, hidden=True, help="The old spelling of --color never."
)

traceback_option = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="Show where in ckpt an error arose.",
)


class Command(click.Command):
    """A command with ``-h``, whose options can be asked for in the order they were given.

    Its help has them under headings: `headings`, a title and the names of its options, then
    the rest, then those that all commands share.
    """

    def __init__(
        self, *args: Any, headings: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        self._headings = dict(headings or {})
        kwargs["context_settings"] = HELP_SETTINGS | kwargs.get("context_settings", {})
        # raw docstrings, since examples hold backslashes; Click marks paragraphs with a backspace
        kwargs["help"] = (kwargs.get("help") or "").replace("\\b\n", "\b\n")
        super().__init__(*args, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        headings = {**self._headings, _REST: (), **_SHARED_HEADINGS}
        shared = {name: title for title, names in _SHARED_HEADINGS.items() for name in names}
        own = {name: title for title, names in self._headings.items() for name in names}
        under: dict[str, list[tuple[str, str]]] = {title: [] for title in headings}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                name = "help" if "--help" in parameter.opts else str(parameter.name)
                under[own.get(name) or shared.get(name) or _REST].append(record)
        for title, records in under.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            args = self._with_open_option_closed(ctx, args)
        else:
            note_running(ctx, args)
            refuse_swallowed_options(ctx.command_path, self.get_params(ctx), args)
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if the memory does not suffice, say so of the input."""
        refuse_inputs_as_outputs(ctx)
        try:
            with suppress(MemoryError):
                return super().invoke(ctx)
        except CkptError as error:
            name_options(error, self.params)
            raise
        # Raised here, where what filled the memory is gone.
        named = ctx.params.get("files") or (ctx.params.get("file"),)
        name = " ".join(f"'{name}'" for name in named if name) or "standard input"
        raise CkptError(f"out of memory: {ctx.info_name} of {name} needs more than there is")

    def _with_open_option_closed(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return a line to complete, with empty values for the option being typed.

        Without them Click's parser gives up before it comes to FILE, which the names to complete
        are read from.
        """
        arguments = {p.name for p in self.params if isinstance(p, click.Argument)}
        for padding in ([], [""], ["", ""]):
            values, _, _ = self.make_parser(ctx).parse_args([*args, *padding])
            if arguments <= values.keys():
                return [*args, *padding]
        return args


def color_of(ctx: click.Context) -> ColorChoice:
    """Return what was said about colors: ``auto`` unless an option says otherwise."""
    if ctx.params.get("no_color"):
        return "never"
    choice: ColorChoice = ctx.params.get("color") or "auto"
    return choice


def color_on(line: Sequence[str]) -> ColorChoice:
    """Return the same from a command line that may not be parsed, or not be parseable."""
    chosen: ColorChoice = "auto"
    for at, argument in enumerate(line):
        if argument == "--no-color":
            return "never"
        value = argument.partition("=")[2]
        if argument == "--color" and at + 1 < len(line):
            value = line[at + 1]
        if argument.startswith("--color") and value in COLOR_CHOICES:
            chosen = value
    return chosen


def in_order(ctx: click.Context, names: Collection[str]) -> list[tuple[str, Any]]:
    """(name, value) of every use of the repeatable options `names`, in the order of the line."""
    values = {name: iter(ctx.params.get(name) or ()) for name in names}
    return [(name, next(values[name])) for name in ctx.meta[_ORDER] if name in values]
