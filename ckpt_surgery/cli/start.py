"""Where the command starts: from here on an interrupt gives no traceback.

Nothing is imported before that but what the interpreter has anyway.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 130  # as shells count an end by SIGINT


def leave_interrupted(_number: int = 0, _frame: FrameType | None = None) -> NoReturn:
    """Handle SIGINT where nothing is half done: say so and leave at once."""
    try:  # noqa: SIM105 - contextlib would be one more import before there is a handler
        os.write(2, b"error: interrupted\n")
    except OSError:
        pass
    os._exit(_INTERRUPTED)


try:
    import signal
except KeyboardInterrupt:
    leave_interrupted()


def run() -> NoReturn:
    """Run the command line in a process of its own; `boundary` takes interrupts over."""
    # a process that was started in the background ignores them
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_interrupted)
    from ckpt_surgery.cli import main

    main.run()
