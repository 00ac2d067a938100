"""Compare a state dict as described with the one that torch gives, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ckpt_surgery.checkpoint.description import StateDict, Tensor
from ckpt_surgery.pickles import Dict


def load(tensor: Tensor) -> torch.Tensor:
    """The elements that `tensor` describes."""
    assert tensor.storage is not None
    data = bytearray(b"".join(tensor.storage.data.chunks()))
    dtype = getattr(torch, tensor.dtype.name)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)


def to_python(node: object) -> object:
    if isinstance(node, Dict):
        return {to_python(key): to_python(value) for key, value in node.pairs()}
    return node


def assert_same(found: StateDict, expected: Mapping[str, Any]) -> None:
    """Names, order, metadata, and of each tensor type, shape, strides, offset and bits."""
    assert found.names == list(expected)
    metadata = getattr(expected, "_metadata", None)
    assert found.metadata is not None
    assert metadata is not None
    assert list(found.metadata) == list(metadata)
    assert {name: to_python(node) for name, node in found.metadata.items()} == dict(metadata)
    for entry in found.entries:
        value = expected[entry.name]
        assert entry.key_node == entry.name
        if entry.tensor is None:
            assert not isinstance(value, torch.Tensor) or torch.nn.parameter.is_lazy(value)
            continue
        assert entry.tensor.node is entry.node
        assert not entry.tensor.is_parameter
        assert not entry.tensor.requires_grad
        assert entry.tensor.stride == value.stride()
        assert entry.tensor.offset == value.storage_offset()
        loaded = load(entry.tensor)
        assert loaded.dtype == value.dtype
        assert loaded.shape == value.shape
        assert torch.equal(loaded, value.detach())
