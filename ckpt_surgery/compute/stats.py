"""Statistics over the elements of a tensor, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.elements import load_elements

if TYPE_CHECKING:
    import torch

    from ckpt_surgery.checkpoint.description import Tensor

BINS = 16
_PIECE = 1 << 20  # elements held as float64 at a time


def tensor_stats(tensor: Tensor) -> TensorStats | None:
    """Statistics of the elements that `tensor` stores; None if they are of no numeric type.

    Of a sparse or nested tensor these are its last part (the values), of a complex one the
    magnitudes, of a quantised one the stored integers. ``std`` is the population's, combined over
    pieces by the formula of Chan, Golub and LeVeque (1979). Raises `LimitExceededError` for a
    view that repeats its elements too often, and `MissingDependencyError` without torch.
    """
    stored = tensor if tensor.storage is not None or not tensor.parts else tensor.parts[-1]
    if stored.storage is None:
        return None
    elements = load_elements(stored)
    if elements is None:
        return None
    count, mean, m2 = 0, 0.0, 0.0
    low, high = float("inf"), float("-inf")
    nan = inf = zeros = 0
    for piece in _pieces(elements):
        finite = piece[piece.isfinite()]
        missing = int(piece.isnan().sum())
        nan += missing
        inf += piece.numel() - finite.numel() - missing
        zeros += int((piece == 0).sum())
        n = finite.numel()
        if n:
            piece_mean = float(finite.mean())
            delta = piece_mean - mean
            m2 += float((finite - piece_mean).square().sum()) + delta * delta * count * n / (
                count + n
            )
            mean += delta * n / (count + n)
            count += n
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not count:
        return TensorStats(None, None, None, None, nan, inf, zeros)
    counts = _histogram(elements, low, high)
    return TensorStats(low, high, mean, sqrt(m2 / count), nan, inf, zeros, counts)


def _pieces(elements: torch.Tensor) -> Iterator[torch.Tensor]:
    import torch

    for start in range(0, elements.numel(), _PIECE):
        piece = elements[start : start + _PIECE]
        # A magnitude may be larger than the largest number of the type of the halves.
        yield piece.to(torch.complex128).abs() if piece.is_complex() else piece.double()


def _histogram(elements: torch.Tensor, low: float, high: float) -> tuple[int, ...]:
    import torch

    counts = torch.zeros(BINS, dtype=torch.int64)
    width = (high - low) or 1.0
    for piece in _pieces(elements):
        finite = piece[piece.isfinite()]
        bins = ((finite - low) / width * BINS).long().clamp_(0, BINS - 1)
        counts += torch.bincount(bins, minlength=BINS)
    return tuple(int(n) for n in counts)


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics over the elements of a tensor; the first four are of the finite ones.

    None where there is no finite element. `histogram` counts the finite elements in bins of equal
    width from `min` to `max`.
    """

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nan: int
    inf: int
    zeros: int
    histogram: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "min": self.min,
            "max": self.max,
            "mean": self.mean,
            "std": self.std,
            "nan": self.nan,
            "inf": self.inf,
            "zeros": self.zeros,
            "histogram": list(self.histogram),
        }
