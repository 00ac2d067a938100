"""The checkpoints that a recipe works on, by the names that it calls them by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.formats import read
from ckpt_surgery.writing.settle import settle


@dataclass(slots=True)
class _Item:
    """A checkpoint as edits left it, and as the next step would read it (None: not asked yet)."""

    edited: Checkpoint
    settled: Checkpoint | None


@dataclass(slots=True)
class Work:
    """Checkpoints by name. Files that no name stands for are opened when they are asked for.

    `code` are the files of the models that steps built.
    """

    code: list[Role] = field(default_factory=list)
    _items: dict[str, _Item] = field(default_factory=dict)
    _files: Inputs = field(default_factory=lambda: Inputs(read=read))
    _inputs: Inputs | None = None

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def put_input(self, name: str, checkpoint: Checkpoint) -> None:
        """Know a checkpoint that was just read."""
        self._items[name] = _Item(checkpoint, checkpoint)

    def put(self, name: str, checkpoint: Checkpoint) -> None:
        """Know a checkpoint that edits made; a new step begins."""
        self._items[name] = _Item(checkpoint, None)
        self._inputs = None

    def edited(self, name: str) -> Checkpoint:
        """Return a checkpoint to be written, as its last edit left it."""
        return self._items[name].edited

    def is_settled(self, name: str) -> bool:
        """Return whether nothing was done to the checkpoint since it was read, or settled."""
        return self._items[name].settled is not None

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __getitem__(self, name: str) -> Checkpoint:
        """Return a checkpoint as it would be read now, or that of the file of that name."""
        item = self._items.get(name)
        if item is None:
            return self._files[name]
        if item.settled is None:
            item.settled = settle(item.edited)
        return item.settled

    @property
    def inputs(self) -> Inputs:
        """What the edits of the present step take from: checkpoints and files by their names."""
        if self._inputs is None:
            self._inputs = Inputs(read=self.__getitem__)
        return self._inputs

    @property
    def files(self) -> tuple[str, ...]:
        """The files that were asked for, which no name stands for."""
        return self._files.names

    @property
    def sources(self) -> Iterator[Source]:
        """What bytes may come from."""
        for item in self._items.values():
            yield from item.edited.sources
        yield from self._files.sources
