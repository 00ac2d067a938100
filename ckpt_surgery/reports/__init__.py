"""What a command did or found, as data: rendered by `render`, or printed as JSON.

One module a kind of command, so that none waits for the others' classes.
"""

from __future__ import annotations

from typing import Any, Protocol

SCHEMA = 1


class Report(Protocol):
    """The result of a command."""

    @property
    def exit_code(self) -> int:
        """0 done; 1 the answer is no."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of the report."""
