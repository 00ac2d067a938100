"""Scalars of numpy in a pickle, as the numbers and texts that they are equal to."""

from __future__ import annotations

from struct import unpack
from typing import Final

from ckpt_surgery.pickles import Node, Object
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.numpy_values import numpy_bytes, numpy_code

SCALARS: Final = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})

_LONGEST: Final = 1 << 20  # bytes of a scalar that is a text

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
    known, data = numpy_code(call.settled(0)), numpy_bytes(call.settled(1))
    if known is None or data is None:
        return node
    order, kind, size = known[0], known[1][:1], known[1][1:]
    sign = _NUMBERS.get(kind + size)
    if sign is not None and len(data) == int(size):
        (number,) = unpack((">" if order == ">" else "<") + sign, data)
        return number
    if kind == "U" and len(data) <= _LONGEST and len(data) == 4 * int(size):
        return data.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    return node
