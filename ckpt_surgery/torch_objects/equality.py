"""Whether two tensors hold the same elements: by what the files say, otherwise byte by byte."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import CHUNK, ByteSource
from ckpt_surgery.torch_objects.digest import tensor_digest
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.row_major import row_major

_BLOCK: Final = CHUNK // 4

Advance = Callable[[int], object]
"""Called with the number of bytes that have just been read of both tensors together."""


def known_equal(a: Tensor, b: Tensor) -> bool | None:
    """Return whether checksums say that two tensors of one type and shape are equal.

    None if they do not say: there are none, or the tensors lie differently in what they are of.
    Two storages of one length and one checksum are taken for equal; by chance that is wrong once
    in four thousand million times.
    """
    if a.storage is None or b.storage is None:
        return None
    if a.layout != "strided" or b.layout != "strided":  # scales and indices are beside
        return None
    sums = a.storage.data.crc32, b.storage.data.crc32
    if not all(sums) or a.storage.nbytes != b.storage.nbytes:
        return None
    alike = a.storage.big_endian == b.storage.big_endian and math_bits(a) == math_bits(b)
    if not alike or (a.offset, a.stride) != (b.offset, b.stride):
        return None
    if sums[0] == sums[1]:
        return True
    whole = a.is_contiguous and a.nbytes == a.storage.nbytes
    return False if whole else None


def equal_bytes(a: Tensor, b: Tensor, advance: Advance) -> bool:
    """Return whether two tensors of one type and shape hold the same bytes; reads both.

    Raises `ReadError` for tensors whose elements are not known without running their code, and if
    a file cannot be read.
    """
    if a.layout != "strided" or b.layout != "strided" or a.storage is None or b.storage is None:
        return tensor_digest("", a, advance) == tensor_digest("", b, advance)
    first, second = row_major(a), row_major(b)
    if first.nbytes != second.nbytes:
        return False
    for one, other in zip(_blocks(first), _blocks(second), strict=True):
        advance(2 * len(one))
        if one != other:
            return False
    return True


def _blocks(source: ByteSource) -> Iterator[bytes | memoryview]:
    """Yield the bytes in blocks of one size, however they come."""
    rest = b""
    for chunk in source.chunks(_BLOCK):
        if not rest and len(chunk) == _BLOCK:
            yield chunk
            continue
        data = rest + bytes(chunk)
        whole = len(data) - len(data) % _BLOCK
        for start in range(0, whole, _BLOCK):
            yield data[start : start + _BLOCK]
        rest = data[whole:]
    if rest:
        yield rest


def fingerprint(tensor: Tensor, advance: Advance) -> object:
    """Return what equal tensors have in common: type, shape and a checksum of the elements.

    None for a tensor whose elements are not known. The checksum is read from the file where it has
    one, otherwise computed.
    """
    if tensor.layout != "strided" or tensor.storage is None:
        try:
            return tensor.layout, tensor_digest("", tensor, advance)
        except ReadError:
            return None
    source = row_major(tensor)
    crc32 = source.crc32 or None
    if crc32 is None:
        crc32 = 0
        for chunk in source.chunks():
            crc32 = zlib.crc32(chunk, crc32)
            advance(len(chunk))
    return tensor.dtype.name, tensor.shape, crc32
