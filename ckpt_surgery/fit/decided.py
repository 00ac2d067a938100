"""What is to be done about a tensor in another layout than the target's."""

from __future__ import annotations

from ckpt_surgery.matching.layout_shapes import Step, how_of
from ckpt_surgery.matching.layouts import Layout
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Decided:
    """A layout, the steps that were decided on, and whether they are carried out.

    `steps` None: it is not certain which they are. No steps: nothing has to be done.
    """

    layout: Layout
    steps: tuple[Step, ...] | None
    is_applied: bool = False

    @property
    def how(self) -> str:
        """What is done, or, where that is not decided, what the likeliest way does."""
        return self.layout.how if self.steps is None else how_of(self.steps)
