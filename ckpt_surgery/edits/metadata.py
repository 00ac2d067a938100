"""Texts that a file keeps beside its tensors: ``__metadata__`` of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.formats.safetensors import METADATA


@dataclass(frozen=True, slots=True)
class SetMetadata(Edit):
    """Put texts beside the tensors by their keys, in the place of what those keys had."""

    kind: ClassVar[str] = "set-metadata"
    values: Mapping[str, str]

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the texts; all others stay."""
        kept = next((other.value for other in checkpoint.others if other.path == METADATA), None)
        texts = Other(METADATA, "dict", {**(kept or {}), **self.values})
        rest = (other for other in checkpoint.others if other.path != METADATA)
        return replace(checkpoint, others=(*rest, texts))
