"""The change of format that writing a checkpoint brings about."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.formats import registry
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.target import without
from ckpt_surgery.writing.write import Written


@dataclass(frozen=True, slots=True)
class Convert(Edit):
    """Make of a checkpoint in the format `old` one in the format `new`.

    What the new format has no place for goes; what it refuses goes with `allow_loss`, and
    without it keeps the checkpoint from being written.
    """

    kind: ClassVar[str] = "convert"
    old: str
    new: str
    allow_loss: bool = False

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint as the new format holds it, whatever format it is of."""
        target = registry.get(self.new)
        losses = [x for x in target.losses(checkpoint) if self.allow_loss or not x.refused]
        return replace(without(checkpoint, losses), format=target.name, modules={})


def conversion(before: str, written: Written) -> tuple[Edit, ...]:
    """Return the edits that writing took, from the format `before`; none if nothing changed."""
    allowed = any(loss.refused for loss in written.losses)
    texts = set_metadata(written)
    if before == written.format and not allowed:
        return texts
    return (Convert(before, written.format, allow_loss=allowed), *texts)


def set_metadata(written: Written) -> tuple[Edit, ...]:
    """Return the edit that puts texts beside the tensors, if any were given."""
    if not written.metadata:
        return ()
    from ckpt_surgery.edits.metadata import SetMetadata

    return (SetMetadata(written.metadata),)
