"""What becomes of each tensor of a target, as data."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ckpt_surgery.fit.adaptations import Adaptation, Kind, looks_transposed, may_lie_on_a_grid
from ckpt_surgery.fit.fills import Fill
from ckpt_surgery.models.target import Shape, TensorSpec
from ckpt_surgery.startup.lazy_dataclass import dataclass

Status = Literal["copied", "cast", "adapted", "initial"]
"""The same bytes, the same shape in another element type, another shape, or initial values."""
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class FitItem:
    """One tensor of the result, named, shaped and ordered as in the target.

    `source` is the tensor of the checkpoint that it takes values from, or would take if its shape
    fitted; `source_shape` and `source_dtype` describe that one. `dtype` is the result's element
    type. `tie_of` is the tied tensor that it shares its bytes with, which comes before it;
    `untied_from` one that it shared them with in the checkpoint, but does not in the target.
    `reason` says why a tensor is initial and `would_adapt` what would have carried it over.
    `is_optional`: torch does without it in a checkpoint as old as this one. `is_suspect`: it is
    copied, but square, in one module with tensors that look transposed.
    """

    name: str
    status: Status
    shape: Shape
    dtype: str
    source: str | None = None
    source_shape: Shape | None = None
    source_dtype: str | None = None
    adaptation: Adaptation | None = None
    fill: Fill | None = None
    tie_of: str | None = None
    untied_from: str | None = None
    reason: str | None = None
    would_adapt: tuple[Kind, ...] = ()
    is_optional: bool = False
    is_suspect: bool = False

    @property
    def numel(self) -> int:
        return TensorSpec(self.name, self.shape).numel

    @property
    def needs_initial(self) -> bool:
        """Whether an initial value has to be made for it (or for a part of it)."""
        if self.tie_of is not None:
            return False
        if self.adaptation is not None:
            return self.adaptation.needs_initial
        return self.status == "initial"

    @property
    def is_partly_initial(self) -> bool:
        """Whether it is adapted, and some of its elements are none of the checkpoint's."""
        how, old = self.adaptation, self.source_shape or ()
        if how is None or not how.needs_initial:
            return False
        if how.kind == "rows":
            return len({new for new, _ in how.rows}) < self.shape[0]
        return any(new > had for new, had in zip(self.shape, old, strict=True))

    @property
    def looks_transposed(self) -> bool:
        """Whether it is initial, and the checkpoint has a tensor of its sizes in another order."""
        shape = self.source_shape
        if self.status != "initial" or shape is None or self.would_adapt:
            return False
        return looks_transposed(shape, self.shape)

    @property
    def may_lie_on_a_grid(self) -> bool:
        """Whether it is initial, and positions whose grids ``interpolate`` needs to be told."""
        shape = self.source_shape
        if self.status != "initial" or shape is None or self.fill is not None:
            return False
        return may_lie_on_a_grid(self.name, shape, self.shape)

    @property
    def is_verbatim(self) -> bool:
        """Whether its bytes are the source's own: the same numbers of the same type."""
        return self.status == "copied"


@dataclass(frozen=True, slots=True)
class FitPlan:
    """The result's tensors in the target's order, and the checkpoint's that it has no use for."""

    items: tuple[FitItem, ...]
    dropped: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def having(self, status: Status) -> list[FitItem]:
        return [item for item in self.items if item.status == status]

    @property
    def elements(self) -> dict[str, int]:
        """How many elements were copied, cast, adapted, left initial, and dropped."""
        sums = {
            status: sum(item.numel for item in self.items if item.status == status)
            for status in STATUSES
        }
        return sums | {"dropped": sum(spec.numel for spec in self.dropped)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON report of ``ckpt fit``."""
        return {
            "copied": [item.name for item in self.having("copied")],
            "cast": [item.name for item in self.having("cast")],
            "adapted": [
                {
                    "name": item.name,
                    "how": str(item.adaptation),
                    "from_shape": list(item.source_shape or ()),
                    "to_shape": list(item.shape),
                }
                for item in self.having("adapted")
            ],
            "initial": [item.name for item in self.having("initial")],
            "dropped": [spec.name for spec in self.dropped],
            "elements": self.elements,
        }
