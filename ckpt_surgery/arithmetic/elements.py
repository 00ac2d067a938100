"""From the description of a tensor to its elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_surgery.errors import LimitExceededError, MissingDependencyError

if TYPE_CHECKING:
    import torch

    from ckpt_surgery.checkpoint import Tensor

_MOST_REPEATED = 1 << 26  # elements; a view may claim 10**12 over a storage of four
# Types that torch has but cannot convert: their elements are read as what they are stored in.
_STORED_AS = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
    "bits8": "uint8",
    "bits16": "uint16",
}


def load_elements(tensor: Tensor) -> torch.Tensor | None:
    """The elements of a strided tensor in row-major order, as a one-dimensional torch tensor.

    None for a type whose elements are packed below a byte. Raises `LimitExceededError` if they
    repeat a few stored ones too often, and `MissingDependencyError` without torch.
    """
    require_torch()
    import torch

    name = _STORED_AS.get(tensor.dtype.name, tensor.dtype.name)
    if (
        tensor.storage is None
        or tensor.dtype.elements_per_byte > 1
        or name.endswith(("bits1x8", "bits2x4", "bits4x2", "_x2"))
    ):
        return None
    if tensor.numel > max(tensor.extent, _MOST_REPEATED):
        raise LimitExceededError(
            f"a view repeats {tensor.extent} elements to {tensor.numel}",
            entry=f"storage {tensor.storage.key}",
        )
    dtype: torch.dtype = getattr(torch, name)
    if not tensor.numel:
        return torch.empty(0, dtype=dtype)
    data = bytearray()
    for chunk in tensor.storage.data.chunks():
        data += chunk
    stored = torch.frombuffer(data, dtype=torch.uint8)
    if tensor.storage.big_endian:
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        stored = stored.view(-1, width).flip(1).reshape(-1)
    flat = stored.view(dtype)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset).reshape(-1)


def require_torch() -> None:
    """Raise `MissingDependencyError` if torch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingDependencyError(
            "this needs torch, which is not installed", hint="pip install torch"
        )
