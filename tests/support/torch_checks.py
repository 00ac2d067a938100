"""What torch must say of every archive that is written, and when two loaded values are the same."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.serialization import config

from ckpt_surgery.fileio import FileSource, read_zip


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about its own beta and deprecated types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save(value: Any, path: Path) -> Path:
    with quiet():
        torch.save(value, path)
    return path


def load(path: Path, **options: Any) -> Any:
    with quiet():
        return torch.load(path, **{"weights_only": False, **options})


def assert_torch_reads(
    path: Path, expected: Any, *, weights_only: bool = True, meta: bool = True
) -> None:
    """`path` loads in each of torch's ways, and every way gives `expected`, bit for bit.

    Without `weights_only` or `meta` for what torch itself cannot load in that way.
    """
    found = load(path)
    assert_same(found, expected)
    if weights_only:
        assert_same(load(path, weights_only=True), expected)
    assert_same(load(path, mmap=True), expected)
    with mock.patch.object(config.load, "calculate_storage_offsets", True):
        assert_same(load(path, mmap=True), expected)
    with mock.patch.dict(os.environ, TORCH_SERIALIZATION_DEBUG="1"):
        assert_same(load(path), expected)
        with mock.patch.object(config.load, "calculate_storage_offsets", True):
            assert_same(load(path, mmap=True), expected)
    if meta:
        assert_meta_offsets(path, expected)


def assert_meta_offsets(path: Path, expected: Any) -> None:
    """``map_location="meta"`` gives the shapes, and where in the file each storage lies."""
    with FileSource.open(path) as file:
        offsets = {record.data.offset for record in read_zip(file).records}
    described = load(path, map_location="meta")
    pairs = list(zip(plain_tensors(described), plain_tensors(expected), strict=True))
    for meta, tensor in pairs:
        assert meta.shape == tensor.shape
        assert meta.dtype == tensor.dtype
        if tensor.device.type != "meta":
            assert meta.untyped_storage()._checkpoint_offset in offsets


def plain_tensors(value: Any) -> Iterator[torch.Tensor]:
    """The ordinary strided tensors in dictionaries, lists and tuples, in order."""
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        if value.layout == torch.strided and not value.is_nested and not value.is_quantized:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from plain_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from plain_tensors(item)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements of a strided tensor in order, as bytes: NaN is NaN and -0.0 is not 0.0."""
    if tensor.device.type == "meta" or not tensor.numel():
        return b""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # of one element any stride is contiguous
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same(found: Any, expected: Any) -> None:
    """Equal in type, structure, attributes and every bit; ties between tensors are the same."""
    assert _ties(found) == _ties(expected)
    with quiet():
        _assert_same(found, expected)


def _ties(value: Any) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, tensor in enumerate(plain_tensors(value)):
        if tensor.untyped_storage().nbytes() and tensor.device.type != "meta":
            groups.setdefault(tensor.untyped_storage()._cdata, []).append(index)
    return sorted(groups.values())


def _assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        _assert_same_tensor(found, expected)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for key in expected:
            _assert_same(found[key], expected[key])
        _assert_same(getattr(found, "_metadata", None), getattr(expected, "_metadata", None))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            _assert_same(ours, theirs)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tolist() == expected.tolist()
    elif isinstance(expected, (torch.UntypedStorage, torch.TypedStorage)):
        assert found.tolist() == expected.tolist()
    elif type(expected).__eq__ is object.__eq__ and hasattr(expected, "__dict__"):
        _assert_same(vars(found), vars(expected))
    else:
        assert found == expected


def _assert_same_tensor(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.layout == expected.layout
    assert found.requires_grad == expected.requires_grad
    assert found.is_nested == expected.is_nested
    assert (found.is_conj(), found.is_neg()) == (expected.is_conj(), expected.is_neg())
    if expected.is_nested:
        for ours, theirs in zip(found.unbind(), expected.unbind(), strict=True):
            _assert_same_tensor(ours, theirs)
        return
    _assert_same(dict(vars(found)), dict(vars(expected)))
    assert found.shape == expected.shape
    parts = sparse_parts(expected)
    if parts:
        for ours, theirs in zip(sparse_parts(found), parts, strict=True):
            _assert_same_tensor(ours, theirs)
        return
    assert found.stride() == expected.stride()
    if hasattr(expected, "__tensor_flatten__"):
        return  # its data are its attributes
    assert bits(found) == bits(expected)
    if expected.is_quantized:
        _assert_same(_quantizer(found), _quantizer(expected))


def sparse_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def _quantizer(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.qscheme() == torch.per_tensor_affine:
        return tensor.qscheme(), tensor.q_scale(), tensor.q_zero_point()
    return (
        tensor.qscheme(),
        tensor.q_per_channel_scales(),
        tensor.q_per_channel_zero_points(),
        tensor.q_per_channel_axis(),
    )
