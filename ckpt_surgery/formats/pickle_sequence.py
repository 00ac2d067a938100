"""Pickles that follow each other in a file, with raw bytes between them, read through windows."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.pickles import (
    Global,
    Limits,
    Node,
    Object,
    Parsed,
    PersistentId,
    TruncatedPickleError,
    parse,
)

MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch before 1.6."""
PROTOCOL_VERSION: Final = 1001
"""The second."""

_FIRST_WINDOW: Final = 1 << 20
_GROWTH: Final = 4


def _nothing() -> None:
    pass


class PickleSequence:
    """Reads `part` of a file from its start on: a pickle, a number, raw bytes, in any order.

    Where a pickle ends is known only once it is parsed, so it is read in a window of `window`
    bytes that grows until the pickle fits; the tensor bytes behind it are not read for its sake.
    """

    def __init__(self, part: ByteRange, limits: Limits, *, window: int = _FIRST_WINDOW) -> None:
        self._part = part
        self._limits = limits
        self._window = window
        self._data = b""
        self._base = 0
        self.position = 0
        # Names of classes and functions in all pickles read so far.
        self.globals: list[Global] = []
        # Calls that those pickles make and whose results they throw away.
        self.lost: list[Object] = []
        # Their rarer opcodes.
        self.opcodes: set[int] = set()

    @property
    def file(self) -> Source:
        return self._part.source

    @property
    def remaining(self) -> int:
        """Bytes that have not been read or taken yet."""
        return self._part.nbytes - self.position

    def pickle(
        self,
        persistent_load: Callable[[Node], Node] = PersistentId,
        *,
        restart: Callable[[], None] = _nothing,
    ) -> Parsed:
        """Return the pickle at the current position, which moves behind it.

        `restart` is called before each attempt to parse: `persistent_load` must then forget what
        it was given so far. Raises `DamagedFileError` if the pickle is truncated or malformed,
        `LimitExceededError` if it is larger than the limits allow.
        """
        limit = self._limits.pickle_bytes
        nbytes = self._held or self._fill(min(self._window, limit))
        while True:
            restart()
            try:
                parsed = parse(
                    self._data,
                    start=self.position - self._base,
                    limits=self._limits,
                    persistent_load=persistent_load,
                )
            except TruncatedPickleError as error:
                if nbytes >= self.remaining:
                    raise self._damaged("the file ends inside a pickle") from error
                if nbytes >= limit:
                    raise LimitExceededError(
                        f"a pickle is longer than {limit} bytes", entry=self._entry()
                    ) from error
                nbytes = self._fill(min(max(nbytes * _GROWTH, self._window), limit))
            except CkptError as error:
                self._locate(error)
                raise
            else:
                self.position = self._base + parsed.end
                self.globals += parsed.globals
                self.lost += parsed.lost
                self.opcodes |= parsed.rare
                return parsed

    def not_in_graphs(self) -> str:
        """Return what of the pickles is not in the graphs made of them; empty if nothing."""
        if not self.lost:
            return ""
        return f"a pickle calls '{self.lost[0].name}' and throws the result away"

    def unpack(self, layout: str) -> tuple[int, ...]:
        """Integers in the layout of a `struct` format. Raises `DamagedFileError` if truncated."""
        nbytes = struct.calcsize(layout)
        if nbytes > self.remaining:
            raise self._damaged("the file ends inside a header")
        start = self.position - self._base
        if start + nbytes <= len(self._data):
            data = self._data[start : start + nbytes]
        else:
            data = self.file.read_at(self._part.offset + self.position, nbytes)
        self.position += nbytes
        return struct.unpack(layout, data)

    def take(self, nbytes: int, entry: str) -> ByteRange:
        """Return the next `nbytes` bytes as a range, unread. Raises
        `DamagedFileError` if truncated.
        """
        if nbytes > self.remaining:
            raise DamagedFileError(
                f"needs {nbytes} bytes, but only {self.remaining} are left",
                entry=entry,
                hint="the file is truncated",
            )
        taken = self._part.slice(self.position, nbytes)
        self.position += nbytes
        return taken

    @property
    def _held(self) -> int:
        """Bytes from the position on that are in memory."""
        return max(self._base + len(self._data) - self.position, 0)

    def _fill(self, nbytes: int) -> int:
        """Read the next `nbytes` bytes, or what is left, into memory; how many they are."""
        nbytes = min(nbytes, self.remaining)
        self._data = self.file.read_at(self._part.offset + self.position, nbytes)
        self._base = self.position
        return nbytes

    def _locate(self, error: CkptError) -> None:
        """Let `error`, which counts bytes from the start of the window, count them in the file."""
        what, _, number = (error.entry or "").partition(" ")
        if what == "byte" and number.isdigit():
            error.entry = f"byte {int(number) + self._part.offset + self._base}"

    def _entry(self) -> str:
        return f"byte {self._part.offset + self.position}"

    def _damaged(self, message: str) -> DamagedFileError:
        return DamagedFileError(message, entry=self._entry(), hint="the file is truncated")
