"""Giving every tensor only the bytes that it uses."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

from ckpt_surgery.checkpoint.compact import compact, find_pieces, unused_nbytes
from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Compact(Edit):
    """Give every tensor only the bytes that it uses; true ties stay, and overlaps as well.

    With `break_views` none overlaps another any longer: each has its own bytes. What follows is
    what it was when it was planned: `unused_nbytes` no tensor used, `kept_nbytes` of these stay
    (between views that overlap, or in one that overlaps itself), and `copied_nbytes` are there
    more often than before, since each broken view has them.
    """

    kind: ClassVar[str] = "compact"
    unused_nbytes: int
    kept_nbytes: int = 0
    break_views: bool = False
    copied_nbytes: int = 0

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with its storages cut to what is used."""
        return compact(checkpoint, break_views=self.break_views)


def plan_compact(checkpoint: Checkpoint, *, break_views: bool = False) -> Compact:
    """Return the edit with the numbers that are true of this checkpoint."""
    after = compact(checkpoint, break_views=break_views)
    return Compact(
        unused_nbytes(checkpoint),
        unused_nbytes(after),
        break_views,
        _used_nbytes(after) - _used_nbytes(checkpoint),
    )


def with_true_numbers(checkpoint: Checkpoint, planned: Planned) -> Planned:
    """Return the plan with what its compaction drops, keeps and breaks after the edits before it.

    Broken views are named in a warning: what is written to one is seen in no other any longer.
    """
    edits = planned.plan.edits
    places = [place for place, edit in enumerate(edits) if isinstance(edit, Compact)]
    if not places:
        return planned
    (place,) = places
    before = Plan(edits[:place]).apply(checkpoint)
    breaks = any(isinstance(edit, Compact) and edit.break_views for edit in edits)
    edit = plan_compact(before, break_views=breaks)
    plan = Plan((*edits[:place], edit, *edits[place + 1 :]))
    warnings = (_broken(before),) if breaks else ()
    return replace(planned, plan=plan, warnings=(*planned.warnings, *warnings))


def _used_nbytes(checkpoint: Checkpoint) -> int:
    return sum(piece.used_nbytes for piece in find_pieces(checkpoint.all_tensors))


def _broken(checkpoint: Checkpoint) -> str:
    """Return what is said of the views that do not overlap any longer."""
    pieces = [piece for piece in find_pieces(checkpoint.all_tensors) if piece.overlaps]
    broken = {tensor.identity for piece in pieces for tensor in piece.tensors}
    if not broken:
        return "no views overlap: there are none to be broken"

    def is_broken(tensor: Tensor) -> bool:
        return any(part.identity in broken for part in tensor.strided_parts())

    names = [name for name, tensor in checkpoint.tensors if is_broken(tensor)]
    beside = sum(map(is_broken, checkpoint.all_tensors)) - len(names)
    listed = [f"'{name}'" for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        listed.append(f"{len(names) - _MOST_NAMED} more")
    if beside:
        listed.append(f"{beside} beside the weights")
    return f"views that overlapped have bytes of their own: {', '.join(listed)}"
