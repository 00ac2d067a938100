"""Errors as JSON, for those who asked for the report as JSON: where it goes, the error goes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO

import click

from ckpt_surgery.errors import CkptError

_ONE_LINE: Final = "--jsonl"
_DOCUMENT: Final = "--json"
_RUNNING: Final = "ckpt_surgery.cli.failing"
_REFUSED: Final = 2
_BUG: Final = 70
_SIGNALS: Final = 128


def note_running(ctx: click.Context, words: Sequence[str]) -> None:
    """Keep which command runs, and the words of its line, for the error that may come of it."""
    ctx.meta[_RUNNING] = (ctx, list(words))


def report_stream(given: Mapping[str, Any]) -> TextIO | None:
    """Return where a report goes: to standard output, unless the checkpoint goes there.

    None if that is closed. `given` are the parameters of a command.
    """
    if "dry_run" not in given:
        return sys.stdout
    to_file = given.get("in_place") or given.get("output") not in {None, "-"}
    return sys.stdout if to_file or given["dry_run"] else sys.stderr


@dataclass(slots=True)
class JsonErrors:
    """Writes the error of a command line as a document; `context` is that of the whole line."""

    one_line: bool
    context: click.Context | None = None

    def write(self, error: BaseException, message: str, hint: str | None, code: int) -> bool:
        """Write the document; return whether it took standard error, which text would spoil."""
        command, given = self._command()
        stream = report_stream(given) if command is not None else sys.stdout
        if stream is None:
            return False
        from ckpt_surgery.render.plain import to_json, to_jsonl
        from ckpt_surgery.reports import envelope

        document = envelope(command or "ckpt", exit_code=code, inputs=_names(given))
        document["error"] = _error_fields(error, message, hint, code)
        with suppress(OSError, ValueError):
            stream.write((to_jsonl if self.one_line else to_json)(document) + "\n")
            stream.flush()
        return stream is sys.stderr

    def _command(self) -> tuple[str | None, Mapping[str, Any]]:
        """Return the command that ran, and its parameters as far as the line gives them."""
        running = None if self.context is None else self.context.meta.get(_RUNNING)
        if running is None:
            return None, {}
        ctx: click.Context = running[0]
        if ctx.params:
            return ctx.info_name, ctx.params
        # the line could not be parsed: what can be said of it all the same
        with suppress(click.ClickException, CkptError):
            again = ctx.command.make_context(ctx.info_name, running[1], resilient_parsing=True)
            return ctx.info_name, again.params
        return ctx.info_name, {}


def json_errors_of(line: Sequence[str]) -> JsonErrors | None:
    """Return how the errors of a command line are written as JSON, None if it asks for none."""
    words = line[: line.index("--")] if "--" in line else line
    if _ONE_LINE in words:
        return JsonErrors(one_line=True)
    return JsonErrors(one_line=False) if _DOCUMENT in words else None


def error_line(command: str, file: str, error: CkptError) -> str:
    """Return the document of an error with one of several files, as a line."""
    from ckpt_surgery.render.plain import to_jsonl
    from ckpt_surgery.reports import envelope

    document = envelope(command, exit_code=_REFUSED, inputs=(file,))
    document["error"] = _error_fields(error, str(error), error.hint, _REFUSED)
    return to_jsonl(document) + "\n"


def _error_fields(
    error: BaseException, message: str, hint: str | None, code: int
) -> dict[str, str | None]:
    """Return what a document says of an error; the message stands without the file's name."""
    ours = error if isinstance(error, CkptError) else None
    return {
        "kind": _kind(error, code),
        "message": message if ours is None else ours.message,
        "file": None if ours is None else ours.file,
        "entry": None if ours is None else ours.entry,
        "hint": hint,
    }


def _kind(error: BaseException, code: int) -> str:
    if isinstance(error, click.ClickException):
        return "UsageError"
    if code == _BUG:
        return "Bug"
    return "Interrupted" if code > _SIGNALS else type(error).__name__


def _names(given: Mapping[str, Any]) -> list[str]:
    """Return the input files that the line names."""
    one = given.get("file")
    if one is not None:
        return [one]
    words = given.get("words") or ("",)  # lora: what to do, then files
    return [str(name) for name in given.get("files") or words[1:]]
