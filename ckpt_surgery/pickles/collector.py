"""Python's garbage collector, which walks over everything there is while much is being made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

freezes = False
"""Whether what was made meanwhile is never looked at again, nor anything made before. For a process
that runs one command: in somebody else's it would keep their garbage too."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection meanwhile: for making many objects of which none is garbage before the end."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if freezes:
                gc.freeze()
            gc.enable()
