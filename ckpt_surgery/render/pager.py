"""Long reports on a terminal go through the user's pager, as git's do."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

_DEFAULT: Final = "less"
# less: leave at once what fits, pass colours through, do not clear the screen
_LESS: Final = "FRX"


def pager_command() -> list[str]:
    """Return the pager's command line; empty if there is none.

    ``PAGER`` says which (``cat`` or nothing: none); otherwise it is ``less``, if that is there.
    """
    wanted = os.environ.get("PAGER", _DEFAULT)
    try:
        command = shlex.split(wanted)
    except ValueError:
        return []
    if not command or command == ["cat"] or shutil.which(command[0]) is None:
        return []
    return command


def page(text: str, stream: TextIO, *, lines: int) -> None:
    """Write `text` to `stream`, a terminal of `lines` lines: through the pager if it is longer."""
    command = pager_command() if text.count("\n") >= lines else []
    if not command or not _through(command, text):
        stream.write(text)
        stream.flush()


def _through(command: list[str], text: str) -> bool:
    """Show `text` with `command`; return False if it could not be started."""
    environment = {"LESS": _LESS, **os.environ}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, encoding="utf-8", errors="replace"
        )
    except OSError:
        return False
    with _interrupts_are_the_pagers(), suppress(BrokenPipeError):  # left before the end
        process.communicate(text)
    return True


@contextmanager
def _interrupts_are_the_pagers() -> Iterator[None]:
    """Let Ctrl-C speak to the pager alone, which stops a search with it."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which gets no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
