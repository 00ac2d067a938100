"""The one place where an exception becomes a message and an exit code.

0 done, 1 the answer is no, 2 refused or failed, 70 a bug in ckpt, 130 interrupted, 143 terminated.
A reader that closes the pipe early is a normal end.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from ckpt_surgery.errors import CkptError
from ckpt_surgery.render.color import ERROR, HINT, PLAIN, ColorChoice, wants_color
from ckpt_surgery.render.text import printable, shorten, visible

if TYPE_CHECKING:
    from ckpt_surgery.cli.failing import JsonErrors

REFUSED: Final = 2
_BUG: Final = 70
_BY_SIGNAL: Final = 128  # plus the signal's number, as shells count

_LONGEST_MESSAGE: Final = 4000  # characters
_LONG_NAME: Final = re.compile(r"'([^']{201,})'")  # what a file calls something may be absurd
_DISK_ERRORS: Final = {errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class _Terminated(BaseException):
    """A signal to end, raised so that what is half written is removed."""


def run(
    body: Callable[[], object],
    *,
    show_traceback: bool = False,
    color: ColorChoice = "auto",
    errors: JsonErrors | None = None,
) -> int:
    """Run `body`, whose number (if it gives one) is the exit code; explain whatever it raises.

    `errors` writes it as a document, too, which takes the place of the text on the same stream.
    """
    _occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        _escape_what_cannot_be_encoded(stream)
    try:
        with _ending_signals_raise():
            return _attempt(body)
    except BaseException as error:  # noqa: BLE001 - everything ends here
        return _explain(error, show_traceback=show_traceback, color=color, errors=errors)


def _attempt(body: Callable[[], object]) -> int:
    try:
        result = body()
    except click.exceptions.Exit as ended:
        result = ended.exit_code
    except SystemExit as ended:
        result = ended.code
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where its failure can still be explained
    return result if isinstance(result, int) else 0


def _explain(
    error: BaseException, *, show_traceback: bool, color: ColorChoice, errors: JsonErrors | None
) -> int:
    """Say what went wrong; return the exit code."""
    if isinstance(error, BrokenPipeError):
        _discard(sys.stdout)
        return 0
    if show_traceback:
        _say_traceback(error)
    message, hint, code = _message(error)
    if errors is None or not errors.write(error, message, hint, code):
        say_failure(message, hint, color)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)
    return code


def _message(error: BaseException) -> tuple[str, str | None, int]:
    """Return what to say, a hint, and the exit code."""
    match error:
        case CkptError():
            return str(error), error.hint or _hint_at_files(error), REFUSED
        case click.ClickException():
            return *_click_message(error), REFUSED
        case KeyboardInterrupt() | click.Abort():
            return "interrupted", None, _BY_SIGNAL + signal.SIGINT
        case _Terminated():
            return "terminated", None, _BY_SIGNAL + int(error.args[0])
        case MemoryError():
            return "out of memory", None, REFUSED
        case OSError(errno=int(number)) if number in _DISK_ERRORS:
            return f"cannot write: {os.strerror(number).lower()}", None, REFUSED
    return (
        f"this is a bug in ckpt: {type(error).__name__}: {error}",
        "run it again with '--traceback' and report what that prints, and 'ckpt --version'",
        _BUG,
    )


def _hint_at_files(error: CkptError) -> str | None:
    if not isinstance(error.__cause__, FileNotFoundError) or error.file is None:
        return None
    from ckpt_surgery.cli.hints import near_files

    return near_files(error.file)


def _click_message(error: click.ClickException) -> tuple[str, str | None]:
    """Click's message in our style, and a hint: what may have been meant, else where help is."""
    near = getattr(error, "possibilities", None)
    message = error.message if near else error.format_message()
    message = message[:1].lower() + message[1:].removesuffix(".")
    context: click.Context | None = getattr(error, "ctx", None)
    hint = _option_elsewhere(error, context)
    if near:
        from ckpt_surgery.names.suggest import did_you_mean

        hint = " ".join(filter(None, (did_you_mean(near), hint)))
    if hint is None and context is not None:
        hint = f"see '{context.command_path} --help'"
    return message, hint


def _option_elsewhere(error: click.ClickException, context: click.Context | None) -> str | None:
    group = None if context is None else context.find_root().command
    if context is None or not isinstance(group, click.Group):
        return None
    if not isinstance(error, click.NoSuchOption):
        return None
    from ckpt_surgery.cli.hints import where_option_is

    return where_option_is(error.option_name, group, context)


def say_failure(what: str, hint: str | None, color: ColorChoice) -> None:
    """Say on standard error what went wrong, and what to do about it."""
    _say("error:", what, ERROR, color)
    if hint:
        _say("hint:", hint, HINT, color)


def _say(kind: str, text: str, style: str, color: ColorChoice) -> None:
    brief = _LONG_NAME.sub(lambda match: f"'{shorten(match[1])}'", text)
    line = _wrapped(f"{kind} {printable(brief, _LONGEST_MESSAGE)}")
    if sys.stderr is not None and wants_color(sys.stderr, color):
        line = f"{style}{kind}{PLAIN}{line[len(kind) :]}"
    _write_error_stream(f"{line}\n")


def _wrapped(line: str) -> str:
    """Return a line as a report's stands on a terminal: broken between words, nowhere else."""
    try:
        if sys.stderr is None or not sys.stderr.isatty():
            return line
    except ValueError:  # closed
        return line
    from ckpt_surgery.render.layout import columns_of, hanging

    return hanging(line, columns_of(sys.stderr))


def _say_traceback(error: BaseException) -> None:
    import traceback

    for block in traceback.format_exception(error):
        for line in block.rstrip("\n").split("\n"):
            _write_error_stream(visible(line) + "\n")


def _write_error_stream(text: str) -> None:
    """Best effort: if standard error is closed or full, there is nobody left to tell."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def _discard(stream: TextIO | None) -> None:
    """Send what `stream` still holds to nowhere, so that the interpreter's end stays quiet."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()  # type: ignore[union-attr]  # None is the AttributeError
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _occupy_standard_descriptors() -> None:
    """Open nowhere on closed standard descriptors: a file opened there would be printed into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _escape_what_cannot_be_encoded(stream: TextIO | None) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        with suppress(OSError, ValueError):
            reconfigure(errors="backslashreplace")


_ends_at_once: list[Callable[[int, FrameType | None], Any]] = []


def take_over_from(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Let an interrupt that `handler` would end at once be an exception while a command runs."""
    _ends_at_once.append(handler)


@contextmanager
def _ending_signals_raise() -> Iterator[None]:
    """SIGTERM and a lost terminal as exceptions, unless someone (nohup) wants them otherwise.

    So is an interrupt meanwhile; before and after, where nothing is half done, it just ends.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise _Terminated(number)

    changed: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread, which alone gets signals
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                changed[number] = signal.signal(number, end)
        if signal.getsignal(signal.SIGINT) in _ends_at_once:
            changed[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
