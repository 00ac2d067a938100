"""What torch says about a file, to compare with what `ckpt_surgery.formats` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor, join_path


def storage_bytes(tensor: Tensor) -> bytes:
    """The bytes of the storage, read in chunks as every consumer would."""
    assert tensor.storage is not None
    return b"".join(bytes(chunk) for chunk in tensor.storage.data.chunks())


def materialise(tensor: Tensor) -> torch.Tensor:
    """Make the tensor that is described, of the bytes that it is said to have."""
    dtype = getattr(torch, tensor.dtype.name)
    data = storage_bytes(tensor)
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
    return flat.view(dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in order as bytes, so that NaN equals NaN and -0.0 differs from 0.0."""
    if tensor.numel() == 0:
        return b""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor below `value` with the path that a checkpoint's description gives it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, join_path(path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, join_path(path, str(index)))


def assert_same_tensor(ours: Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == tuple(theirs.shape)
    assert ours.stride == theirs.stride()
    assert f"torch.{ours.dtype.name}" == str(theirs.dtype)
    assert bits(materialise(ours)) == bits(theirs)


def assert_same_tensors(checkpoint: Checkpoint, loaded: Any) -> None:
    """Every tensor of the file is described, in the order of torch's result, bit for bit."""
    theirs = dict(flatten(loaded))
    ours = dict(checkpoint.tensors)
    assert ours
    assert list(ours) == [path for path in theirs if path in ours]
    for path, tensor in ours.items():
        assert_same_tensor(tensor, theirs.pop(path))
    beside = [tensor for other in checkpoint.others for tensor in other.tensors]
    assert len(beside) == len(theirs)
    for tensor, expected in zip(beside, theirs.values(), strict=True):
        assert_same_tensor(tensor, expected)
