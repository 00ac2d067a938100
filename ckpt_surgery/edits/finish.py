"""What is done to any checkpoint last, as its output says: devices, plain values."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.writing.output import Output


def finishing(checkpoint: Checkpoint, output: Output) -> tuple[Checkpoint, tuple[Edit, ...]]:
    """Return the checkpoint as it is to be written, and the edits that make it that."""
    if not output.plain and output.device is None:
        return checkpoint, ()
    edits = tuple(_edits(checkpoint, output))
    return Plan(edits).apply(checkpoint), edits


def _edits(checkpoint: Checkpoint, output: Output) -> Iterator[Edit]:
    if output.plain:
        from ckpt_surgery.edits.plain import plan_plain

        yield from plan_plain(checkpoint)
    if output.device is not None:
        from ckpt_surgery.edits.device import plan_device

        yield from plan_device(checkpoint, output.device)
