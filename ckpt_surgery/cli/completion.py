"""Completion in the shell: the script that asks, and the answers."""

from __future__ import annotations

import sys
from contextlib import suppress

import click
from click.shell_completion import get_completion_class

from ckpt_surgery.cli.base import Command, traceback_option
from ckpt_surgery.errors import UsageError

VARIABLE = "_CKPT_COMPLETE"
"""The environment variable by which the script asks: its value names the shell."""


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@traceback_option
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    r"""Print a script that completes ckpt in a shell.

    It completes commands, options and files, and the names and paths inside the checkpoint that
    the line names: type FILE before --prefix.

    \b
    Examples:
      eval "$(ckpt completion bash)"                                    # in ~/.bashrc
      eval "$(ckpt completion zsh)"                                     # in ~/.zshrc
      ckpt completion fish > ~/.config/fish/completions/ckpt.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"click knows no completion for '{shell}'")
    click.echo(kind(ctx.find_root().command, {}, "ckpt", VARIABLE).source())


def answer_shell(cli: click.Command, instruction: str) -> int:
    """Print what could come next on the line that the shell's script put in the environment.

    Silent on any error: a message would appear in the middle of the line being typed.
    """
    shell = instruction.removesuffix("_complete")
    with suppress(Exception):
        kind = get_completion_class(shell)
        if kind is not None:
            sys.stdout.write(kind(cli, {}, "ckpt", VARIABLE).complete() + "\n")
            sys.stdout.flush()
            return 0
    return 1
