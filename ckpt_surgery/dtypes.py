"""The element types of tensors: one table for every format."""

from __future__ import annotations

from typing import Final, Literal

from ckpt_surgery.startup.lazy_dataclass import dataclass

_Kind = Literal["float", "complex", "int", "bool", "quantized", "bits"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    `name` is torch's (``torch.float32`` is ``"float32"``), `itemsize` the bytes that torch counts
    for one element (1 for the packed types below a byte), `storage_class` the class that names
    such a storage in a pickle (None: the storage is an ``UntypedStorage`` and the tensor names
    the type), `safetensors` the code in a safetensors header (None: it cannot hold this type). A
    type that torch does not have is none `in_torch`; its elements are of `bits` bits, without gaps.
    """

    name: str
    itemsize: int
    kind: _Kind
    storage_class: str | None = None
    safetensors: str | None = None
    elements_per_byte: int = 1
    bits: int = 0

    @property
    def in_torch(self) -> bool:
        """Whether torch has the type."""
        return not self.bits

    def nbytes(self, numel: int) -> int:
        """Return bytes that `numel` elements take, packed types rounded up to a whole byte."""
        if self.bits:
            return -(-numel * self.bits // 8)
        if self.elements_per_byte > 1:
            return -(-numel // self.elements_per_byte)
        return numel * self.itemsize


_TABLE: Final = (
    DType("float64", 8, "float", "DoubleStorage", "F64"),
    DType("float32", 4, "float", "FloatStorage", "F32"),
    DType("float16", 2, "float", "HalfStorage", "F16"),
    DType("bfloat16", 2, "float", "BFloat16Storage", "BF16"),
    DType("float8_e4m3fn", 1, "float", None, "F8_E4M3"),
    DType("float8_e5m2", 1, "float", None, "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "float", None, "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "float", None, "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "float", None, "F8_E8M0"),
    DType("float4_e2m1fn_x2", 1, "float", None, "F4"),
    DType("float6_e2m3fn", 1, "float", None, "F6_E2M3", bits=6),
    DType("float6_e3m2fn", 1, "float", None, "F6_E3M2", bits=6),
    DType("float4_e2m1fn", 1, "float", None, "F4", bits=4),
    DType("int64", 8, "int", "LongStorage", "I64"),
    DType("int32", 4, "int", "IntStorage", "I32"),
    DType("int16", 2, "int", "ShortStorage", "I16"),
    DType("int8", 1, "int", "CharStorage", "I8"),
    DType("uint8", 1, "int", "ByteStorage", "U8"),
    DType("uint16", 2, "int", None, "U16"),
    DType("uint32", 4, "int", None, "U32"),
    DType("uint64", 8, "int", None, "U64"),
    *(DType(f"{sign}int{bits}", 1, "int") for sign in ("", "u") for bits in range(1, 8)),
    DType("bool", 1, "bool", "BoolStorage", "BOOL"),
    DType("complex128", 16, "complex", "ComplexDoubleStorage"),
    DType("complex64", 8, "complex", "ComplexFloatStorage", "C64"),
    DType("complex32", 4, "complex"),
    DType("qint8", 1, "quantized", "QInt8Storage"),
    DType("quint8", 1, "quantized", "QUInt8Storage"),
    DType("qint32", 4, "quantized", "QInt32Storage"),
    DType("quint4x2", 1, "quantized", "QUInt4x2Storage", elements_per_byte=2),
    DType("quint2x4", 1, "quantized", "QUInt2x4Storage", elements_per_byte=4),
    DType("bits8", 1, "bits"),
    DType("bits16", 2, "bits"),
    DType("bits1x8", 1, "bits"),
    DType("bits2x4", 1, "bits"),
    DType("bits4x2", 1, "bits"),
)

BY_NAME: Final[dict[str, DType]] = {
    **{dtype.name: dtype for dtype in _TABLE},
    # torch's own second names
    **{
        alias: next(dtype for dtype in _TABLE if dtype.name == name)
        for alias, name in {
            "double": "float64",
            "float": "float32",
            "half": "float16",
            "long": "int64",
            "int": "int32",
            "short": "int16",
            "cdouble": "complex128",
            "cfloat": "complex64",
            "chalf": "complex32",
        }.items()
    },
}
_SHORT: Final = {
    "fp64": "float64", "f64": "float64", "fp32": "float32", "f32": "float32", "fp16": "float16",
    "f16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn",
    "float8_e4m3": "float8_e4m3fn", "fp8_e4m3fn": "float8_e4m3fn", "f8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2", "f8_e5m2": "float8_e5m2", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
    "c64": "complex64", "c128": "complex128",
}  # fmt: skip
NAMES: Final = (*BY_NAME, *_SHORT)
"""Every name that a user may give a type, in lower case."""


def named(text: str) -> DType | None:
    """Return the type that a user means: ``fp16``, ``half``, ``F16``, ``torch.float16``, …

    None for a text that is none. What files say is looked up in `BY_NAME` instead.
    """
    name = text.strip().lower().removeprefix("torch.")
    return BY_NAME.get(_SHORT.get(name, name))


BY_STORAGE_CLASS: Final[dict[str, DType]] = {
    dtype.storage_class: dtype for dtype in _TABLE if dtype.storage_class is not None
}
BY_SAFETENSORS: Final[dict[str, DType]] = {
    # of the two with the code F4 the one of torch counts, which packs two elements into a byte
    dtype.safetensors: dtype
    for dtype in sorted(_TABLE, key=lambda dtype: dtype.in_torch)
    if dtype.safetensors is not None
}
FOUR_BITS: Final = BY_NAME["float4_e2m1fn"]
"""Elements of four bits one by one, for shapes that torch's pairs cannot have."""
UNTYPED: Final = BY_NAME["uint8"]
"""What an ``UntypedStorage`` counts in: bytes."""
