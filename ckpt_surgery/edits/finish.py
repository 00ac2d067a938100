"""What is done to any checkpoint last, as its output says: devices, plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.fileio import Source
from ckpt_surgery.writing.output import Output


def finishing(
    checkpoint: Checkpoint,
    output: Output,
    command: str,
    done: Sequence[Edit] = (),
    sources: Iterable[Source] = (),
) -> tuple[Checkpoint, tuple[Edit, ...]]:
    """Return the checkpoint as it is to be written, and the edits that make it that.

    `command` is what was asked for, `done` the edits that it took, `sources` are files that they
    took from beside the checkpoint's own: what its provenance says, if that is to be kept.
    """
    if not output.plain and output.device is None and not output.provenance:
        return checkpoint, ()
    edits = tuple(_edits(checkpoint, output))
    if output.provenance:
        from ckpt_surgery.edits.provenance import provenance

        edits = (*edits, provenance(checkpoint, command, (*done, *edits), sources))
    return Plan(edits).apply(checkpoint), edits


def _edits(checkpoint: Checkpoint, output: Output) -> Iterator[Edit]:
    if output.plain:
        from ckpt_surgery.edits.plain import plan_plain

        yield from plan_plain(checkpoint)
    if output.device is not None:
        from ckpt_surgery.edits.device import plan_device

        yield from plan_device(checkpoint, output.device)
