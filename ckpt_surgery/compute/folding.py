"""Arithmetic of folds: normalisations and branches of a network put into one weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ckpt_surgery.compute.rearrange import Count
from ckpt_surgery.compute.rounding import rounded
from ckpt_surgery.startup.lazy_dataclass import dataclass

_WORK: Final = torch.float64


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What batch norm does to each channel: a factor, and what is added."""

    factor: Tensor
    offset: Tensor


def batch_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Normalisation:
    """Return ``γ/√(σ²+ε)`` and ``β - μγ/√(σ²+ε)`` for every channel, in float64."""
    factor = (variance.to(_WORK) + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.to(_WORK)
    offset = -mean.to(_WORK) * factor
    return Normalisation(factor, offset if bias is None else offset + bias.to(_WORK))


def _identity_kernel(shape: Sequence[int]) -> Tensor:
    """Return the kernel of a convolution that changes nothing: 1 in the middle, by group."""
    kernel = torch.zeros(tuple(shape), dtype=_WORK)
    middle = tuple(size // 2 for size in shape[2:])
    for channel in range(shape[0]):
        kernel[(channel, channel % shape[1], *middle)] = 1
    return kernel


def sum_of_branches(
    kernels: Sequence[Tensor | None],
    norms: Sequence[Normalisation | None],
    shape: Sequence[int],
    dim: int,
    dtype: torch.dtype,
    count: Count,
) -> Tensor:
    """Return one kernel of `shape` that does what all branches do together, rounded once.

    A kernel of None is the identity. Smaller kernels lie in the middle of larger ones; `dim` is the
    axis of the outputs.
    """
    total = torch.zeros(tuple(shape), dtype=_WORK)
    for kernel, norm in zip(kernels, norms, strict=True):
        each = _identity_kernel(shape) if kernel is None else kernel.to(_WORK)
        if norm is not None:
            each = _by_channel(each, norm.factor, dim)
        inner = total
        for axis in range(2, len(shape)):
            inner = inner.narrow(axis, (shape[axis] - each.shape[axis]) // 2, each.shape[axis])
        inner += each
    return rounded(total, dtype, count, [kernel for kernel in kernels if kernel is not None])


def _by_channel(kernel: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiply along the outputs; of a transposed convolution in groups they repeat."""
    times = factor.numel() // kernel.shape[dim]
    if times > 1:  # (in, out/groups, …): every group has inputs and factors of its own
        parts = kernel.reshape(times, -1, *kernel.shape[1:])
        view = [
            times,
            1,
            *(factor.numel() // times if a == dim else 1 for a in range(1, kernel.dim())),
        ]
        return (parts * factor.view(view)).reshape(kernel.shape)
    return kernel * factor.view([-1 if axis == dim else 1 for axis in range(kernel.dim())])


def sum_of_offsets(
    biases: Sequence[Tensor | None],
    norms: Sequence[Normalisation | None],
    dtype: torch.dtype,
    count: Count,
) -> Tensor:
    """Return the bias that all branches have together, rounded once."""
    total = None
    for bias, norm in zip(biases, norms, strict=True):
        each = None if bias is None else bias.to(_WORK)
        if norm is not None:
            each = norm.offset if each is None else norm.offset + each * norm.factor
        if each is not None:
            total = each if total is None else total + each
    if total is None:
        raise ValueError("no branch has a bias")
    return rounded(total, dtype, count, [bias for bias in biases if bias is not None])


def weight_normed(magnitude: Tensor, direction: Tensor, count: Count) -> Tensor:
    """Return ``g·v/‖v‖``, the norm over all axes in which `magnitude` has one element."""
    g, v = magnitude.to(_WORK), direction.to(_WORK)
    if not g.dim():
        exact = g * v / torch.linalg.vector_norm(v)
        return rounded(exact, direction.dtype, count, [magnitude, direction])
    axes = [axis for axis in range(v.dim()) if g.shape[axis] == 1]
    # an axis of one element is its own; all of one element are normed over none of them
    norms = v.square().sum(axes, keepdim=True).sqrt() if axes else v.abs()
    return rounded(g * (v / norms), direction.dtype, count, [magnitude, direction])


def spectrally_normed(weight: Tensor, u: Tensor, v: Tensor, dim: int, count: Count) -> Tensor:
    """Return the weight through ``uᵀWv``, its largest singular value as it was last estimated."""
    wide = weight.to(_WORK)
    matrix = wide.movedim(dim, 0).flatten(1)
    sigma = torch.dot(u.to(_WORK), matrix @ v.to(_WORK))
    return rounded(wide / sigma, weight.dtype, count, [weight, u, v])
