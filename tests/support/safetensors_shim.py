"""The safetensors library with our reader and writer in the place of its compiled part.

`put_in_place` exchanges what ``safetensors/__init__.py`` takes from Rust: `serialize`,
`serialize_file`, `deserialize` and `safe_open`. The library's Python (``safetensors.torch``,
``safetensors.numpy``) stays as it is and calls ours, so that its own tests judge us. As a plugin of
pytest (``-p safetensors_shim``) it is in place before any test is imported, which is how
`scripts/safetensors_suite` runs the project's tests. What is no business of a reader (how a slice
is spelled in an error) is done here with numpy or torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from memory_sink import MemorySink
from safetensors import SafetensorError, TensorSpec

from ckpt_surgery import (
    Checkpoint,
    CkptError,
    Entry,
    Other,
    Output,
    StateDict,
    Storage,
    Tensor,
    read,
)
from ckpt_surgery.checkpoint.description import contiguous_strides
from ckpt_surgery.dtypes import BY_SAFETENSORS, UNTYPED
from ckpt_surgery.fileio import ByteRange, FileSource, MemorySource
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.formats.safetensors import Safetensors
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.formats.safetensors_write import tied_names
from ckpt_surgery.pickles import DEFAULT_LIMITS
from ckpt_surgery.writing.write import write

calls = dict.fromkeys(("serialize", "serialize_file", "deserialize", "safe_open"), 0)
"""How often each was called, so that a run can show that ours was the one."""


@contextmanager
def _as_theirs(doing: str) -> Iterator[None]:
    try:
        yield
    except CkptError as error:
        raise SafetensorError(f"Error while {doing}: {error}") from error


def _described(tensors: Mapping[str, TensorSpec]) -> Checkpoint:
    """Return the description of tensors that lie in this process's memory."""
    entries, sources = [], []
    for name, spec in tensors.items():
        if not isinstance(spec, TensorSpec):
            raise TypeError(f"'{name}' is no TensorSpec")
        source = MemorySource(ctypes.string_at(spec.data_ptr, spec.data_len), name=name)
        dtype, shape = BY_SAFETENSORS[spec.dtype], list(spec.shape)
        if spec.dtype == "F4":  # of which torch counts bytes
            shape[-1] //= 2
        plain = dtype.storage_class is None
        data = ByteRange(source, 0, source.size)
        storage = Storage(name, UNTYPED if plain else dtype, "cpu", data, untyped=plain)
        tensor = Tensor(tuple(shape), dtype, contiguous_strides(tuple(shape)), storage=storage)
        entries.append(Entry(name, tensor))
        sources.append(source)
    return Checkpoint(
        format="safetensors",
        sources=tuple(sources) or (MemorySource(b"", name="nothing"),),
        root=None,
        state_dicts=(StateDict("", "model", tuple(entries)),),
        others=(),
    )


def _with(checkpoint: Checkpoint, metadata: Mapping[str, str] | None) -> Checkpoint:
    """Put texts beside tensors; unlike the option of ours they may name a tensor that is tied."""
    if metadata is None:
        return checkpoint
    from dataclasses import replace

    return replace(checkpoint, others=(Other(METADATA, "dict", dict(metadata)),))


def serialize(
    tensor_dict: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None
) -> bytes:
    calls["serialize"] += 1
    with _as_theirs("serializing"):
        checkpoint = _with(_described(tensor_dict), metadata)
        (file,) = Safetensors().lay_out(checkpoint, LayoutOptions()).files
        sink = MemorySink()
        file.write(sink)
    return bytes(sink.data)


def serialize_file(
    tensor_dict: Mapping[str, TensorSpec], filename: Any, metadata: Mapping[str, str] | None = None
) -> None:
    calls["serialize_file"] += 1
    with _as_theirs("serializing"):
        checkpoint = _with(_described(tensor_dict), metadata)
        output = Output(filename, force=True, format="safetensors")
        write(checkpoint, output, inputs=checkpoint.sources)


def deserialize(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    calls["deserialize"] += 1
    with _as_theirs("deserializing"):
        found = Safetensors().read(MemorySource(data, name="memory"), DEFAULT_LIMITS)
    return [
        (name, {"dtype": _code(t), "shape": _elements(t), "data": bytearray(_bytes(t))})
        for name, t in _stored(found)
    ]


def _stored(checkpoint: Checkpoint) -> list[tuple[str, Tensor]]:
    """Return what has bytes in the file, in their order; the aliases are names beside these."""
    aliases = tied_names(checkpoint.state_dicts[0])
    return [(name, tensor) for name, tensor in checkpoint.tensors if name not in aliases]


def _code(tensor: Tensor) -> str:
    return str(tensor.dtype.safetensors)


def _elements(tensor: Tensor) -> list[int]:
    shape = list(tensor.shape)
    return [*shape[:-1], shape[-1] * 2] if _code(tensor) == "F4" else shape


def _bytes(tensor: Tensor) -> bytes:
    assert tensor.storage is not None
    return b"".join(bytes(chunk) for chunk in tensor.storage.data.chunks())


class _Opened:
    """What `safe_open` gives: a description of ours, and what it describes in a framework."""

    def __init__(self, checkpoint: Checkpoint, framework: str, device: Any) -> None:
        self._checkpoint: Checkpoint | None = checkpoint
        self._tensors = dict(_stored(checkpoint))
        self._framework, self._device = framework, device

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._checkpoint = None

    @property
    def _open(self) -> Checkpoint:
        if self._checkpoint is None:
            raise SafetensorError("File is closed")
        return self._checkpoint

    def metadata(self) -> dict[str, str] | None:
        texts = next((o.value for o in self._open.others if o.path == METADATA), None)
        aliases = tied_names(self._open.state_dicts[0])
        return {**(texts or {}), **aliases} if texts is not None or aliases else None

    def keys(self) -> list[str]:
        return sorted(self._tensors) if self._open else []

    def offset_keys(self) -> list[str]:
        return list(self._tensors) if self._open else []

    def get_tensor(self, name: str) -> Any:
        assert self._open
        if name not in self._tensors:
            raise SafetensorError(f"File does not contain tensor {name}")
        tensor = self._tensors[name]
        data = bytearray(_bytes(tensor))
        if self._framework in {"np", "numpy"}:
            kind = safetensors.numpy._getdtype(_code(tensor))
            return np.frombuffer(data, dtype=kind).reshape(tensor.shape)
        kind = getattr(torch, tensor.dtype.name)
        if not data:
            return torch.empty(tensor.shape, dtype=kind)
        flat = torch.frombuffer(data, dtype=torch.uint8).view(kind)
        return flat.reshape(tensor.shape).to(self._device)

    def get_tensors(self) -> dict[str, Any]:
        return {name: self.get_tensor(name) for name in self.offset_keys()}

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self.get_tensor(name), _code(self._tensors[name]), self._tensors[name])


class _Slice:
    def __init__(self, value: Any, code: str, tensor: Tensor) -> None:
        self._value, self._code, self._shape = value, code, _elements(tensor)

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return self._code

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            if index:
                raise SafetensorError("Non empty lists are not implemented")
            return self._value[:0]
        items = index if isinstance(index, tuple) else (index,)
        for at, item in enumerate(items):
            size = self._shape[at]
            if isinstance(item, int) and item < -size:
                raise SafetensorError(f"Invalid index {item} for dimension {at} of size {size}")
            last = item if isinstance(item, int) else (getattr(item, "stop", None) or 0) - 1
            if last >= size:
                asked = ", ".join(map(_spelled, items))
                raise SafetensorError(
                    f"Error during slicing [{asked}] with shape {self._shape}: "
                    f"index {last} out of bounds for tensor dimension #{at} of size {size}"
                )
        return self._value[index]


def _spelled(item: Any) -> str:
    if not isinstance(item, slice):
        return str(item)
    return ":".join("" if end is None else str(end) for end in (item.start, item.stop))


def safe_open(
    filename: Any, framework: str, device: Any = "cpu", *, backend: str = "mmap"
) -> _Opened:
    calls["safe_open"] += 1
    if backend not in {"mmap", "pread"}:
        raise SafetensorError(f"backend {backend} is invalid")
    from pathlib import Path

    if not Path(filename).exists():
        raise FileNotFoundError(f"No such file or directory: {filename}")
    with _as_theirs("deserializing header"):
        return _Opened(read(filename), framework, device)


def _safe_open_handle(
    f: Any, framework: str, device: Any = "cpu", *, backend: str = "mmap"
) -> _Opened:
    del backend
    with _as_theirs("deserializing header"):
        source = FileSource.open(f"/dev/fd/{f.fileno()}")
        return _Opened(Safetensors().read(source, DEFAULT_LIMITS), framework, device)


_OURS: Sequence[Callable[..., Any]] = (
    serialize, serialize_file, deserialize, safe_open, _safe_open_handle,
)  # fmt: skip


def put_in_place(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Exchange the library's compiled functions for ours, wherever it has a name for them."""
    for module in (safetensors, safetensors.torch, safetensors.numpy):
        for ours in _OURS:
            if hasattr(module, ours.__name__):
                put(module, ours.__name__, ours)


def pytest_configure(config: Any) -> None:
    """Be in place before any test is imported (only as a plugin of pytest, by name)."""
    del config
    put_in_place()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how often ours was called."""
    terminalreporter.write_line(f"calls of ours: {calls}")
