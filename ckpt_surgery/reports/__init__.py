"""What a command did or found, as data: rendered by `render`, or printed as JSON.

One module a kind of command, so that none waits for the others' classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.errors import CkptError

_SCHEMA = 1


def once(remarks: Iterable[str]) -> tuple[str, ...]:
    """Return remarks in their order, each once: several files or state dicts give rise to one."""
    return tuple(dict.fromkeys(remarks))


class Report(Protocol):
    """The result of a command."""

    @property
    def exit_code(self) -> int:
        """0 done; 1 the answer is no."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of the report: the `envelope`, and fields of its own."""


def envelope(
    command: str,
    *,
    exit_code: int,
    inputs: Iterable[str],
    output: str | None = None,
    warnings: Iterable[str] = (),
) -> dict[str, Any]:
    """Return what every document begins with, whatever command it is of.

    `inputs` are the names of the files that were read, `output` is that of the file that was
    written, None if none was. ``schemas/`` beside this module describes every document.
    """
    from ckpt_surgery.startup.version import __version__

    return {
        "schema": _SCHEMA,
        "command": command,
        "version": __version__,
        "exit_code": exit_code,
        "inputs": list(inputs),
        "output": output,
        "warnings": list(warnings),
    }


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that a command for several files could not read; the others were not stopped."""

    file: str
    message: str
    entry: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: CkptError, file: str) -> Failure:
        """Return what is said of `error`, which arose while `file` was read."""
        named = file if error.file is None else error.file
        return cls(named, error.message, error.entry, error.hint)

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "entry": self.entry,
            "message": self.message,
            "hint": self.hint,
        }
