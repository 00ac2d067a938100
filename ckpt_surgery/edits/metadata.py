"""Texts that a file keeps beside its tensors: ``__metadata__`` of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.errors import PlanError
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class SetMetadata(Edit):
    """Put texts beside the tensors by their keys, in the place of what those keys had.

    Those under the keys `removed` are taken away first.
    """

    kind: ClassVar[str] = "set-metadata"
    values: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the texts; all others stay.

        Raises `PlanError` for a key to remove that is not there.
        """
        kept = dict(metadata_texts(checkpoint) or {})
        for key in self.removed:
            if key not in kept:
                raise PlanError(
                    f"the metadata has no '{key}'",
                    path=checkpoint.file.name,
                    hint=near_hint(key, kept),
                )
            del kept[key]
        texts = Other(METADATA, "dict", {**kept, **self.values})
        rest = (other for other in checkpoint.others if other.path != METADATA)
        return replace(checkpoint, others=(*rest, texts))


def metadata_texts(checkpoint: Checkpoint) -> Mapping[str, str] | None:
    """Return the texts that a file of safetensors keeps; None if there are none."""
    for other in checkpoint.others:
        if other.path == METADATA and other.node is None and isinstance(other.value, Mapping):
            return other.value
    return None
