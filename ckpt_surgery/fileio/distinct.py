"""No output is ever an input: files told apart by what they are, not by what they are called."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ckpt_surgery.errors import PathLike, WriteError
from ckpt_surgery.fileio.sources import Source
from ckpt_surgery.startup.lazy_dataclass import dataclass

INPUT: Final = "the input"
OUTPUT: Final = "the output"
_HINT: Final = "name another file: what is read is never written over"


@dataclass(frozen=True, slots=True)
class Role:
    """What a file is to a command: `what` names it in a message, `place` says where it is.

    A place is a path, a descriptor, or a file that is open.
    """

    what: str
    place: PathLike | int | Source

    @property
    def name(self) -> str:
        """What messages call the file."""
        if isinstance(self.place, int):
            return f"<descriptor {self.place}>"
        return str(self.place) if isinstance(self.place, str | os.PathLike) else self.place.name


def require_distinct(
    outputs: Iterable[Role], inputs: Iterable[Role], *, may_replace: bool = True
) -> None:
    """Raise `WriteError` if an output is one of the inputs, or another output.

    Links are followed, so that neither a symbolic nor a hard link hides an input, and a directory
    may not be replaced that an input lies in. Terminals, null devices and pipes may be both.
    `may_replace` says whether the command can replace its input, which the hint then names.
    """
    taken: dict[object, Role] = {}
    folders: dict[object, Role] = {}
    for each in inputs:
        for identity in _identities(each.place):
            taken.setdefault(identity, each)
            for folder in _folders(each.place):
                folders.update(dict.fromkeys(_identities(folder), each))
    for output in outputs:
        for identity in _identities(output.place):
            other = taken.setdefault(identity, output)
            if other is not output:
                replaces = may_replace and (output.what, other.what) == (OUTPUT, INPUT)
                raise WriteError(
                    f"{output.what} is {other.what}",
                    path=output.name,
                    hint="give --in-place to replace the input" if replaces else _HINT,
                )
            if identity in folders:
                inside = folders[identity]
                raise WriteError(
                    f"is a directory, and {inside.what} lies in it", path=output.name, hint=_HINT
                )


def _identities(place: PathLike | int | Source) -> list[object]:
    """Return what two names of one file have in common: its inode;
    for a file to be, its real path.
    """
    if not isinstance(place, str | os.PathLike | int):
        return [] if place.identity is None else [place.identity]
    try:
        status = os.stat(place)  # noqa: PTH116
    except FileNotFoundError:
        return [] if isinstance(place, int) else [os.path.realpath(place)]
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return []
    known = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return [(status.st_dev, status.st_ino)] if known else []


def _folders(place: PathLike | int | Source) -> Iterator[Path]:
    """Yield the directories, links followed, that a file lies in."""
    if not isinstance(place, int):
        path = place if isinstance(place, str | os.PathLike) else place.path
        if path is not None:
            yield from Path(os.path.realpath(path)).parents
