"""A tensor that is made of others at once, handed on row by row: views are laid out run by run."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Final

from ckpt_surgery.compute.jobs import Job
from ckpt_surgery.compute.spans import RUN, spans
from ckpt_surgery.dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor

_PIECE: Final = 1 << 18
"""Elements turned at a time: they stay in the cache."""


class ElementJob(Job):
    """The elements of the tensor that `make` returns, mostly a view of what it has read.

    Its shape and type are known beforehand. `workspace` are the bytes that making it takes.
    """

    def __init__(
        self, make: Callable[[], Tensor], shape: tuple[int, ...], dtype: DType, workspace: int
    ) -> None:
        parts = 2 if dtype.kind == "complex" else 1
        self._make, self._shape = make, shape
        self.numel, self.itemsize = prod(shape) * parts, dtype.itemsize // parts
        self.workspace = workspace
        row = max(prod(shape[1:]) * parts, 1)
        self.run_size = max(RUN // row, 1) * row

    def begin(self) -> Tensor:
        """Return the tensor, whose elements may lie in any order."""
        values = self._make().detach()
        if tuple(values.shape) != self._shape:
            raise ValueError(f"{list(values.shape)} was made for {list(self._shape)}")
        return values

    def run(self, begun: Tensor, start: int, stop: int) -> Tensor:
        """Return whole rows of it, laid out."""
        import torch

        real = torch.view_as_real(begun.resolve_conj()) if begun.is_complex() else begun
        if real.dim() < 2:
            return real.contiguous().reshape(-1)[start:stop]
        row = self.numel // self._shape[0]
        block = real[start // row : stop // row]
        if block.dim() == 2 and block.stride(0) == 1:
            return _turned(block)
        return block.contiguous().reshape(-1)


def _turned(block: Tensor) -> Tensor:
    """Return the elements of a matrix whose columns lie together, row by row.

    torch turns a few rows that lie alone six times as fast as a part of a larger matrix.
    """
    import torch

    result = torch.empty(block.shape, dtype=block.dtype)
    step = max(_PIECE // block.shape[1], 1)
    for first, last in spans(0, block.shape[0], step):
        result[first:last] = block[first:last].t().contiguous().t()
    return result.reshape(-1)
