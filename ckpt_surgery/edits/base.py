"""What an edit is: one frozen class that carries itself out and knows its own form in JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, Self

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.fields import fields_from_json, fields_to_json
from ckpt_surgery.edits.inputs import Inputs


class Edit(ABC):
    """One change of a checkpoint. A kind is a frozen dataclass with slots, in `registry.KINDS`.

    Its fields hold texts, numbers, None, tuples, mappings and dataclasses of these; they are its
    form in JSON, where `old` and `new` are called ``from`` and ``to`` and what has its default is
    left out.
    """

    __slots__ = ()
    kind: ClassVar[str]

    @abstractmethod
    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint after this edit; the one given stays as it is.

        Raises `PlanError` if it speaks of something that is not there.
        """

    def path_after(self, path: str) -> str | None:
        """Return where what was at `path`, a state dict or another entry, lies now; None: nowhere.

        What goes for other reasons than its path is not known here.
        """
        return path

    @classmethod
    def paths_after(cls, run: Sequence[Self], paths: Sequence[str | None]) -> list[str | None]:
        """Return where what was at each of `paths` lies after several edits of this kind."""
        found = list(paths)
        for edit in run:
            found = [None if path is None else edit.path_after(path) for path in found]
        return found

    @classmethod
    def apply_all(cls, run: Sequence[Self], checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint after several edits of this kind that follow each other."""
        return reduce(lambda done, edit: edit.apply(done, inputs), run, checkpoint)

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as JSON has it: ``{"edit": "rename", "from": …, "to": …}``."""
        return {"edit": self.kind, **fields_to_json(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the edit that `to_dict` wrote. Raises `TypeError` for anything else."""
        return fields_from_json(cls, {name: v for name, v in fields.items() if name != "edit"})


class BatchEdit(Edit):
    """An edit of which a run is judged as one, so that a plan of thousands takes linear time."""

    __slots__ = ()

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint after this edit alone."""
        return self.apply_all([self], checkpoint, inputs)

    @classmethod
    @abstractmethod
    def apply_all(cls, run: Sequence[Self], checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint after the whole run."""
