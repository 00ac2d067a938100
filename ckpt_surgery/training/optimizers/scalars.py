"""The values of one-element tensors: the few bytes of a step count, read without torch."""

from __future__ import annotations

import math
import struct
from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.pickles import Node

_CODES: Final = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "bool": "?",
}


def scalar(node: Node, tensor: Tensor | None = None) -> int | float | None:
    """Return the number that a node is, or that its one-element
    `tensor` holds; None if it is neither.

    Reads at most eight bytes of the file. An integral value is an int, whatever its type.
    """
    value: object = node if tensor is None else _read(tensor)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _read(tensor: Tensor) -> object:
    storage, code = tensor.storage, _CODES.get(tensor.dtype.name)
    if storage is None or code is None or tensor.numel != 1:
        return None
    width = tensor.dtype.itemsize
    data = _bytes_at(tensor, tensor.offset * width, width)
    return struct.unpack((">" if storage.big_endian else "<") + code, data)[0]


def _bytes_at(tensor: Tensor, start: int, nbytes: int) -> bytes:
    assert tensor.storage is not None  # noqa: S101  # the caller looked
    data = tensor.storage.data
    if isinstance(data, ByteRange):
        return data.slice(start, nbytes).read()
    return b"".join(bytes(chunk) for chunk in data.chunks())[start : start + nbytes]
