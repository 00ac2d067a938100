"""A toy format: a directory with one `.npy` file for each tensor. One file and one registration."""

from __future__ import annotations

import ast
import struct
from collections.abc import Sequence
from math import prod

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import ByteRange, FileSource, Source
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.formats.base import FileLayout, Format, Layout, LayoutOptions, Loss
from ckpt_surgery.pickles import Limits
from ckpt_surgery.torch_objects.row_major import row_major

_MAGIC = b"\x93NUMPY\x01\x00"
_CODES = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "int32": "<i4", "uint8": "|u1"}
_NAMES = {code: name for name, code in _CODES.items()}
_SUFFIX = ".npy"


class NpyDirectory(Format):
    name = "npy-dir"
    title = "a directory of .npy files"
    of_directories = True

    def sniff(self, source: Source) -> bool:
        names = source.names if isinstance(source, DirectorySource) else []
        return bool(names) and all(name.endswith(_SUFFIX) for name in names)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        assert isinstance(source, DirectorySource)
        entries = [
            Entry(name.removesuffix(_SUFFIX), _tensor(source.member(name))) for name in source.names
        ]
        state_dicts = (StateDict("", "model", tuple(entries)),)
        return Checkpoint("npy-dir", (source,), root=None, state_dicts=state_dicts)

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        return [
            *(Loss(o.path, "other", o.type, "is no tensor") for o in checkpoint.others),
            *(
                Loss(name, "entry", f"a tensor of {tensor.dtype.name}", "numpy has no such type")
                for name, tensor in checkpoint.tensors
                if tensor.dtype.name not in _CODES
            ),
        ]

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        files = [_file(name, tensor) for name, tensor in checkpoint.state_dicts[0].tensors]
        return Layout(tuple(files), owned=("*.npy",))


def _tensor(file: FileSource) -> Tensor:
    head = file.read_at(0, 10)
    if head[:8] != _MAGIC:
        raise DamagedFileError("is no .npy file", path=file.name)
    (nbytes,) = struct.unpack("<H", head[8:])
    header = ast.literal_eval(file.read_at(10, nbytes).decode())
    shape, dtype = header["shape"], BY_NAME[_NAMES[header["descr"]]]
    data = ByteRange(file, 10 + nbytes, dtype.nbytes(prod(shape)))
    return Tensor(shape, dtype, _steps(shape), storage=Storage(file.name, dtype, "cpu", data))


def _steps(shape: Sequence[int]) -> tuple[int, ...]:
    steps = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        steps[axis] = steps[axis + 1] * max(shape[axis + 1], 1)
    return tuple(steps)


def _file(name: str, tensor: Tensor) -> FileLayout:
    described = {"descr": _CODES[tensor.dtype.name], "fortran_order": False, "shape": tensor.shape}
    text = f"{described}\n".encode()
    header = _MAGIC + struct.pack("<H", len(text)) + text
    data = row_major(tensor)

    def write(sink: Sink) -> None:
        sink.write(header)
        sink.copy(data)

    return FileLayout(f"{name}{_SUFFIX}", len(header) + data.nbytes, [data], write)
