"""The files that a line names: nothing that is read is written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt_surgery.cli.types import CheckpointFile, InputFile, OutputFile
from ckpt_surgery.errors import PathLike

if TYPE_CHECKING:
    from ckpt_surgery.fileio.distinct import Role

_STREAM: Final = "-"
_STDIN: Final = 0
_STDOUT: Final = 1


def refuse_inputs_as_outputs(ctx: click.Context) -> None:
    """Raise `WriteError` if the line names one file to be read and to be written.

    `--in-place`, which says so, names no output. What is read without being on the line (the files
    of a recipe) is looked at when the output is written.
    """
    if any(isinstance(parameter.type, OutputFile) for parameter in ctx.command.params):
        from ckpt_surgery.fileio.distinct import require_distinct  # only for what writes

        outputs = [*_roles(ctx, OutputFile, _STDOUT), *_standard_output(ctx.params)]
        inputs = [*_roles(ctx, CheckpointFile, _STDIN), *_roles(ctx, InputFile, _STDIN)]
        require_distinct(outputs, inputs, may_replace="in_place" in ctx.params)


def read_for_options(ctx: click.Context) -> list[Role]:
    """Return the files that the options of a line name to be read, not its arguments."""
    from ckpt_surgery.fileio.distinct import INPUT

    roles = (*_roles(ctx, CheckpointFile, _STDIN), *_roles(ctx, InputFile, _STDIN))
    return [role for role in roles if role.what != INPUT]


def _roles(
    ctx: click.Context, kind: type[CheckpointFile | InputFile | OutputFile], stream: int
) -> Iterator[Role]:
    from ckpt_surgery.fileio.distinct import Role

    for parameter in ctx.command.params:
        if isinstance(parameter.type, kind) and parameter.name is not None:
            what = _what(parameter)
            for value in _values(parameter, ctx.params.get(parameter.name)):
                yield Role(what, stream if value in {None, _STREAM} else value)


def _what(parameter: click.Parameter) -> str:
    from ckpt_surgery.fileio.distinct import INPUT, OUTPUT

    if isinstance(parameter, click.Argument):
        return INPUT
    if parameter.name == "output":
        return OUTPUT
    option = f"'{max(parameter.opts, key=len)}'"
    return option if isinstance(parameter.type, OutputFile) else f"the file of {option}"


def _values(parameter: click.Parameter, value: Any) -> Iterator[PathLike | None]:
    """Yield the files that are given for a parameter; None for
    standard input in the place of FILE.
    """
    if isinstance(value, tuple):
        for each in value:
            yield from _values(parameter, each)
    elif value is not None or isinstance(parameter, click.Argument):
        yield value


def _standard_output(given: Mapping[str, Any]) -> Iterator[Role]:
    """Standard output where the checkpoint goes there."""
    from ckpt_surgery.fileio.distinct import Role

    if given.get("in_place") is False and given["output"] is None and not given["dry_run"]:
        yield Role("standard output", _STDOUT)
