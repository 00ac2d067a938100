"""Writing one state dict alone."""

from __future__ import annotations

from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import alone
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import state_dict_at
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class OnlyStateDict(Edit):
    """Make the state dict at `path` the whole file."""

    kind: ClassVar[str] = "only-state-dict"
    path: str

    def path_after(self, path: str) -> str | None:
        """Return the top level for that state dict, and None for all else."""
        return "" if path == self.path else None

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return a checkpoint of that state dict and nothing beside it."""
        return alone(checkpoint, state_dict_at(checkpoint, self.path))
