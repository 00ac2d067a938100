"""Bytes that are computed when they are written, from numbers that nobody holds until then."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Storage, Tensor, contiguous_strides
from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.element_job import ElementJob
from ckpt_surgery.compute.jobs import JobBytes
from ckpt_surgery.dtypes import UNTYPED, DType
from ckpt_surgery.fileio import CHUNK, ByteSource
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class _LazyBytes:
    """The elements of the tensor that `compute` makes, row-major; made anew on every reading.

    `nbytes` is what they take, known beforehand. With `big_endian` every number's bytes are
    turned round. `tally` is what `compute` tells what its numbers lose, `made_of` what it reads.
    """

    nbytes: int
    compute: Callable[[], torch.Tensor]
    big_endian: bool = False
    tally: CastTally | None = None
    made_of: Sequence[Tensor] = ()

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order; the tensor is held until the last chunk is taken."""
        values = self.compute().detach().contiguous()
        if self.big_endian:
            values = _swapped(values)
        if values.numel() * values.element_size() != self.nbytes:
            raise ValueError(f"{list(values.shape)} elements do not take {self.nbytes} bytes")
        if not self.nbytes:
            return
        # torch gives out its memory only through numpy, which need not be installed
        memory = (ctypes.c_char * self.nbytes).from_address(values.data_ptr())
        view = memoryview(memory).cast("B")
        for start in range(0, self.nbytes, size):
            yield view[start : start + size]


def _swapped(values: torch.Tensor) -> torch.Tensor:
    import torch

    width = values.element_size() // (2 if values.dtype.is_complex else 1)
    return values.reshape(-1).view(torch.uint8).reshape(-1, width).flip(1).contiguous()


def computed_tensor(
    shape: tuple[int, ...],
    dtype: DType,
    compute: Callable[[], torch.Tensor],
    *,
    key: str = "",
    device: str = "cpu",
    big_endian: bool = False,
    tally: CastTally | None = None,
    workspace: int | None = None,
    made_of: Sequence[Tensor] = (),
) -> Tensor:
    """Return the description of a contiguous tensor of its own storage,
    whose elements `compute` makes.

    `device` is where it is said to lie. `made_of` are the tensors that `compute` reads: they may
    be computed, too, and lose numbers. With `workspace`, the bytes that it takes meanwhile, it is
    computed ahead, in any thread.
    """
    untyped = dtype.storage_class is None
    plain = Tensor(shape, dtype, contiguous_strides(shape))
    data: ByteSource = _LazyBytes(dtype.nbytes(plain.numel), compute, big_endian, tally, made_of)
    if workspace is not None:
        job = ElementJob(compute, shape, dtype, workspace)
        job.big_endian, job.tally, job.made_of = big_endian, tally, made_of
        data = JobBytes(job)
    stored = UNTYPED if untyped else dtype
    storage = Storage(key, stored, device, data, untyped=untyped, big_endian=big_endian)
    return replace(plain, device=device, storage=storage)
