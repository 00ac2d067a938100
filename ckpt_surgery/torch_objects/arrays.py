"""numpy's arrays in a pickle as tensors: what torch has for the same elements, shape and order.

Recognised are the calls that numpy's own pickling writes (``ndarray.__reduce__`` and, with
protocol 5, ``__reduce_ex__``); anything else stays what it is. Nothing is called.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor, contiguous_strides
from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.errors import CkptError, DamagedFileError
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.pickles import NO_STATE, Dict, Global, Limits, Node, Object, walk
from ckpt_surgery.pickles import PersistentId as Reference
from ckpt_surgery.torch_objects.calls import Call, sizes
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.numpy_values import numpy_bytes, numpy_code
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensor_calls import build

_CODES: Final = {
    "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "i2": "int16", "i4": "int32",
    "i8": "int64", "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "b1": "bool",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip
_ROOMS: Final = ("numpy.core", "numpy._core")
_RECONSTRUCT: Final = frozenset(f"{room}.multiarray._reconstruct" for room in _ROOMS)
_FROM_BUFFER: Final = frozenset(f"{room}.numeric._frombuffer" for room in _ROOMS)
_BIG: Final = ">"
_READ_AS_TENSORS: Final = "numpy arrays are read, and written, as tensors"


def reassembled(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Return a checkpoint in which arrays are tensors, if it holds no state dict but arrays."""
    known = _RECONSTRUCT | _FROM_BUFFER
    if checkpoint.state_dicts or known.isdisjoint(checkpoint.globals):
        return checkpoint
    count = with_tensors(checkpoint.root, limits)
    if not count:
        return checkpoint
    found = assemble(
        checkpoint.root,
        sources=checkpoint.sources,
        format=checkpoint.format,
        container=checkpoint.container,
        unwritable=checkpoint.unwritable,
        limits=limits,
    )
    notes = (array_note(count), *found.notes)
    return replace(found, notes=notes, globals=checkpoint.globals)


def array_note(count: int) -> str:
    """Return what to say of arrays that are read as tensors."""
    return f"{count} {_READ_AS_TENSORS}"


def is_of_arrays(checkpoint: Checkpoint) -> bool:
    """Return whether the tensors are arrays in the file, as which torch.load would give them."""
    return any(note.endswith(_READ_AS_TENSORS) for note in checkpoint.notes)


def dtype_of_code(code: str) -> DType | None:
    """Return the type that numpy's code (``f4``, without byte order) means, if torch has it."""
    name = _CODES.get(code)
    return None if name is None else BY_NAME[name]


def array_tensor(
    shape: tuple[int, ...], dtype: DType, data: ByteSource, *, key: str, columns: bool, big: bool
) -> Tensor:
    """Return the tensor of an array's bytes; `columns`: the first dimension varies fastest.

    Raises `DamagedFileError` if the bytes are more or fewer than the shape says.
    """
    if data.nbytes != prod(shape) * dtype.itemsize:
        raise DamagedFileError(
            f"{data.nbytes} bytes are not an array of {list(shape)} elements of {dtype.name}"
        )
    stride = contiguous_strides(shape)
    if columns:
        stride = contiguous_strides(shape[::-1])[::-1]
    untyped = dtype.storage_class is None
    stored = BY_NAME["uint8"] if untyped else dtype
    storage = Storage(key, stored, "cpu", data, untyped=untyped, big_endian=big)
    tensor = Tensor(shape, dtype, stride, storage=storage)
    if not big or dtype.itemsize == 1:
        return tensor
    turned = Storage(key, stored, "cpu", row_major(tensor), untyped=untyped)
    return Tensor(shape, dtype, contiguous_strides(shape), storage=turned)


def with_tensors(root: Node, limits: Limits) -> int:
    """Put tensors in the place of the arrays that are values of mappings; return how many.

    The graph is changed: it is to be the caller's own. An array that occurs twice is one tensor.
    """
    made: dict[int, Node] = {}
    count = 0
    for node in list(walk(root, limits=limits)):
        if not isinstance(node, Dict | Object) or mapping_pairs(node) is None:
            continue
        items = node.items or []
        for place in range(1, len(items), 2):
            value = items[place]
            if not isinstance(value, Object):
                continue
            if id(value) not in made:
                try:
                    tensor = _tensor(_unnamed(value), str(len(made)))
                except CkptError as error:
                    error.entry = error.entry or text(items[place - 1])
                    raise
                if tensor is None:
                    continue
                made[id(value)] = build(Reference(None, tensor.storage), tensor)
            items[place] = made[id(value)]
            count += 1
    return count


def _unnamed(value: Object) -> Object:
    """Return the array of a pair (name, array), as which paddle pickles a tensor."""
    args = value.args
    if value.name in {"builtins.tuple", "__builtin__.tuple"} and isinstance(args, tuple):
        pair = args[0] if len(args) == 1 else None
        if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Object):
            return pair[1]
    return value


def _tensor(node: Object, key: str) -> Tensor | None:
    if node.op != "REDUCE" or node.items or node.elements or not isinstance(node.args, tuple):
        return None
    if node.name in _RECONSTRUCT and isinstance(node.state, tuple) and len(node.state) == 5:
        kind = node.args[0] if node.args else None
        if not isinstance(kind, Global) or kind.qualified != "numpy.ndarray":
            return None
        call = Call(node, node.state, node.changed)
        _, shape, described, columns, data = call.all_settled()
        if isinstance(data, Object) and data.name.endswith(".bytearray"):  # numpy wants bytes
            return None
    elif node.name in _FROM_BUFFER and node.state is NO_STATE and len(node.args) == 4:
        data, described, shape, order = Call(node, node.args, node.at).all_settled()
        columns = text(order) == "F"
    else:
        return None
    known, content = numpy_code(described), numpy_bytes(data)
    dtype = None if known is None else dtype_of_code(known[1])
    if known is None or dtype is None or content is None:
        return None
    if not isinstance(shape, tuple) or not isinstance(columns, bool):
        return None
    dims, big = sizes(shape), known[0] == _BIG
    return array_tensor(dims, dtype, Bytes(content), key=key, columns=columns, big=big)
