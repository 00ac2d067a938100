"""Moments of an optimizer, put elsewhere as the elements of their parameter were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.elements import can_load
from ckpt_surgery.edits.rearrange import Pad
from ckpt_surgery.edits.values import ValueEdit


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
