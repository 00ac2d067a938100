"""Every way `ckpt` can refuse or fail.

CkptError
├── UsageError              options contradict each other; a rule matches nothing
├── ReadError
│   ├── UnknownFormatError      nobody recognises the file
│   ├── DamagedFileError        recognised, but breaks its format's rules
│   └── LimitExceededError      larger or deeper than `Limits` allow
├── PlanError
│   ├── NameCollisionError      two entries would get one name
│   ├── LossyEditError          the target cannot hold something
│   ├── MismatchError           inputs that should agree differ: shapes, integers, kinds of type
│   └── NonFiniteError          an input to arithmetic holds NaN or infinity
├── ConstructionError       a model's own code raised, or made no model that can be described
├── WriteError              output exists, is the input, no space, not permitted
└── MissingDependencyError  this command needs torch or torchvision

The library raises these; only the command line turns them into messages and exit codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PathLike = str | os.PathLike[str]


class CkptError(Exception):
    """What went wrong, where, and what to do about it.

    `file` is the file as it was named, `path` the same as a path, and `entry` the record, key or
    byte position inside it; `hint` is one sentence of advice. The message is lower case, without a
    full stop, with names in quotes. As text, the entry stands before the message unless that names
    it. `fields` are the fields of a request that both speak of, in quotes, as Python calls them;
    the command line puts the options in their place.
    """

    def __init__(
        self,
        message: str,
        *,
        path: PathLike | None = None,
        entry: str | None = None,
        hint: str | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if path is None else os.fspath(path)
        self.entry = entry
        self.hint = hint
        self.fields = fields

    def name_file(self, path: PathLike) -> None:
        """Say which file it was about, where the one who raised it could not know."""
        self.file = os.fspath(path)

    @property
    def path(self) -> Path | None:
        """The file that it was about."""
        from pathlib import Path  # not for a command that succeeds

        return None if self.file is None else Path(self.file)

    def __str__(self) -> str:
        where = " ".join(
            part
            for part in (
                f"'{self.file}'" if self.file is not None else "",
                f"({self.entry})"
                if self.entry is not None and f"'{self.entry}'" not in self.message
                else "",
            )
            if part
        )
        return f"{where}: {self.message}" if where else self.message


@contextmanager
def about_file(path: PathLike) -> Iterator[None]:
    """Let the errors that arise in the block name the file `path`, unless they name one."""
    try:
        yield
    except CkptError as error:
        if error.file is None:
            error.name_file(path)
        raise


class UsageError(CkptError):
    """The request makes no sense: options contradict each other, or a rule matches nothing."""


class ReadError(CkptError):
    """The input cannot be read."""


class UnknownFormatError(ReadError):
    """The content is of no known checkpoint format."""


class DamagedFileError(ReadError):
    """The format is recognised, but the file breaks its rules: truncated, corrupt or hostile."""


class LimitExceededError(ReadError):
    """The file is larger or deeper than `Limits` allow."""


class PlanError(CkptError):
    """The edits cannot be carried out on this checkpoint."""


class NameCollisionError(PlanError):
    """Two entries would get the same name."""


class LossyEditError(PlanError):
    """The target cannot hold something that the source has."""


class MismatchError(PlanError):
    """Inputs that should agree differ: in shape, in integer values, or in kind of element type."""


class NonFiniteError(PlanError):
    """An input to arithmetic holds NaN or infinity."""


class ConstructionError(CkptError):
    """A model's own code raised, returned no module, or made one that cannot be described."""


class WriteError(CkptError):
    """The output cannot be written: it exists, it is the input, no space, not permitted."""


class MissingDependencyError(CkptError):
    """A package that the command needs is not installed."""
