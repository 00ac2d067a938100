"""Numbers that a trained tensor should not hold, counted: NaN, infinity, subnormal ones, zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.elements import can_load, require_bounded, require_torch, run_reader
from ckpt_surgery.compute.spans import PIECE, RUN, spans
from ckpt_surgery.compute.stats import Advance, thread_pool
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import torch

_HALF: Final = 1 << 63
_CONVERTED: Final = "float8"  # of these torch can compute nothing but a conversion


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """How many numbers of a tensor are so; both halves of a complex number count.

    `subnormal` are those below the smallest normal number of the tensor's own type and not zero.
    `low` and `high` are the bounds of what is not NaN, None if nothing is.
    """

    numbers: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    subnormal: int = 0
    low: float | None = None
    high: float | None = None

    @property
    def is_constant(self) -> bool:
        """Whether several numbers are there, and all the same."""
        return self.numbers > 1 and not self.nan and self.low == self.high

    def plus(self, other: ValueCounts) -> ValueCounts:
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return ValueCounts(
            self.numbers + other.numbers,
            self.nan + other.nan,
            self.inf + other.inf,
            self.zeros + other.zeros,
            self.subnormal + other.subnormal,
            min(lows, default=None),
            max(highs, default=None),
        )


def count_values(
    tensors: Mapping[str, Tensor], *, threads: int | None = None, advance: Advance | None = None
) -> dict[str, ValueCounts | None]:
    """Count the numbers of every tensor by its name; None for one whose elements are no numbers.

    Of a sparse or nested tensor all parts count. Raises `LimitExceededError` for a view that
    repeats its elements too often, `ReadError` if the file cannot be read, and
    `MissingDependencyError` without torch.
    """
    require_torch()
    found: dict[str, ValueCounts | None] = {}
    with thread_pool(threads) as pool:
        waiting = {
            name: [
                pool.submit(work)
                for part in tensor.strided_parts()
                if can_load(part)
                for work in _work(part, advance)
            ]
            for name, tensor in tensors.items()
        }
        for name, futures in waiting.items():
            total = ValueCounts()
            for future in futures:
                total = total.plus(future.result())
            found[name] = total if futures else None
    return found


def _work(tensor: Tensor, advance: Advance | None) -> list[Callable[[], ValueCounts]]:
    """Return what counts each run of a tensor."""
    import torch

    require_bounded(tensor)
    read = run_reader(tensor)
    halves = 2 if tensor.dtype.kind == "complex" else 1
    smallest = 0.0
    if tensor.dtype.kind in {"float", "complex"}:
        smallest = torch.finfo(getattr(torch, tensor.dtype.name)).smallest_normal

    def count(start: int, stop: int) -> ValueCounts:
        total = ValueCounts()
        run = read(start, stop)
        for begin, end in spans(0, stop - start, PIECE):
            total = total.plus(_counted(run[begin:end], smallest))
        if advance is not None:
            advance(tensor.dtype.nbytes((stop - start) // halves))
        return total

    return [
        lambda start=start, stop=stop: count(start, stop)  # type: ignore[misc]
        for start, stop in spans(0, halves * tensor.numel, RUN)
    ]


def _counted(piece: torch.Tensor, smallest: float) -> ValueCounts:
    import torch

    if str(piece.dtype).startswith(f"torch.{_CONVERTED}"):
        piece = piece.float()
    numbers = piece.numel()
    if not piece.dtype.is_floating_point:
        low, high = _bounds(piece)
        return ValueCounts(numbers, zeros=numbers - int((piece != 0).sum()), low=low, high=high)
    zeros = numbers - int(piece.count_nonzero())
    nan = int(piece.isnan().sum())
    infinite = int(piece.isinf().sum())
    subnormal = int((piece.abs() < smallest).sum()) - zeros
    known = piece[~piece.isnan()] if nan else piece
    if not known.numel():
        return ValueCounts(numbers, nan)
    least, most = torch.aminmax(known)
    return ValueCounts(numbers, nan, infinite, zeros, subnormal, float(least), float(most))


def _bounds(piece: torch.Tensor) -> tuple[int, int]:
    """Return the least and the largest of whole numbers, exactly.

    torch compares unsigned ones of 16 bits and more as nothing but what they convert to.
    """
    import torch

    wider = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}
    if piece.dtype is torch.uint64:  # with the first bit turned they are in the order of int64
        low, high = torch.aminmax(piece.view(torch.int64) ^ -_HALF)
        return int(low) + _HALF, int(high) + _HALF
    low, high = torch.aminmax(piece.to(wider.get(piece.dtype, piece.dtype)))
    return int(low), int(high)
