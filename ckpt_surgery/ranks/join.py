"""One tensor from the parts of all ranks, described: its bytes stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from ckpt_surgery.checkpoint.description import Storage, Tensor, contiguous_strides
from ckpt_surgery.checkpoint.stitch import Chunk, stitch
from ckpt_surgery.dtypes import DType
from ckpt_surgery.errors import DamagedFileError, LossyEditError, ReadError, UsageError
from ckpt_surgery.fileio import ByteSource
from ckpt_surgery.ranks.axes import How
from ckpt_surgery.ranks.parts import Part
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.equality import equal_bytes, known_equal
from ckpt_surgery.torch_objects.row_major import row_major

_ALL_FILES: Final = "give the files of all ranks of one checkpoint"


@dataclass(frozen=True, slots=True)
class Joined:
    """A whole tensor, and how it came about: an axis, ``placement``, ``copies`` or ``first``."""

    tensor: Tensor
    how: How | str
    parts: int


def join(name: str, parts: Sequence[Part], files: Sequence[str], how: How | None) -> Joined:
    """Return the tensor called `name` from the part of each of `files`.

    `how` is for what is not placed: None takes it for copies. Raises `DamagedFileError` if the
    parts do not make a whole, `LossyEditError` for what cannot be joined, `UsageError` if copies
    differ or an axis does not fit.
    """
    _require_alike(name, parts, files)
    first = parts[0]
    if first.kind == "other":
        raise LossyEditError(
            f"a {first.layout} cannot be put together from the files of ranks"
            if first.layout == "partial sum"
            else f"a {first.layout} tensor cannot be put together from the files of ranks",
            path=files[0],
            entry=name,
        )
    if first.is_placed:
        return _placed(name, parts, files)
    if how is None or how == "copies":
        _require_copies(name, [part.tensor for part in parts], files)
    if not isinstance(how, int):
        return Joined(first.tensor, how or "copies", 1)
    return _along(name, [part.tensor for part in parts], files, how)


def _require_alike(name: str, parts: Sequence[Part], files: Sequence[str]) -> None:
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        if (part.kind, part.layout) != (first.kind, first.layout):
            raise DamagedFileError(
                f"is of another kind than in '{files[0]}'", path=file, entry=name, hint=_ALL_FILES
            )
        if part.is_placed and part.shape != first.shape:
            raise DamagedFileError(
                f"is of a whole of {list(part.shape)}, in '{files[0]}' of {list(first.shape)}",
                path=file,
                entry=name,
                hint=_ALL_FILES,
            )
    types = {tensor.dtype.name for part in parts for _, tensor in part.chunks}
    if len(types) > 1:
        raise DamagedFileError(
            f"the ranks have it in several types: {', '.join(sorted(types))}",
            path=files[0],
            entry=name,
        )


def _placed(name: str, parts: Sequence[Part], files: Sequence[str]) -> Joined:
    """Join chunks that know their places; of those at one place the first counts."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}
    for part in parts:
        for offsets, tensor in part.chunks:
            found.setdefault((offsets, tensor.shape), tensor)
    shape = parts[0].shape
    have, wanted = sum(prod(sizes) for _, sizes in found), prod(shape)
    if have < wanted:
        raise DamagedFileError(
            f"the files hold {have:,} of its {wanted:,} elements: a rank's file is missing",
            path=files[0],
            entry=name,
            hint=_ALL_FILES,
        )
    dtype = next((tensor.dtype for tensor in found.values()), None)
    if dtype is None:
        raise DamagedFileError("no rank has a part of it", path=files[0], entry=name)
    return _stitched(name, shape, dtype, list(found.items()), files, "placement")


def _stitched(
    name: str,
    shape: tuple[int, ...],
    dtype: DType,
    chunks: Sequence[tuple[tuple[tuple[int, ...], tuple[int, ...]], Tensor]],
    files: Sequence[str],
    how: How | str,
) -> Joined:
    try:
        pieces = [Chunk(at, sizes, row_major(tensor)) for (at, sizes), tensor in chunks]
        data = stitch(shape, dtype.itemsize, pieces)
    except ReadError as error:
        error.entry, error.hint = name, error.hint or _ALL_FILES
        error.name_file(files[0])
        raise
    return Joined(whole(name, shape, dtype, data), how, max(len(pieces), 1))


def whole(key: str, shape: tuple[int, ...], dtype: DType, data: ByteSource) -> Tensor:
    """Return a tensor that has `data` to itself."""
    storage = Storage(key, dtype, "cpu", data, untyped=dtype.storage_class is None)
    return Tensor(shape, dtype, contiguous_strides(shape), storage=storage)


def _along(name: str, tensors: Sequence[Tensor], files: Sequence[str], axis: int) -> Joined:
    first = tensors[0].shape
    if not -len(first) <= axis < len(first):
        raise UsageError(
            f"'{name}' has {len(first)} axes, and is to be joined along axis {axis}",
            hint="say how: --axis 'GLOB=AXIS', axes count from 0",
        )
    axis %= len(first)
    for tensor, file in zip(tensors, files, strict=True):
        rest = (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
        if len(tensor.shape) != len(first) or rest != (*first[:axis], *first[axis + 1 :]):
            raise DamagedFileError(
                f"a part of {list(tensor.shape)} does not continue one of {list(first)} along "
                f"axis {axis}",
                path=file,
                entry=name,
                hint="--axis says along which axis a tensor is split",
            )
    chunks: list[tuple[tuple[tuple[int, ...], tuple[int, ...]], Tensor]] = []
    at = 0
    for tensor in tensors:
        offsets = tuple(at if each == axis else 0 for each in range(len(first)))
        chunks.append(((offsets, tensor.shape), tensor))
        at += tensor.shape[axis]
    shape = (*first[:axis], at, *first[axis + 1 :])
    return _stitched(name, shape, tensors[0].dtype, chunks, files, axis)


def _require_copies(name: str, tensors: Sequence[Tensor], files: Sequence[str]) -> None:
    """Raise `UsageError` unless all ranks have the same bytes."""
    first = tensors[0]
    for tensor, file in zip(tensors[1:], files[1:], strict=True):
        same: bool | None = tensor.shape == first.shape
        if same:
            same = known_equal(first, tensor)
        if same is None:
            same = equal_bytes(first, tensor, _ignore)
        if not same:
            raise UsageError(
                f"'{name}' differs between '{files[0]}' and '{file}'",
                hint=f"--axis '{name}=first' takes the first rank's, '{name}=0' joins them",
            )


def _ignore(nbytes: int) -> None:
    del nbytes
