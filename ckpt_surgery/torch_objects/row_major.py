"""A tensor's elements as torch has them: row-major, little-endian, whatever the file holds."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final

from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.checkpoint.gather import Gathered, part_of
from ckpt_surgery.errors import LimitExceededError, ReadError
from ckpt_surgery.fileio import CHUNK, ByteSource
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.math_bits import math_bits

MOST_REPEATED: Final = 1 << 26
"""Elements that a view may have beyond those it stores: one may claim 10**12 over four."""

_FORMATS: Final = {2: "H", 4: "I", 8: "Q"}
_SIGN: Final = bytes(byte ^ 0x80 for byte in range(256))
_WITH_SIGN_BIT: Final = frozenset(
    {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}
)

_Convert = Callable[[bytearray], "bytes | bytearray"]


def row_major(tensor: Tensor) -> ByteSource:
    """Return the elements of a strided tensor, row-major and little-endian.

    A range of the file where they lie there like this. Conjugated and negated views give the
    numbers that torch shows. Raises `LimitExceededError` if a view repeats a few stored elements
    too often, and `ReadError` for one whose elements cannot be told apart without torch.
    """
    storage = tensor.storage
    if storage is None:
        raise ReadError(f"a tensor of layout '{tensor.layout}' is not one strided view")
    _require_bounded(tensor, storage)
    conversions = list(_conversions(tensor, storage))
    source = _as_stored(tensor, storage)
    for convert in conversions:
        source = _Converted(source, tensor.dtype.itemsize, convert)
    return source


def _require_bounded(tensor: Tensor, storage: Storage) -> None:
    if tensor.numel > max(tensor.extent, MOST_REPEATED):
        raise LimitExceededError(
            f"a view repeats {tensor.extent} elements to {tensor.numel}",
            entry=f"storage {storage.key}",
        )


def _as_stored(tensor: Tensor, storage: Storage) -> ByteSource:
    """Return the elements in row-major order, each with its bytes as they are."""
    dtype, data = tensor.dtype, storage.data
    packed = dtype.elements_per_byte
    if packed > 1 and (tensor.offset % packed or not tensor.is_contiguous):
        raise ReadError(
            f"a view of '{dtype.name}' has elements that do not start at a byte",
            entry=f"storage {storage.key}",
        )
    start, nbytes = tensor.offset * dtype.itemsize // packed, tensor.nbytes
    if not nbytes:
        return Gathered(data, (0,), (1,), dtype.itemsize)
    if tensor.is_contiguous:
        return part_of(data, start, nbytes)
    data = part_of(data, start, dtype.nbytes(tensor.extent))
    return Gathered(data, tensor.shape, tensor.stride, dtype.itemsize)


@dataclass(frozen=True, slots=True)
class _Converted:
    """Elements of `itemsize` bytes, changed in place one chunk at a time."""

    source: ByteSource
    itemsize: int
    convert: _Convert

    @property
    def nbytes(self) -> int:
        return self.source.nbytes

    @property
    def crc32(self) -> None:
        return None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        """Yield the bytes in order, at most `size` at a time and never a part of an element."""
        size = max(size - size % self.itemsize, self.itemsize)
        rest = bytearray()
        for chunk in self.source.chunks(size):
            rest += chunk
            whole = min(len(rest) - len(rest) % self.itemsize, size)
            if whole:
                yield memoryview(self.convert(rest[:whole]))
                del rest[:whole]
        if rest:
            yield memoryview(self.convert(rest))


def _conversions(tensor: Tensor, storage: Storage) -> Iterator[_Convert]:
    dtype = tensor.dtype
    width = dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize
    if storage.big_endian and width > 1:
        yield lambda data: _swapped(data, width)
    conjugate, negative = math_bits(tensor)
    if (conjugate or negative) and dtype.name not in _WITH_SIGN_BIT:
        raise ReadError(
            f"a negated view of '{dtype.name}' needs torch", entry=f"storage {storage.key}"
        )
    if negative:
        yield lambda data: _negated(data, width - 1, width)
    if conjugate and dtype.kind == "complex":
        yield lambda data: _negated(data, 2 * width - 1, 2 * width)


def _swapped(data: bytearray, width: int) -> bytes:
    words = array(_FORMATS[width], bytes(data))
    words.byteswap()
    return words.tobytes()


def _negated(data: bytearray | bytes, first: int, step: int) -> bytearray:
    """`data` with the sign bit turned in every `step`-th byte from `first` on."""
    changed = bytearray(data)
    changed[first::step] = changed[first::step].translate(_SIGN)
    return changed
