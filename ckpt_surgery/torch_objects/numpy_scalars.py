"""Scalars of numpy in a pickle, as the numbers and texts that they are equal to."""

from __future__ import annotations

from struct import unpack
from typing import Final

from ckpt_surgery.pickles import Node, Object
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.storages import text

SCALARS: Final = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})

_LONGEST: Final = 1 << 20  # bytes of a scalar that is a text
_NO_BYTES: Final = frozenset({"builtins.bytes", "__builtin__.bytes"})

# How numpy's kinds of numbers are laid out, by kind and bytes: the signs of `struct`.
_NUMBERS: Final = {
    "b1": "?",
    **{f"i{size}": sign for size, sign in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    **{f"u{size}": sign for size, sign in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    **{f"f{size}": sign for size, sign in ((2, "e"), (4, "f"), (8, "d"))},
}


def numpy_scalar(node: Object) -> Node:
    """Return the number or text that numpy's ``scalar(dtype, bytes)`` makes; `node` if neither.

    Raises `DamagedFileError` for a call that numpy does not write.
    """
    call = Call.plain(node, 2, 2)
    dtype, data = call.settled(0), _bytes(call.reference(1))
    code = _dtype_code(dtype)
    if code is None or data is None:
        return node
    order, kind, size = code[0], code[1], code[2:]
    sign = _NUMBERS.get(kind + size)
    if sign is not None and len(data) == int(size):
        (number,) = unpack((">" if order == ">" else "<") + sign, data)
        return number
    if kind == "U" and len(data) <= _LONGEST and len(data) == 4 * int(size):
        return data.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    return node


def _dtype_code(node: Node) -> str | None:
    """Return order, kind and size of a numpy element type: ``<f8``."""
    if (
        not isinstance(node, Object)
        or node.name != "numpy.dtype"
        or not isinstance(node.args, tuple)
    ):
        return None
    code = text(node.args[0]) if node.args else None
    state = node.state
    order = text(state[1]) if isinstance(state, tuple) and len(state) > 1 else None
    if code is None or order is None or not code[1:].isdigit():
        return None
    return f"{order}{code}"


def _bytes(node: Node) -> bytes | None:
    """Return bytes as protocol 2 has them: a text of Latin-1 and a call that encodes it."""
    if isinstance(node, bytes):
        return node
    if isinstance(node, Object) and node.name in _NO_BYTES and node.args == ():
        return b""
    if not isinstance(node, Object) or node.name != "_codecs.encode":
        return None
    call = Call.plain(node, 2, 2)
    data, encoding = text(call.reference(0)), text(call.reference(1))
    if data is None or encoding not in {"latin1", "latin-1"} or max(data, default="") > "\xff":
        return None
    return data.encode("latin-1")
