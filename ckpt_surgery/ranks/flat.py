"""Parameters out of flat vectors that the ranks have parts of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from ckpt_surgery.checkpoint.description import Tensor, contiguous_strides
from ckpt_surgery.checkpoint.stitch import Chunk, stitch
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import Node
from ckpt_surgery.ranks.join import whole
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.storages import text


class Vector:
    """Flat tensors one after the other, of which runs of elements are taken.

    Raises `DamagedFileError` if they are not flat, or not of one type.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        if any(len(tensor.shape) != 1 for tensor in tensors):
            raise DamagedFileError("a vector of parameters has more than one axis")
        if len({tensor.dtype.name for tensor in tensors}) > 1:
            raise DamagedFileError("vectors of parameters have several types")
        self._tensors = list(tensors)
        self.numel = sum(tensor.numel for tensor in tensors)

    def runs(self, start: int, numel: int) -> list[Tensor]:
        """Return `numel` elements from `start` on. Raises `DamagedFileError` if there are none."""
        if start + numel > self.numel:
            raise DamagedFileError(
                f"elements up to {start + numel} of a vector of {self.numel} are wanted"
            )
        found: list[Tensor] = []
        for tensor in self._tensors:
            count = min(tensor.numel - start, numel)
            if count > 0:
                offset = tensor.offset + start * tensor.stride[0]
                found.append(replace(tensor, shape=(count,), offset=offset))
                numel -= count
            start = max(start - tensor.numel, 0)
        return found


def shaped(name: str, shape: tuple[int, ...], runs: Iterable[Tensor]) -> Tensor:
    """Return a tensor of `shape` whose elements are those of `runs`, of which it takes the first.

    Raises `DamagedFileError` if they are too few.
    """
    left = prod(shape)
    chunks: list[Chunk] = []
    at = 0
    kinds = set()
    for run in runs:
        kinds.add(run.dtype)
        count = min(run.numel, left - at)
        if count:
            data = row_major(replace(run, shape=(count,)))
            chunks.append(Chunk((at,), (count,), data))
            at += count
    if len(kinds) != 1 or at < left:
        raise DamagedFileError(f"{at} elements are there for a tensor of {list(shape)}", entry=name)
    (dtype,) = kinds
    data = stitch((left,), dtype.itemsize, chunks)
    return whole(name, shape, dtype, data)


def view_of(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a contiguous tensor in another shape of as many elements."""
    if prod(shape) != tensor.numel or not tensor.is_contiguous:
        raise DamagedFileError(f"a tensor of {list(tensor.shape)} is no one of {list(shape)}")
    return replace(tensor, shape=shape, stride=contiguous_strides(shape))


def item(node: Node, *keys: str) -> Node:
    """Return what lies under keys of nested dictionaries; None if there is nothing."""
    for key in keys:
        pairs = mapping_pairs(node) or ()
        node = next((value for each, value in pairs if text(each) == key), None)
    return node
