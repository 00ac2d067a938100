"""Where the command starts: from its import on an interrupt gives no traceback.

Only what starts the command imports it, since that sets the handler. Nothing is imported before
but what the interpreter has anyway: `signal`, with the `enum` that it needs, takes longer than all
that comes before it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` wraps, a part of the interpreter
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 130  # as shells count an end by SIGINT


def _leave_interrupted(_number: int = 0, _frame: FrameType | None = None) -> NoReturn:
    """Handle SIGINT where nothing is half done: say so and leave at once."""
    try:  # noqa: SIM105 - contextlib would be one more import before there is a handler
        os.write(2, b"error: interrupted\n")
    except OSError:
        pass
    os._exit(_INTERRUPTED)


# a process that was started in the background ignores them
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _leave_interrupted)


def run() -> NoReturn:
    """Run the command line in a process of its own; `boundary` takes interrupts over meanwhile."""
    from ckpt_surgery.cli import boundary, main

    boundary.take_over_from(_leave_interrupted)
    main.run()
