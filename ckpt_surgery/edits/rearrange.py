"""Edits that put a tensor's elements elsewhere: order of axes, shape, slices, padding, repeats."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ClassVar, Literal

from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.edits.values import Elements, ValueEdit, dimension
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Permute(ValueEdit):
    """Put the axes of a tensor into the order `dims`."""

    kind: ClassVar[str] = "permute"
    dims: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes in their new order."""
        dims = [dimension(dim, shape) for dim in self.dims]
        if sorted(dims) != list(range(len(shape))):
            raise PlanError(f"{list(self.dims)} is no order of the axes of {list(shape)}")
        return tuple(shape[dim] for dim in dims)

    def compute(self, values: Elements) -> Elements:
        """Return the permuted view."""
        return values.permute(self.dims)


@dataclass(frozen=True, slots=True)
class Transpose(ValueEdit):
    """Exchange two axes."""

    kind: ClassVar[str] = "transpose"
    dims: tuple[int, int] = (0, 1)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes with those two exchanged."""
        first, second = (dimension(dim, shape) for dim in self.dims)
        sizes = list(shape)
        sizes[first], sizes[second] = sizes[second], sizes[first]
        return tuple(sizes)

    def compute(self, values: Elements) -> Elements:
        """Return the transposed view."""
        return values.transpose(*self.dims)


@dataclass(frozen=True, slots=True)
class Reshape(ValueEdit):
    """Give the elements, in their row-major order, another shape; one size may be -1."""

    kind: ClassVar[str] = "reshape"
    sizes: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the new sizes."""
        wanted, known = list(self.sizes), prod(n for n in self.sizes if n != -1)
        if wanted.count(-1) > 1 or any(n < -1 for n in wanted):
            raise PlanError(f"{wanted} is no shape with at most one -1")
        if -1 in wanted and known and prod(shape) % known == 0:
            wanted[wanted.index(-1)] = prod(shape) // known
        if -1 in wanted or prod(wanted) != prod(shape):
            raise PlanError(f"{list(shape)} has {prod(shape)} elements, which {wanted} has not")
        return tuple(wanted)

    def compute(self, values: Elements) -> Elements:
        """Return the reshaped elements."""
        return values.reshape(self.shape(tuple(values.shape)))


@dataclass(frozen=True, slots=True)
class Squeeze(ValueEdit):
    """Take away an axis of size one."""

    kind: ClassVar[str] = "squeeze"
    dim: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the other sizes."""
        dim = dimension(self.dim, shape)
        if shape[dim] != 1:
            raise PlanError(f"dimension {self.dim} of {list(shape)} is not of size 1")
        return shape[:dim] + shape[dim + 1 :]

    def compute(self, values: Elements) -> Elements:
        """Return the view without the axis."""
        return values.squeeze(self.dim)


@dataclass(frozen=True, slots=True)
class Unsqueeze(ValueEdit):
    """Put in an axis of size one before axis `dim`; -1 is after the last."""

    kind: ClassVar[str] = "unsqueeze"
    dim: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes with a one among them."""
        if not -len(shape) - 1 <= self.dim <= len(shape):
            raise PlanError(f"no axis can be put in before axis {self.dim} of {list(shape)}")
        dim = self.dim % (len(shape) + 1)
        return (*shape[:dim], 1, *shape[dim:])

    def compute(self, values: Elements) -> Elements:
        """Return the view with the axis."""
        return values.unsqueeze(self.dim)


@dataclass(frozen=True, slots=True)
class Take(ValueEdit):
    """Take the slices at `indices` along an axis, in that order: another order, or a choice."""

    kind: ClassVar[str] = "take-indices"
    dim: int
    indices: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes, that of the axis being the number of indices."""
        dim = dimension(self.dim, shape)
        for index in self.indices:
            if not 0 <= index < shape[dim]:
                raise PlanError(
                    f"there is no index {index} in dimension {self.dim} of {list(shape)}"
                )
        return (*shape[:dim], len(self.indices), *shape[dim + 1 :])

    def compute(self, values: Elements) -> Elements:
        """Return the slices."""
        from ckpt_surgery.compute.rearrange import taken

        return taken(values, self.dim, self.indices)


@dataclass(frozen=True, slots=True)
class Flip(ValueEdit):
    """Turn an axis round."""

    kind: ClassVar[str] = "flip"
    dim: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        dimension(self.dim, shape)
        return shape

    def compute(self, values: Elements) -> Elements:
        """Return the elements with the axis turned round."""
        return values.flip(self.dim)


@dataclass(frozen=True, slots=True)
class Slice(ValueEdit):
    """Take the slices from `start` to `stop` (not included) along an axis, as Python counts."""

    kind: ClassVar[str] = "slice"
    dim: int
    start: int | None = None
    stop: int | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes, that of the axis being the number of slices."""
        dim = dimension(self.dim, shape)
        start, stop = self._range(shape[dim])
        if stop <= start:
            raise PlanError(f"nothing of dimension {self.dim} of {list(shape)} is in that slice")
        return (*shape[:dim], stop - start, *shape[dim + 1 :])

    def _range(self, size: int) -> tuple[int, int]:
        start, stop, _ = slice(self.start, self.stop).indices(size)
        return start, stop

    def compute(self, values: Elements) -> Elements:
        """Return the view of the slices."""
        start, stop = self._range(values.shape[self.dim])
        return values.narrow(self.dim, start, stop - start)


@dataclass(frozen=True, slots=True)
class Pad(ValueEdit):
    """Fill an axis up at its end to `size`; an optimizer's moments get zeros."""

    kind: ClassVar[str] = "pad"
    counts: ClassVar[bool] = True
    dim: int
    size: int
    fill: float = 0.0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes, that of the axis being `size`."""
        dim = dimension(self.dim, shape)
        if self.size < shape[dim]:
            raise PlanError(f"dimension {self.dim} of {list(shape)} is larger than {self.size}")
        return (*shape[:dim], self.size, *shape[dim + 1 :])

    def compute(self, values: Elements) -> Elements:
        """Return the padded elements."""
        return self.counted(values, lambda _: None)

    def counted(self, values: Elements, count: Callable[[CastCount], None]) -> Elements:
        """Return the padded elements, and tell `count` if the element type does not hold `fill`."""
        from ckpt_surgery.compute.rearrange import padded

        return padded(values, self.dim % values.dim(), self.size, self.fill, count)


@dataclass(frozen=True, slots=True)
class Repeat(ValueEdit):
    """Put an axis `times` in a row; with `mean` each is divided by that number.

    The latter is how kernels are inflated: what all of them sum up to stays (Carreira and
    Zisserman, Quo vadis, action recognition, CVPR 2017, section 2.3).
    """

    kind: ClassVar[str] = "repeat"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "anew"
    counts: ClassVar[bool] = True
    dim: int
    times: int
    mean: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes, that of the axis times `times`."""
        dim = dimension(self.dim, shape)
        if self.times < 1:
            raise PlanError(f"a tensor cannot be repeated {self.times} times")
        return (*shape[:dim], shape[dim] * self.times, *shape[dim + 1 :])

    def compute(self, values: Elements) -> Elements:
        """Return the repeated elements."""
        return self.counted(values, lambda _: None)

    def counted(self, values: Elements, count: Callable[[CastCount], None]) -> Elements:
        """Return the repeated elements, and tell `count` which the element type does not hold."""
        from ckpt_surgery.compute.rearrange import repeated

        return repeated(values, self.dim, self.times, count, mean=self.mean)
