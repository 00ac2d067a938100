"""Giving every tensor only the bytes that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ckpt_surgery.checkpoint.compact import compact
from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Compact(Edit):
    """Give every tensor only the bytes that it uses; true ties and overlaps stay.

    `unused_nbytes` are those that no tensor used when it was planned.
    """

    kind: ClassVar[str] = "compact"
    unused_nbytes: int

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with its storages cut to what is used."""
        return compact(checkpoint)
