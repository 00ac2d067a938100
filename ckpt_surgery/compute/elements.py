"""From the description of a tensor to its elements."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from ckpt_surgery.errors import LimitExceededError, MissingDependencyError
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.fileio.checksum import PieceSums
from ckpt_surgery.fileio.sources import ends_early
from ckpt_surgery.startup.collector import collector_paused
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.row_major import MOST_REPEATED

if TYPE_CHECKING:
    import torch

    from ckpt_surgery.checkpoint.description import Storage, Tensor

_PACKED = re.compile(r"u?int[1-7]|bits\dx\d|.*_x2")  # several elements, or part of one, in a byte
# Types that torch has but cannot convert: their elements are read as what they are stored in.
_STORED_AS = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
    "bits8": "uint8",
    "bits16": "uint16",
}


def can_load(tensor: Tensor) -> bool:
    """Return whether `load_elements` can: the tensor is strided, its elements are whole bytes."""
    dtype = tensor.dtype
    packed = dtype.elements_per_byte > 1 or _PACKED.fullmatch(dtype.name) is not None
    return tensor.storage is not None and not packed and dtype.in_torch


def load_elements(tensor: Tensor) -> torch.Tensor | None:
    """Return the elements of a strided tensor in row-major order,
    as a one-dimensional torch tensor.

    None for a type whose elements are packed below a byte. Raises `LimitExceededError` if they
    repeat a few stored ones too often, and `MissingDependencyError` without torch.
    """
    require_torch()
    import torch

    name = _STORED_AS.get(tensor.dtype.name, tensor.dtype.name)
    if tensor.storage is None or not can_load(tensor):
        return None
    require_bounded(tensor)
    dtype: torch.dtype = getattr(torch, name)
    if not tensor.numel:
        return torch.empty(0, dtype=dtype)
    stored = _stored_bytes(tensor, tensor.storage)
    if tensor.storage.big_endian:
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        stored = stored.view(-1, width).flip(1).reshape(-1)
    elements = stored.view(dtype).as_strided(tensor.shape, tensor.stride).reshape(-1)
    conjugate, negative = math_bits(tensor)
    if conjugate:
        elements = elements.conj().resolve_conj()
    return -elements if negative else elements


def require_bounded(tensor: Tensor) -> None:
    """Raise `LimitExceededError` for a strided tensor that repeats its elements too often."""
    if tensor.storage is not None and tensor.numel > max(tensor.extent, MOST_REPEATED):
        raise LimitExceededError(
            f"a view repeats {tensor.extent} elements to {tensor.numel}",
            entry=f"storage {tensor.storage.key}",
        )


def run_reader(tensor: Tensor) -> Callable[[int, int], torch.Tensor]:
    """Return a function that gives the elements from one position to another, row-major and flat.

    Positions count real numbers, two of them for a complex element. Elements that lie in this
    order in a file are read when they are asked for, by whatever thread asks; any others are
    loaded all at once. Raises what `load_elements` raises, and `ReadError` when reading.
    """
    import torch

    storage = tensor.storage
    as_stored = tensor.is_contiguous and not any(math_bits(tensor))
    if storage is None or not isinstance(storage.data, ByteRange) or not as_stored:
        return _loaded_reader(tensor)
    dtype: torch.dtype = getattr(torch, _STORED_AS.get(tensor.dtype.name, tensor.dtype.name))
    dtype = dtype.to_real() if dtype.is_complex else dtype
    width, data, swapped = dtype.itemsize, storage.data, storage.big_endian
    first = tensor.dtype.nbytes(tensor.offset)
    source, begin = data.source, data.offset + first
    if first + tensor.dtype.nbytes(tensor.numel) > data.nbytes:
        raise ends_early(source, begin, tensor.nbytes)
    sums = PieceSums(data) if tensor.nbytes == data.nbytes else None

    def read(start: int, stop: int) -> torch.Tensor:
        raw = torch.empty((stop - start) * width, dtype=torch.uint8)
        if stop > start:
            piece = raw.numpy().data
            source.read_into(begin + start * width, piece)
            if sums is not None:
                sums.add(start * width, piece)
        if swapped:
            raw = raw.view(-1, width).flip(1).reshape(-1)
        return raw.view(dtype)

    return read


def _loaded_reader(tensor: Tensor) -> Callable[[int, int], torch.Tensor]:
    import torch

    lock = Lock()
    loaded: list[torch.Tensor] = []

    def read(start: int, stop: int) -> torch.Tensor:
        with lock:
            if not loaded:
                elements = load_elements(tensor)
                if elements is None:
                    raise TypeError(tensor.dtype)
                real = (
                    torch.view_as_real(elements).reshape(-1) if elements.is_complex() else elements
                )
                loaded.append(real)
        return loaded[0][start:stop]

    return read


def _stored_bytes(tensor: Tensor, storage: Storage) -> torch.Tensor:
    """Return the bytes from the tensor's first element to its last, out of what may be far more.

    Raises `DamagedFileError` if they are all of a range, and not those of its checksum.
    """
    import torch

    start, nbytes = tensor.dtype.nbytes(tensor.offset), tensor.dtype.nbytes(tensor.extent)
    if isinstance(storage.data, ByteRange):
        part = storage.data.slice(start, nbytes)
        raw = torch.empty(nbytes, dtype=torch.uint8)
        piece = raw.numpy().data
        part.source.read_into(part.offset, piece)
        if part.crc32:
            part.require_checksum(zlib.crc32(piece))
        return raw
    data = bytearray()
    for chunk in storage.data.chunks():
        data += chunk
    return torch.frombuffer(data[start : start + nbytes], dtype=torch.uint8)


def require_torch() -> None:
    """Import torch; raise `MissingDependencyError` if it is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingDependencyError(
            "this needs torch, which is not installed", hint="pip install torch"
        )
    # its import makes half a million objects that stay; the collector adds a fifth to the time
    with collector_paused():
        import torch  # noqa: F401 - so that it is there when it is used
