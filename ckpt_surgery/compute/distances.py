"""How far the numbers of two tensors are from each other: in runs, in threads, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.elements import can_load, require_bounded, require_torch, run_reader
from ckpt_surgery.compute.spans import PIECE, RUN, spans
from ckpt_surgery.compute.stats import Advance, thread_pool
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import torch

_PIECE: Final = PIECE // 2  # elements: twice as many lie beside each other, and their difference


@dataclass(frozen=True, slots=True)
class Distance:
    """What the differences of two tensors of one shape come to; complex numbers are two each.

    `changed` counts numbers that differ, NaN being equal to NaN, and `outside` those that differ
    by more than the tolerance. `max_abs` and `max_rel` are the largest difference and the largest
    one as a share of the larger of the two numbers; they are infinite where only one of two
    numbers is finite. The norms are Euclidean, over numbers that are finite in both.
    """

    numbers: int = 0
    changed: int = 0
    outside: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0
    square_change: float = 0.0
    product: float = 0.0

    @property
    def norm_change(self) -> float:
        return sqrt(self.square_change)

    @property
    def relative_change(self) -> float:
        """The norm of the change as a share of the larger norm; 0 if both are 0."""
        larger = max(self.square_a, self.square_b)
        return sqrt(self.square_change / larger) if larger else 0.0

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between both; None if one of them is zero."""
        if not (self.square_a and self.square_b):
            return None
        return max(-1.0, min(1.0, self.product / sqrt(self.square_a) / sqrt(self.square_b)))

    def plus(self, other: Distance) -> Distance:
        """Return the distance of both together."""
        return Distance(
            self.numbers + other.numbers,
            self.changed + other.changed,
            self.outside + other.outside,
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
            self.square_a + other.square_a,
            self.square_b + other.square_b,
            self.square_change + other.square_change,
            self.product + other.product,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "numbers": self.numbers,
            "changed": self.changed,
            "outside": self.outside,
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "norm_a": sqrt(self.square_a),
            "norm_b": sqrt(self.square_b),
            "norm_change": self.norm_change,
            "relative_change": self.relative_change,
            "cosine": self.cosine,
        }


def distances(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    threads: int | None = None,
    advance: Advance | None = None,
) -> dict[str, Distance | None]:
    """Measure every pair by its name; None for a pair that has no numbers to be compared.

    Two numbers are within the tolerance if they differ by at most `atol` + `rtol` times the larger
    of both. The two tensors of a pair have one shape, and may have two types. Raises
    `LimitExceededError` for a view that repeats its elements too often, `ReadError` if a file
    cannot be read, and `MissingDependencyError` without torch.
    """
    require_torch()
    with thread_pool(threads) as pool:
        waiting = {
            name: [pool.submit(work) for work in _work(a, b, rtol, atol, advance)]
            for name, (a, b) in pairs.items()
            if _are_comparable(a, b)
        }
        found: dict[str, Distance | None] = dict.fromkeys(pairs)
        for name, futures in waiting.items():
            total = Distance()
            for future in futures:
                total = total.plus(future.result())
            found[name] = total
    return found


def _are_comparable(a: Tensor, b: Tensor) -> bool:
    kinds = [tensor.dtype.kind == "complex" for tensor in (a, b)]
    return can_load(a) and can_load(b) and kinds[0] == kinds[1] and a.shape == b.shape


def _work(
    a: Tensor, b: Tensor, rtol: float, atol: float, advance: Advance | None
) -> list[Callable[[], Distance]]:
    """Return what measures each run of a pair."""
    for tensor in (a, b):
        require_bounded(tensor)
    readers = run_reader(a), run_reader(b)
    halves = 2 if a.dtype.kind == "complex" else 1

    def measure(start: int, stop: int) -> Distance:
        total = Distance()
        runs = [read(start, stop) for read in readers]
        for begin, end in spans(0, stop - start, _PIECE):
            first, second = (run[begin:end] for run in runs)
            total = total.plus(_measured(first, second, rtol, atol))
        if advance is not None:
            advance(sum(t.dtype.nbytes((stop - start) // halves) for t in (a, b)))
        return total

    return [
        lambda start=start, stop=stop: measure(start, stop)  # type: ignore[misc]
        for start, stop in spans(0, halves * a.numel, RUN)
    ]


def _measured(a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float) -> Distance:
    """Return the distance of two pieces."""
    import torch

    exact_a, exact_b = a.double(), b.double()
    size = (exact_a - exact_b).abs_()
    if a.dtype == b.dtype and not a.dtype.is_floating_point:
        size = torch.maximum(size, _differ(a, b).double())  # of 64 bits float64 loses the last
    square_a, square_b = float(torch.dot(exact_a, exact_a)), float(torch.dot(exact_b, exact_b))
    if not isfinite(square_a + square_b):
        return _measured_where_finite(exact_a, exact_b, rtol, atol)
    changed = int(size.count_nonzero())
    found = Distance(
        a.numel(),
        changed,
        square_a=square_a,
        square_b=square_b,
        product=float(torch.dot(exact_a, exact_b)),
    )
    return replace(found, **_sizes(size, exact_a, exact_b, rtol, atol)) if changed else found


def _differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return where integers differ; torch compares all of those types only as bytes."""
    import torch

    width = a.element_size()
    different = a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)
    return different.view(-1, width).any(1)


def _sizes(
    size: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float
) -> dict[str, Any]:
    """Return what the differences `size` of finite numbers come to."""
    import torch

    larger = torch.maximum(a.abs(), b.abs())
    tiny = torch.finfo(torch.float64).tiny
    return {
        "outside": int((size > larger * rtol + atol).sum()),
        "max_abs": float(size.max()),
        "max_rel": float((size / larger.clamp(min=tiny)).max()),
        "square_change": float(torch.dot(size, size)),
    }


def _measured_where_finite(a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float) -> Distance:
    """Return the distance where numbers are not finite, or their squares are not."""
    import torch

    equal = (a == b) | (a.isnan() & b.isnan())
    finite = a.isfinite() & b.isfinite()
    lost = int((~finite & ~equal).sum())
    kept_a, kept_b = a[finite], b[finite]
    size = (kept_a - kept_b).abs()
    changed = int(size.count_nonzero())
    found = Distance(
        a.numel(),
        changed + lost,
        square_a=float(torch.dot(kept_a, kept_a)),
        square_b=float(torch.dot(kept_b, kept_b)),
        product=float(torch.dot(kept_a, kept_b)),
    )
    if changed:
        found = replace(found, **_sizes(size, kept_a, kept_b, rtol, atol))
    if lost:
        found = replace(found, outside=found.outside + lost, max_abs=inf, max_rel=inf)
    return found
