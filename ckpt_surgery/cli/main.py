"""The `ckpt` command: a group that imports a command only when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from ckpt_surgery.cli import boundary
from ckpt_surgery.cli.base import COMPLETION_VARIABLE, HELP_SETTINGS, color_on, traceback_option
from ckpt_surgery.cli.failing import json_errors_of
from ckpt_surgery.errors import UsageError
from ckpt_surgery.startup.collector import freeze_what_is_made

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Name: module and object, and its one line of help, which shows without importing it.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "inspect": ("ckpt_surgery.cli.commands.inspect:inspect", "Show what a checkpoint holds."),
    "strip": ("ckpt_surgery.cli.commands.strip:strip", "Remove entries from a checkpoint."),
    "rename": ("ckpt_surgery.cli.commands.rename:rename", "Rename the entries of a checkpoint."),
    "edit": ("ckpt_surgery.cli.commands.edit:edit", "Edit what tensors hold."),
    "set": ("ckpt_surgery.cli.commands.set:set_", "Set plain values beside the weights."),
    "get": ("ckpt_surgery.cli.commands.get:get", "Print a plain value of a checkpoint."),
    "convert": (
        "ckpt_surgery.cli.commands.convert:convert",
        "Write any readable file in another format.",
    ),
    "consolidate": (
        "ckpt_surgery.cli.commands.consolidate:consolidate",
        "Put the files of ranks together.",
    ),
    "match": ("ckpt_surgery.cli.commands.match:match", "Say what load_state_dict would say."),
    "fit": (
        "ckpt_surgery.cli.commands.fit:fit",
        "Write a checkpoint that loads strictly into a model.",
    ),
    "merge": ("ckpt_surgery.cli.commands.merge:merge", "Merge checkpoints into one."),
    "lora": ("ckpt_surgery.cli.commands.lora:lora", "Make a low-rank adapter."),
    "apply": (
        "ckpt_surgery.cli.commands.apply:apply",
        "Carry out a recipe, or do again what a report says.",
    ),
    "freeze-plan": (
        "ckpt_surgery.cli.commands.freeze_plan:freeze_plan",
        "Decide what trains and how.",
    ),
    "verify": (
        "ckpt_surgery.cli.commands.verify:verify",
        "Say whether a file is whole and safe to load.",
    ),
    "diff": ("ckpt_surgery.cli.commands.diff:diff", "Say what differs between two checkpoints."),
    "hash": ("ckpt_surgery.cli.commands.hash:hash_", "Say what a model is by one digest."),
    "sign": ("ckpt_surgery.cli.commands.sign:sign", "Sign a model, and where it comes from."),
    "bom": (
        "ckpt_surgery.cli.commands.bom:bom",
        "Print a bill of materials of models (CycloneDX).",
    ),
    "completion": (
        "ckpt_surgery.cli.commands.completion:completion",
        "Print a script that completes ckpt in a shell.",
    ),
}

# What people know from their shells.
_ALIASES: Final = {"ls": "inspect", "rm": "strip", "mv": "rename"}


class _LazyGroup(click.Group):
    """The commands of `COMMANDS`, each imported when it is looked up.

    ``ckpt FILE`` is ``ckpt inspect FILE``, and ``ckpt help X`` is ``ckpt X --help``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's signature
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - Click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        home, _ = COMMANDS[cmd_name]
        module, _, name = home.partition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{home} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = _ALIASES.get(args[0], args[0])
        if name == "help" and not ctx.resilient_parsing:
            asked = [_ALIASES.get(word, word) for word in args[1:2]]
            if not asked:
                click.echo(ctx.get_help())
                ctx.exit()
            self._require_known(asked[0], may_be_file=False)
            return super().resolve_command(ctx, [*asked, "--help"])
        if name not in COMMANDS and os.path.lexists(name):
            return super().resolve_command(ctx, ["inspect", *args])
        if not ctx.resilient_parsing:
            self._require_known(name)
        return super().resolve_command(ctx, [name, *args[1:]])

    def _require_known(self, name: str, *, may_be_file: bool = True) -> None:
        if name in COMMANDS:
            return
        from ckpt_surgery.cli.hints import near_files, other_word
        from ckpt_surgery.names.suggest import near_hint

        hint = other_word(name) or near_hint(name, [*COMMANDS, *_ALIASES, "help"])
        if hint is None and may_be_file:
            hint = near_files(name)
        raise UsageError(
            f"no such command '{name}'" + (", and no such file" if may_be_file else ""),
            hint=hint or "see 'ckpt --help'",
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *_: Any,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and leave the interpreter with its exit code."""
        line = list(sys.argv[1:] if args is None else args)
        extra = {key: value for key, value in extra.items() if key in {"obj", "color"}}

        errors = json_errors_of(line)

        def body() -> object:
            with self.make_context(prog_name or "ckpt", list(line), **extra) as ctx:
                if errors is not None:
                    errors.context = ctx
                return self.invoke(ctx)

        code = boundary.run(
            body, show_traceback="--traceback" in line, color=color_on(line), errors=errors
        )
        sys.exit(code)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from ckpt_surgery.startup.version import __version__

        click.echo(f"ckpt {__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    name="ckpt",
    invoke_without_command=True,
    context_settings=HELP_SETTINGS,
    epilog="'ckpt COMMAND --help' explains a command and shows examples.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@traceback_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Edit PyTorch checkpoints without running or loading them.

    Commands read files or standard input, find the format from the content, and write a complete
    new file or none. What ckpt does not understand is carried over unchanged. 'ckpt FILE' shows
    what FILE holds.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(boundary.REFUSED)


def run() -> NoReturn:
    """Run `main` in a process of its own: the entry point."""
    freeze_what_is_made()
    # numpy's BLAS, which nothing here uses, would keep a processor busy waiting for work
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()


def main() -> NoReturn:
    """Completion for a shell that asks for it, otherwise the command line."""
    if COMPLETION_VARIABLE in os.environ:
        from ckpt_surgery.cli.commands.completion import answer_shell

        sys.exit(answer_shell(cli, os.environ[COMPLETION_VARIABLE]))
    cli.main()
