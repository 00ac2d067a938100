"""The digest of a model: what it is, whatever file holds it.

The definition, for others to implement, is ``docs/hash.md``. A tensor's digest is SHA-256 over its
name, layout, element type, shape and elements, every part of variable length after its length, so
that no two different tensors give the same bytes. A model's is SHA-256 over those of its tensors,
sorted by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from struct import pack
from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import CkptError, ReadError
from ckpt_surgery.fileio import ByteSource
from ckpt_surgery.pickles import Global, Node, Object
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.tensors import TensorReader

PREFIX: Final = "ckpt1:"
"""What a digest by this definition starts with as text; 64 hexadecimal digits follow."""

_TENSOR: Final = b"ckpt1-tensor\0"
_MODEL: Final = b"ckpt1-model\0"
_QUANTIZED: Final = "quantized"
# Layouts whose parts say all there is to say about the tensor.
_IN_PARTS: Final = frozenset(
    {"sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "nested"}
)

_Advance = Callable[[int], object]
"""Called with the number of bytes of elements that have just been read."""


def tensor_digest(name: str, tensor: Tensor, advance: _Advance) -> str:
    """Return the digest of a tensor under its name, as 64 hexadecimal digits.

    Raises `ReadError` for a tensor whose elements are not known (on the meta device, of a class
    that keeps them in its own way), `LimitExceededError` for a view that repeats its elements too
    often, and `DamagedFileError` where a checksum of the file shows that the bytes are wrong.
    """
    import hashlib  # not for commands that only import this module

    sha256 = hashlib.sha256(_TENSOR)
    try:
        for data in _encoded(name, tensor):
            if isinstance(data, bytes):
                sha256.update(data)
            else:
                for chunk in data.chunks():
                    sha256.update(chunk)
                    advance(len(chunk))
    except CkptError as error:
        error.entry = name  # which says more than that of a record
        raise
    return sha256.hexdigest()


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return the digest of a model, as 64 hexadecimal digits, from those of its tensors by name."""
    import hashlib

    sha256 = hashlib.sha256(_MODEL + pack("<Q", len(tensors)))
    for _, digest in sorted((_utf8(name), digest) for name, digest in tensors.items()):
        sha256.update(bytes.fromhex(digest))
    return sha256.hexdigest()


def _encoded(name: str, tensor: Tensor) -> Iterator[bytes | ByteSource]:
    """Yield what is hashed of a tensor: bytes, and sources of its elements."""
    yield _text(name)
    yield from _body(tensor)


def _body(tensor: Tensor) -> Iterator[bytes | ByteSource]:
    layout, parts = _layout(tensor)
    yield _text(layout) + _text(tensor.dtype.name) + pack("<Q", len(tensor.shape))
    yield pack(f"<{len(tensor.shape)}Q", *tensor.shape)
    if tensor.storage is not None:
        elements = row_major(tensor)
        yield pack("<Q", elements.nbytes)
        yield elements
    if layout != "strided":
        yield pack("<Q", len(parts))
        for part in parts:
            yield from part if isinstance(part, tuple) else _body(part)


def _layout(tensor: Tensor) -> tuple[str, tuple[Tensor | tuple[bytes, ...], ...]]:
    """Return how elements and parts make the tensor, and the parts:
    tensors, or what stands for one.
    """
    if tensor.layout == _QUANTIZED:
        return _quantizer(tensor)
    if tensor.layout == "strided" and tensor.storage is not None:
        return "strided", ()
    if tensor.layout in _IN_PARTS:
        return tensor.layout, tensor.parts
    what = "on the meta device" if tensor.layout == "strided" else f"of layout '{tensor.layout}'"
    raise ReadError(
        f"a tensor {what} has no digest: its elements are not known without running its code"
    )


def _quantizer(tensor: Tensor) -> tuple[str, tuple[Tensor | tuple[bytes, ...], ...]]:
    """Return the scheme of a quantized tensor, and its scales, zero points and axis as tensors."""
    node = tensor.node
    args = node.args if isinstance(node, Object) else None
    found = args[4] if isinstance(args, tuple) and len(args) > 4 else None
    if not isinstance(found, tuple) or len(found) < 3 or not isinstance(found[0], Global):
        raise ReadError("a tensor is quantized in an unknown way")
    return f"{_QUANTIZED} {found[0].name}", tuple(_quantity(value) for value in found[1:])


def _quantity(value: Node) -> Tensor | tuple[bytes, ...]:
    if isinstance(value, float):
        return _number("float64", pack("<d", value))
    if type(value) is int and -(2**63) <= value < 2**63:
        return _number("int64", pack("<q", value))
    tensor = TensorReader().describe(value)
    if tensor is None:
        raise ReadError("a tensor is quantized in an unknown way")
    return replace(tensor, parts=())


def _number(dtype: str, data: bytes) -> tuple[bytes, ...]:
    """Return the body of a tensor that is one number."""
    return (_text("strided"), _text(dtype), pack("<QQ", 0, len(data)), data)


def _text(text: str) -> bytes:
    data = _utf8(text)
    return pack("<Q", len(data)) + data


def _utf8(text: str) -> bytes:
    """UTF-8, as Python writes it where a text has lone surrogates, too."""
    return text.encode("utf-8", "surrogatepass")
