"""Moments of an optimizer, put elsewhere as the elements of their parameter were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor
from ckpt_surgery.compute.elements import can_load
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.rearrange import Pad
from ckpt_surgery.edits.values import ValueEdit
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class EditMoment:
    """Carry out `edits`, as JSON has them, on a moment of a parameter that had `shape`."""

    edits: tuple[Mapping[str, object], ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, edits: tuple[ValueEdit, ...], shape: tuple[int, ...]) -> EditMoment:
        """Return the change for the edits of one parameter."""
        return cls(tuple(edit.to_dict() for edit in edits), shape)

    def apply(self, moment: Tensor, beginning: float) -> Tensor | None:
        """Return the changed moment; None if it has another shape or no plain elements."""
        from ckpt_surgery.edits.registry import find

        if moment.shape != self.shape or not can_load(moment):
            return None
        for fields in self.edits:
            edit = find(fields["edit"]).from_dict(fields)
            if not isinstance(edit, ValueEdit):
                return None
            moment = (replace(edit, fill=beginning) if isinstance(edit, Pad) else edit).tensor(
                moment
            )
        return moment


@dataclass(frozen=True, slots=True)
class MadeMoment:
    """Make a moment as `edits`, as JSON has them, made the parameter `name` of others.

    Those are called `names`, had `shapes`, and stand alone in a state dict at the empty path.
    """

    edits: tuple[Mapping[str, object], ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    name: str

    def make(self, moments: Sequence[Tensor], beginning: float) -> Tensor | None:
        """Return the new moment; None if one has another shape or no plain elements."""
        if [moment.shape for moment in moments] != list(self.shapes):
            return None
        if not all(map(can_load, moments)):
            return None
        plan = Plan.from_dict(self.edits)
        edits = (replace(e, fill=beginning) if isinstance(e, Pad) else e for e in plan.edits)
        entries = tuple(map(Entry, self.names, moments))
        alone = Checkpoint("", (), None, (StateDict("", "model", entries),))
        done = Plan(tuple(edits)).apply(alone)
        return dict(done.state_dicts[0].tensors)[self.name]
