"""Element types and bytes as numpy pickles them; whatever has another form is not understood."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.pickles import NO_STATE, ByteString, Node, Object
from ckpt_surgery.torch_objects.storages import text

_ORDERS: Final = ("<", ">", "|", "=")
_LATIN: Final = ("latin1", "latin-1")
_BYTES: Final = frozenset({"builtins.bytes", "__builtin__.bytes"})
_BYTEARRAY: Final = frozenset({"builtins.bytearray", "__builtin__.bytearray"})
_OF_ITS_CODE: Final = (-1, -1)  # how large an element is, and its alignment: as the code says


def numpy_code(node: Node) -> tuple[str, str] | None:
    """Return byte order and code (``f4``, ``U5``) of a ``numpy.dtype`` without parts or names."""
    if not isinstance(node, Object) or node.name != "numpy.dtype" or node.op != "REDUCE":
        return None
    args, state = node.args, node.state
    if node.items is not None or node.elements is not None or not isinstance(args, tuple):
        return None
    code = text(args[0]) if args else None
    if code is None or not isinstance(state, tuple) or len(state) < 7:
        return None
    order, size = text(state[1]), state[5:7]
    if order not in _ORDERS or any(part is not None for part in state[2:5]):
        return None
    if code[:1] == "U":
        return (order, code) if size == (4 * _number(code[1:]), 4) else None
    return (order, code) if size == _OF_ITS_CODE else None


def _number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1


def numpy_bytes(node: Node) -> bytes | None:
    """Return bytes, however the protocol spells them: protocol 2 as a call
    that encodes a text of Latin-1.
    """
    if isinstance(node, bytes | bytearray):
        return bytes(node)
    if isinstance(node, ByteString):
        return node.data
    if not isinstance(node, Object) or node.op != "REDUCE" or not isinstance(node.args, tuple):
        return None
    if node.items is not None or node.elements is not None or node.state is not NO_STATE:
        return None
    if node.name in _BYTES or node.name in _BYTEARRAY:
        if not node.args:
            return b""
        first = node.args[0]
        of_bytes = node.name in _BYTEARRAY and len(node.args) == 1 and isinstance(first, bytes)
        return first if of_bytes and isinstance(first, bytes) else None
    if node.name != "_codecs.encode" or len(node.args) != 2:
        return None
    content, encoding = map(text, node.args)
    if content is None or encoding not in _LATIN or max(content, default="") > "\xff":
        return None
    return content.encode("latin-1")
