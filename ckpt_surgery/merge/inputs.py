"""The tensors of one name, read in pieces in the element type that arithmetic works in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, cast

from ckpt_surgery.compute.spans import spans
from ckpt_surgery.errors import NonFiniteError
from ckpt_surgery.merge.parameters import Settings
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_BLOCK = 1024


@dataclass(frozen=True)
class Piece:
    """The same run of elements of every input, flat.

    `raw` are the inputs as they are stored, `raw_base` the base. `start` is the position of the
    first element in the tensor, `key` names the tensor and the seed for drawing random
    numbers, `measured` what the method's `measure` returned.
    """

    raw: tuple[Tensor, ...]
    raw_base: Tensor | None
    work: torch.dtype
    start: int
    key: str
    settings: Settings
    measured: Any = None

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs in the working element type."""
        return tuple(tensor.to(self.work) for tensor in self.raw)

    @cached_property
    def origin(self) -> Tensor:
        """The base of a method that needs one, in the working element type."""
        return cast("Tensor", self.raw_base).to(self.work)

    @property
    def stop(self) -> int:
        return self.start + self.raw[0].numel()


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors of one name in all files, wherever their elements lie.

    `read(which, start, stop)` gives elements of input `which` (-1: the base) in row-major order as
    a flat tensor of its own real element type. `labels` name the files in errors, the base last.
    """

    name: str
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    read: Callable[[int, int, int], Tensor]
    work: torch.dtype
    settings: Settings
    has_base: bool = False
    seed: int = 0
    allow_nonfinite: bool = False

    @property
    def count(self) -> int:
        """Inputs beside the base."""
        return len(self.labels) - self.has_base

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def key(self) -> str:
        return f"{self.seed}:{self.name}"

    def raw(self, which: int, start: int, stop: int, *, check: bool = True) -> Tensor:
        """Return elements of one input (-1: the base) as they are
        stored, those of 8 bits as float32.

        Raises `NonFiniteError` at NaN or infinity, unless they are allowed or `check` is false.
        """
        tensor = self.read(which, start, stop)
        if tensor.dtype.itemsize == 1:  # has no arithmetic, not even a sum
            tensor = tensor.float()
        if check and not self.allow_nonfinite and not isfinite(float(tensor.sum())):
            require_finite(tensor, self.labels[which], self.name, start)
        return tensor

    def one(self, which: int, start: int, stop: int) -> Tensor:
        """Return elements of one input (-1: the base) in the working element type."""
        return self.raw(which, start, stop).to(self.work)

    def delta(self, which: int, start: int, stop: int) -> Tensor:
        """Return what input `which` adds to the base."""
        return self.one(which, start, stop) - self.one(-1, start, stop)

    def piece(self, start: int, stop: int, measured: Any = None, *, check: bool = True) -> Piece:
        """Return all inputs from `start` to `stop`."""
        return Piece(
            raw=tuple(self.raw(which, start, stop, check=check) for which in range(self.count)),
            raw_base=self.raw(-1, start, stop, check=check) if self.has_base else None,
            work=self.work,
            start=start,
            key=self.key,
            settings=self.settings,
            measured=measured,
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield the whole tensors, piece by piece."""
        for start, stop in self.spans():
            yield self.piece(start, stop)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Return where each piece of the whole tensors begins and ends."""
        return spans(0, self.numel)


def require_finite(tensor: Tensor, label: str, name: str, start: int = 0) -> None:
    """Raise `NonFiniteError` if flat `tensor` holds NaN or infinity.

    The error counts both and gives the position of the first, `start` being that of the first
    element in the tensor `name` of file `label`.
    """
    bad = ~tensor.isfinite()
    count = int(bad.sum())
    if count == 0:  # a sum of finite values may overflow
        return
    nan = int(tensor.isnan().sum())
    first = start + int(bad.int().argmax())
    raise NonFiniteError(
        f"'{name}' holds {nan} NaN and {count - nan} infinite values, the first at element {first}",
        path=label,
        entry=name,
        hint="leave the file out, or pass --allow-nonfinite to merge them like other numbers",
    )


def of_tensors(
    name: str,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    work: torch.dtype,
    settings: Settings,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
) -> Inputs:
    """`Inputs` of tensors in memory: of one shape, real, of any floating element types."""
    flat = [tensor.reshape(-1) for tensor in (*tensors, *(() if base is None else (base,)))]

    def read(which: int, start: int, stop: int) -> Tensor:
        run: Tensor = flat[which].narrow(0, start, stop - start)
        return run

    return Inputs(
        name=name,
        shape=tuple(tensors[0].shape),
        labels=tuple(labels or (f"input {n + 1}" for n in range(len(flat)))),
        read=read,
        work=work,
        settings=settings,
        has_base=base is not None,
        seed=seed,
        allow_nonfinite=allow_nonfinite,
    )


def steady_sum(values: Tensor) -> float:
    """Return the sum of a flat tensor in float64, the same with any number of threads.

    torch splits a long sum between its threads; sums of short rows it does not.
    """
    values = values.double()
    rows = values.numel() // _BLOCK
    head = values[: rows * _BLOCK].view(rows, _BLOCK).sum(1).sum()
    return float(head + values[rows * _BLOCK :].sum())
