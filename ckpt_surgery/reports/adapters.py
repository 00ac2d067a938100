"""What making an adapter did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """A module of an adapter: its rank, and what its factors leave out through all of it."""

    module: str
    rank: int
    error: float

    def to_dict(self) -> dict[str, Any]:
        return {"module": self.module, "rank": self.rank, "error": self.error}


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What ``ckpt lora`` did, or would do.

    `left_out` are entries that differ and are not in the adapter, and by how much: the length of
    the difference through that of the entry. `dropped` is what else the tuned model's file holds.
    """

    action: Literal["extract", "merge"]
    inputs: tuple[str, ...]
    output: str | None
    layers: tuple[AdapterLayer, ...]
    left_out: Sequence[tuple[str, float]]
    dtype: str
    nbytes: int
    warnings: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {
            **envelope(
                "lora",
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=self.output,
                warnings=self.warnings,
            ),
            "action": self.action,
            "layers": [layer.to_dict() for layer in self.layers],
            "left_out": [{"name": name, "difference": size} for name, size in self.left_out],
            "dropped_others": list(self.dropped),
            "dtype": self.dtype,
            "nbytes_after": self.nbytes,
        }
