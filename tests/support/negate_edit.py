"""A toy edit: the negative of a tensor. One file and one registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ckpt_surgery.edits.values import Elements, ValueEdit


@dataclass(frozen=True, slots=True)
class Negate(ValueEdit):
    """Put the negative of every element."""

    kind: ClassVar[str] = "negate"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "anew"

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        return shape

    def compute(self, values: Elements) -> Elements:
        """Return the negatives."""
        return -values
