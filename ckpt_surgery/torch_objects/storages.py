"""Storages as a pickle names them: ``('storage', class, key, location, count)``."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.dtypes import BY_NAME, BY_STORAGE_CLASS, UNTYPED, DType
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import ByteString, Global, Node
from ckpt_surgery.startup.lazy_dataclass import dataclass

_LONGEST_NAME: Final = 1000  # characters; torch's keys are numbers, its devices short
# TorchScript's writer names a class after every element type (`getStorageKey` in
# torch/csrc/jit/serialization/pickler.cpp), also after those that have none in Python.
_SCRIPT_CLASSES: Final = {
    "Float8_e5m2Storage": "float8_e5m2", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2fnuzStorage": "float8_e5m2fnuz", "Float8_e4m3fnuzStorage": "float8_e4m3fnuz",
    "Float8_e8m0fnuStorage": "float8_e8m0fnu", "Float4_e2m1fn_x2Storage": "float4_e2m1fn_x2",
    "UInt16Storage": "uint16", "UInt32Storage": "uint32", "UInt64Storage": "uint64",
    "ComplexHalfStorage": "complex32", "Bits8Storage": "bits8", "Bits16Storage": "bits16",
    "Bits1x8Storage": "bits1x8", "Bits2x4Storage": "bits2x4", "Bits4x2Storage": "bits4x2",
    **{f"{sign}Int{n}Storage": f"{sign.lower()}int{n}" for sign in ("", "U") for n in range(1, 8)},
}  # fmt: skip
_UNTYPED_CLASSES = frozenset({"UntypedStorage", "_UntypedStorage"})


@dataclass(frozen=True, slots=True)
class StorageId:
    """A persistent id that names a storage. `numel` counts elements of `dtype`."""

    key: str
    dtype: DType
    untyped: bool
    location: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def text(node: Node) -> str | None:
    """`node` as text: a string, or a byte string of Python 2 that is one; otherwise None."""
    if isinstance(node, str):
        return node
    if isinstance(node, ByteString):
        return node.text
    return None


def parse_storage_id(pid: Node, *, of_script: bool = False) -> StorageId | None:
    """Return what `pid` says about a storage; None if it does not speak of one.

    `of_script` takes the classes that only TorchScript's writer names; such storages are untyped.
    Raises `DamagedFileError` if it does but breaks the form, as `torch.load` would.
    """
    if not isinstance(pid, tuple) or not pid or text(pid[0]) != "storage":
        return None
    if len(pid) < 5:
        raise DamagedFileError(f"a storage's persistent id has {len(pid)} parts instead of 5")
    _, storage_class, key_node, location_node, numel = pid[:5]
    key, location = text(key_node), text(location_node)
    if key is None or location is None:
        raise DamagedFileError("a storage's key or location is not text")
    if len(key) > _LONGEST_NAME or len(location) > _LONGEST_NAME:
        raise DamagedFileError("a storage's key or location is a text of absurd length")
    if type(numel) is not int or numel < 0:
        raise DamagedFileError("a storage's element count is not a number", entry=f"storage {key}")
    dtype, untyped = storage_dtype(storage_class, key, of_script=of_script)
    return StorageId(key, dtype, untyped, location, numel)


def storage_dtype(storage_class: Node, key: str, *, of_script: bool = False) -> tuple[DType, bool]:
    """Return the element type that a storage class stands for, and whether it is of bytes."""
    if isinstance(storage_class, Global):
        name = storage_class.name.rpartition(".")[2]
        if name in _UNTYPED_CLASSES:
            return UNTYPED, True
        if name in BY_STORAGE_CLASS:
            return BY_STORAGE_CLASS[name], False
        if of_script and name in _SCRIPT_CLASSES:
            return BY_NAME[_SCRIPT_CLASSES[name]], True
    what = storage_class.qualified if isinstance(storage_class, Global) else "something else"
    raise DamagedFileError(f"unknown storage class '{what}'", entry=f"storage {key}")
