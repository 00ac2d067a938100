"""Moments that an optimizer keeps of an adapted parameter, adapted as the parameter is."""

from __future__ import annotations

from typing import Any

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.elements import can_load, load_elements
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.fit.adaptations import Adaptation
from ckpt_surgery.startup.lazy_dataclass import dataclass

_Elements = Any
"""``torch.Tensor``, which is not imported here."""


@dataclass(frozen=True, slots=True)
class AdaptMoment:
    """Carry a moment into `shape` by `adaptation`."""

    adaptation: Adaptation
    shape: tuple[int, ...]

    def apply(self, moment: Tensor, beginning: float) -> Tensor | None:
        """Return the adapted moment, computed when it is written; None if it is no plain tensor."""
        if not can_load(moment):
            return None

        def compute() -> _Elements:
            from ckpt_surgery.fit.values import adapt_moment

            return adapt_moment(self.adaptation, elements_of(moment), self.shape, beginning)

        big_endian = moment.storage is not None and moment.storage.big_endian
        return computed_tensor(
            self.shape,
            moment.dtype,
            compute,
            device=moment.device,
            big_endian=big_endian,
            made_of=(moment,),
        )


def elements_of(tensor: Tensor | None, name: str | None = None) -> _Elements:
    """Return a plain tensor in memory, in its own shape. Raises `LossyEditError` for any other."""
    elements = None if tensor is None else load_elements(tensor)
    if tensor is None or elements is None:
        raise LossyEditError(f"'{name or 'moment'}' is no plain tensor", entry=name)
    return elements.reshape(tensor.shape)
