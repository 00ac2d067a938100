"""The boundary between two steps that are carried out at once."""

from __future__ import annotations

from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.settle import settle


@dataclass(frozen=True, slots=True)
class Settle(Edit):
    """Go on with what reading would give if the checkpoint was written here."""

    kind: ClassVar[str] = "settle"

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint as it would be read again."""
        return settle(checkpoint)
