"""Low-rank factors of matrices, in float64.

What has no more than `_EXACT` rows or columns is decomposed exactly. Of larger matrices the leading
singular vectors are found by subspace iteration from a random start (Halko, Martinsson and Tropp,
SIAM Review 2011, algorithm 4.4), which is repeated until it captures no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

_EXACT: Final = 512
_BESIDE: Final = 16  # vectors more than are wanted, which make the wanted ones converge
_MOST_ITERATIONS: Final = 24
_SETTLED: Final = 1e-7  # of the captured energy


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return ``B`` and ``A`` of that rank with the least ``‖M - B·A‖``, and that through ``‖M‖``.

    Both have the same share of the singular values: ``B = U√S``, ``A = √S·Vᵀ``.
    """
    wide = matrix.to(torch.float64)
    rank = min(rank, *wide.shape)
    if min(wide.shape) <= max(_EXACT, 2 * (rank + _BESIDE)):
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
    else:
        u, s, v = _leading(wide, rank)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    total = float(torch.linalg.vector_norm(wide))
    error = float(torch.linalg.vector_norm(wide - up @ down)) / total if total else 0.0
    return up, down, error


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], rank + _BESIDE, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    captured = 0.0
    for _ in range(_MOST_ITERATIONS):
        other = torch.linalg.qr(matrix.T @ basis).Q
        basis, r = torch.linalg.qr(matrix @ other)
        now = float(torch.linalg.svdvals(r)[:rank].square().sum())
        if now <= captured * (1 + _SETTLED):
            break
        captured = now
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v


def concatenated(
    ups: Sequence[Tensor], downs: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return factors whose product is the sum of all products times their scales."""
    scaled = [up.to(torch.float64) * scale for up, scale in zip(ups, scales, strict=True)]
    return torch.cat(scaled, 1), torch.cat([down.to(torch.float64) for down in downs])


def recompressed(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return `truncated` of the product, found without making it."""
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    inner_up, inner_down, error = truncated(left.R @ right.R.T, rank)
    return left.Q @ inner_up, inner_down @ right.Q.T, error
