"""The files that edits take from, beside the checkpoint that they edit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import PlanError
from ckpt_surgery.fileio import Source

_T = TypeVar("_T")


class Inputs:
    """Checkpoints by the names that a plan calls their files by.

    Those of `known` are the caller's, who closes them, and `named` are by other names than their
    files'; any other is opened by `read` when it is first asked for, and stays open until `close`.
    One name is always one checkpoint, whose storages are then shared wherever it is taken from.
    """

    def __init__(
        self,
        known: Iterable[Checkpoint] = (),
        *,
        named: Mapping[str, Checkpoint] | None = None,
        read: Callable[[str], Checkpoint] | None = None,
    ) -> None:
        self._found: dict[str, Checkpoint] = dict(named or {})
        for checkpoint in known:
            self._found.setdefault(checkpoint.file.name, checkpoint)
        self._read = read
        self._made: dict[Hashable, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that were opened here."""
        self._stack.close()

    def __getitem__(self, file: str) -> Checkpoint:
        """Return the checkpoint in the file of that name.

        Raises `PlanError` if it is not known and may not be opened, and what `read` raises.
        """
        if file not in self._found:
            if self._read is None:
                raise PlanError("the plan takes from a file that is not given", path=file)
            self._found[file] = self._stack.enter_context(self._read(file))
        return self._found[file]

    @property
    def names(self) -> tuple[str, ...]:
        """What those are called that were asked for, or are known."""
        return tuple(self._found)

    @property
    def sources(self) -> list[Source]:
        """What is open."""
        return [source for found in self._found.values() for source in found.sources]

    def recall(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what was made for `key`, which `make` makes the first time (a target model)."""
        if key not in self._made:
            self._made[key] = make()
        found: _T = self._made[key]
        return found

    def keep(self, key: Hashable, made: object) -> None:
        """Let `recall` return what its caller made already."""
        self._made[key] = made
