"""A tensor in another element type, computed run by run while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Storage, Tensor, contiguous_strides
from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.jobs import Job, JobBytes
from ckpt_surgery.compute.spans import spans
from ckpt_surgery.dtypes import UNTYPED, DType
from ckpt_surgery.fileio import ByteRange

if TYPE_CHECKING:
    import torch

    _Read = Callable[[int, int], torch.Tensor]

_PIECE: Final = 1 << 16
"""Elements converted and measured at a time: the five arrays that takes stay in the cache."""


class _CastJob(Job):
    def __init__(self, tensor: Tensor, dtype: DType, tally: CastTally) -> None:
        parts = 2 if dtype.kind == "complex" else 1
        self._tensor, self._dtype = tensor, dtype
        self.tally, self.made_of = tally, (tensor,)
        self.numel, self.itemsize = tensor.numel * parts, dtype.itemsize // parts
        if tensor.storage is not None:
            self.big_endian = tensor.storage.big_endian
            streams = tensor.is_contiguous and isinstance(tensor.storage.data, ByteRange)
            self.workspace = 0 if streams else 2 * tensor.nbytes

    def begin(self) -> _Read:
        from ckpt_surgery.compute.elements import run_reader

        return run_reader(self._tensor)

    def run(self, begun: _Read, start: int, stop: int) -> torch.Tensor:
        import torch

        from ckpt_surgery.compute.casting import real_dtype, torch_dtype
        from ckpt_surgery.compute.rounding import converted

        dtype = real_dtype(torch_dtype(self._dtype))
        values = begun(start, stop)
        result = torch.empty(stop - start, dtype=dtype)
        for first, last in spans(0, stop - start, _PIECE):
            piece, count = converted(values[first:last], dtype)
            result[first:last] = piece
            if self.tally is not None:
                self.tally.add(count, part=start + first)
        return result


def cast_tensor(tensor: Tensor, dtype: DType, name: str, *, most: float | None = None) -> Tensor:
    """Return the description of `tensor` in another type, row-major in a storage of its own.

    Its elements can be read one by one, and are both complex or both not. What the conversion
    loses is counted under `name`; `most` is the largest relative loss that is allowed.
    """
    tally = CastTally(name, tensor.dtype.name, dtype.name, tensor.numel, most=most)
    job = _CastJob(tensor, dtype, tally)
    untyped = dtype.storage_class is None
    storage = Storage(
        name,
        UNTYPED if untyped else dtype,
        tensor.device if tensor.storage is None else tensor.storage.device,
        JobBytes(job),
        untyped=untyped,
        big_endian=job.big_endian,
    )
    return replace(
        tensor,
        dtype=dtype,
        stride=contiguous_strides(tensor.shape),
        offset=0,
        storage=storage,
        node=None,
    )
