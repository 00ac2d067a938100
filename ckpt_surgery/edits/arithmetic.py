"""Edits that change a tensor's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.edits.values import Elements, ValueEdit, require_plain, tally_of
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Scale(ValueEdit):
    """Multiply by `factor`, with one rounding."""

    kind: ClassVar[str] = "scale"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "anew"
    counts: ClassVar[bool] = True
    factor: float

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        return shape

    def compute(self, values: Elements) -> Elements:
        """Return the products."""
        return self.counted(values, lambda _: None)

    def counted(self, values: Elements, count: Callable[[CastCount], None]) -> Elements:
        """Return the products, and tell `count` which the element type does not hold."""
        from ckpt_surgery.compute.rearrange import scaled

        return scaled(values, self.factor, count)


@dataclass(frozen=True, slots=True)
class Add(ValueEdit):
    """Add `amount`, with one rounding."""

    kind: ClassVar[str] = "add"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "anew"
    counts: ClassVar[bool] = True
    amount: float

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        return shape

    def compute(self, values: Elements) -> Elements:
        """Return the sums."""
        return self.counted(values, lambda _: None)

    def counted(self, values: Elements, count: Callable[[CastCount], None]) -> Elements:
        """Return the sums, and tell `count` which the element type does not hold."""
        from ckpt_surgery.compute.rearrange import shifted

        return shifted(values, self.amount, count)


@dataclass(frozen=True, slots=True)
class Fill(ValueEdit):
    """Put other numbers: ``constant`` `value`, or ``normal`` with `value` as its deviation."""

    kind: ClassVar[str] = "fill"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "anew"
    how: Literal["constant", "normal"]
    value: float
    seed: int = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        return shape

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same shape and type; the old elements are not read."""
        require_plain(self.state_dict, self.name, tensor)
        tally = tally_of(self.state_dict, self.name, tensor)

        def compute() -> Elements:
            from ckpt_surgery.compute.rearrange import drawn

            return drawn(tensor.shape, tensor.dtype, self.how, self.value, self.seed, tally.add)

        from ckpt_surgery.compute.lazy import computed_tensor

        made = computed_tensor(
            tensor.shape,
            tensor.dtype,
            compute,
            key=self.name,
            device=tensor.device,
            big_endian=tensor.storage is not None and tensor.storage.big_endian,
            tally=tally,
        )
        return replace(made, requires_grad=tensor.requires_grad, is_parameter=tensor.is_parameter)

    def compute(self, values: Elements) -> Elements:
        """Return the elements as they are: they are not what is put."""
        return values
