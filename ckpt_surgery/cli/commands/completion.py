"""Completion in the shell: the script that asks, and the answers."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from ckpt_surgery.cli.base import COMPLETION_VARIABLE, Command, traceback_option
from ckpt_surgery.errors import UsageError

_BREAKS = (":", "=")


@add_completion_class
class _Bash(BashComplete):
    """Completion in bash, which breaks a word at ``:`` and ``=`` and replaces the last piece only.

    So ``torchvision:res`` comes as three words, and of an answer only what follows the colon
    (COMP_WORDBREAKS in bash's manual) is wanted. Click takes the pieces for words.
    """

    _given = ""
    """What of the word being completed stands on the line for good."""

    def get_completion_args(self) -> tuple[list[str], str]:
        pieces = split_arg_string(os.environ["COMP_WORDS"])
        end = int(os.environ["COMP_CWORD"]) + 1
        words, self._given = [""], ""
        for piece in [*pieces, ""][:end]:
            if piece in _BREAKS:
                words[-1] += piece
                self._given = words[-1]
            elif piece and words[-1].endswith(_BREAKS):
                words[-1] += piece
            else:
                words.append(piece)
                self._given = ""
        if self._given.startswith("--"):
            self._given = self._given.partition("=")[2]  # Click takes the option away
        return words[2:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self._given)}"


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
      eval "$(ckpt completion bash)"  # in ~/.bashrc
      eval "$(ckpt completion zsh)"  # in ~/.zshrc
      ckpt completion fish > ~/.config/fish/completions/ckpt.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"click knows no completion for '{shell}'")
    click.echo(kind(ctx.find_root().command, {}, "ckpt", COMPLETION_VARIABLE).source())


def answer_shell(cli: click.Command, instruction: str) -> int:
    """Print what could come next on the line that the shell's script put in the environment.

    Silent on any error: a message would appear in the middle of the line being typed.
    """
    shell = instruction.removesuffix("_complete")
    with suppress(Exception):
        kind = get_completion_class(shell)
        if kind is not None:
            sys.stdout.write(kind(cli, {}, "ckpt", COMPLETION_VARIABLE).complete() + "\n")
            sys.stdout.flush()
            return 0
    return 1
