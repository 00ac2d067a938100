"""Whether output is coloured, and the few styles there are: readable on light and on dark."""

from __future__ import annotations

import os
from typing import Final, Literal, TextIO

ColorChoice = Literal["auto", "always", "never"]
COLOR_CHOICES: Final[tuple[ColorChoice, ...]] = ("auto", "always", "never")

# No yellow, which is hard to read on white, and no grey, which is hard to read on either.
WARNING: Final = "magenta"
ERROR: Final = "\x1b[1;31m"
HINT: Final = "\x1b[36m"
PLAIN: Final = "\x1b[0m"


def wants_color(stream: TextIO, choice: ColorChoice = "auto") -> bool:
    """Return whether `stream` gets colours.

    `choice` decides, then NO_COLOR (https://no-color.org), then FORCE_COLOR, then whether the
    stream is a terminal that is not dumb.
    """
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
