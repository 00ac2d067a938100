"""How much of what was added is left after rounding to a weight's type. Importable without torch.

In bfloat16 a weight has eight binary digits; what an adapter adds is often smaller than the last.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from ckpt_surgery.reports.merging import Rounding

if TYPE_CHECKING:
    from torch import Tensor


class RoundingTally:
    """Counts what of the difference of a tensor survives, part by part and in several threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted = False
        """Set by whoever wants it counted: it takes time."""
        self._parts: dict[int, tuple[float, float, int, int]] = {}
        self._lock = Lock()

    def add(self, start: int, before: Tensor, exact: Tensor, rounded: Tensor) -> None:
        """Count the part that begins at the element `start`: flat tensors, two in a wide type."""
        difference = exact - before
        kept = rounded.to(before.dtype) - before
        noise, square = (float(each.square().sum()) for each in (kept - difference, difference))
        changed = difference != 0
        lost = changed & (kept == 0)
        with self._lock:
            self._parts[start] = (noise, square, int(changed.sum()), int(lost.sum()))

    @property
    def result(self) -> Rounding:
        """What was counted so far."""
        if not self._parts:
            return Rounding(self.name, 0.0, 0, 0, 0.0)
        sums = (sum(each) for each in zip(*self._parts.values(), strict=True))
        noise, square, changed, lost = sums
        error = (noise / square) ** 0.5 if square else 0.0
        return Rounding(self.name, error, int(changed), int(lost), square)
