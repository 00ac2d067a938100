"""Lists of names and remarks: bounded on a terminal, whole anywhere else.

What people scroll past is cut to some; a pipe, a file or a pager's input gets everything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ckpt_surgery.render.color import WARNING
from ckpt_surgery.render.text import printable

if TYPE_CHECKING:
    from ckpt_surgery.render.screen import Screen

_LONGEST_NOTE: Final = 500  # characters
_ALL: Final = sys.maxsize


def below(lines: Iterable[str], most: int = _ALL) -> Iterator[str]:
    """Yield the lines one by one, indented, and how many there are beyond `most`."""
    listed = list(lines)
    yield from (f"  {line}" for line in listed[:most])
    if len(listed) > most:
        yield f"  … and {len(listed) - most:,} more"


def in_one_line(paths: Sequence[str], most: int = _ALL) -> str:
    """Return the paths with commas between them, and how many there are beyond `most`."""
    shown = ", ".join(printable(path) or "(top level)" for path in paths[:most])
    more = len(paths) - most
    return f"{shown} and {more:,} more" if more > 0 else shown


def show_warnings(warnings: Iterable[str], screen: Screen) -> None:
    """Print a line for each warning."""
    for warning in warnings:
        screen.line(f"warning: {printable(warning, screen.most(_LONGEST_NOTE))}", WARNING)


def holds_already(output: str) -> str:
    """Return the remark of an output that was left as it was."""
    return f"'{output}' holds this already"


def written_to(output: str, warnings: Sequence[str]) -> str:
    """Say where the result is; of one that was there before `warnings` tell it."""
    same = holds_already(output) in warnings
    return f"{printable(output)} is as it was" if same else f"written to {printable(output)}"
