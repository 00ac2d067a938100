"""A progress bar for writes that take long enough to wonder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

from ckpt_surgery.render.color import ColorChoice, wants_color

if TYPE_CHECKING:
    from rich.progress import Progress

_DELAY: Final = 0.5  # seconds before a bar appears


class _Bar:
    """Counts bytes, whichever thread tells of them, and shows them once `_DELAY` has passed."""

    def __init__(self, total: int, *, color: ColorChoice) -> None:
        self._total = total
        self._color = color
        self._written = 0
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._lock = Lock()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._written += nbytes
            if self._progress is not None:
                self._progress.update(self._progress.task_ids[0], completed=self._written)
            elif time.monotonic() - self._started >= _DELAY:
                self._progress = _start(self._total, self._written, color=self._color)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def progress_bar(
    *, color: ColorChoice = "auto"
) -> Callable[[int], AbstractContextManager[Callable[[int], object]]] | None:
    """Return a bar on standard error for a known number of bytes; None if that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None

    @contextmanager
    def show(total: int) -> Iterator[Callable[[int], object]]:
        bar = _Bar(total, color=color)
        try:
            yield bar.advance
        finally:
            bar.stop()

    return show


def _start(total: int, written: int, *, color: ColorChoice) -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ckpt_surgery.render.screen import console

    progress = Progress(
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(sys.stderr, color=wants_color(sys.stderr, color)),
        transient=True,
    )
    progress.add_task("working", total=total, completed=written)
    progress.start()
    return progress
