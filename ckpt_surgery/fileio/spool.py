"""Copy a stream, which can be read only once, to a file that can be read by position."""

from __future__ import annotations

import io
import os
import select
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio.os_errors import cannot

_AT_ONCE: Final = 1 << 20


def spool(stream: BinaryIO | io.RawIOBase, name: str) -> int:
    """Return the descriptor of an anonymous temporary file with what is left in `stream`.

    Raises ReadError if the stream cannot be read or the copy finds no space.
    """
    try:
        with tempfile.TemporaryFile(buffering=0) as copy:
            for data in _pieces(stream, name):
                view = memoryview(data)
                while view:
                    view = view[os.write(copy.fileno(), view) :]
            return os.dup(copy.fileno())
    except OSError as error:
        raise ReadError(
            cannot("be copied to a temporary file", error),
            path=name,
            hint="set TMPDIR to a directory with enough space, or name a file instead of a pipe",
        ) from error


def _pieces(stream: BinaryIO | io.RawIOBase, name: str) -> Iterator[bytes]:
    while True:
        try:
            data = stream.read(_AT_ONCE)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise ReadError(cannot("be read", error), path=name) from error
        if data is None:  # a pipe that somebody made non-blocking, and that is empty
            select.select([stream], [], [])
        elif data:
            yield data
        else:
            return
