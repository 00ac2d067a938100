"""Keys of dictionaries that a pickle makes by calls, as the plain values that they are equal to.

Python merges keys that are equal: ``1``, ``True``, ``numpy.int64(1)`` and ``int('1')`` are one.
Nothing that a file names is called: what is made here is made of its constants, by built-in types.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, ByteString, Global, Node, Object
from ckpt_surgery.torch_objects.calls import Call, device_name
from ckpt_surgery.torch_objects.numpy_scalars import SCALARS, numpy_scalar

_BUILT_IN: Final = ("builtins", "__builtin__")
_CONSTRUCTORS: Final[dict[str, Callable[..., Node]]] = {
    "int": int,
    "long": int,
    "float": float,
    "bool": bool,
    "str": str,
    "unicode": str,
    "complex": complex,
}
_ENCODE: Final = "_codecs.encode"
_CODECS: Final = frozenset({"latin1", "latin-1", "utf-8", "utf8", "ascii"})
_LONGEST: Final = 1000  # characters of a text that a number or key is made of


class Elements(tuple[Node, ...]):
    """The elements of a set, in the order of the file."""

    __slots__ = ()


def key_value(key: Node) -> Node:
    """Return the number, text, bytes, tuple or class that a key is equal to; itself if to none.

    A frozenset becomes an `Elements`. Raises `DamagedFileError` if what a call was given is changed
    afterwards.
    """
    if isinstance(key, Global):
        same = BY_NAME.get(key.name) if key.module == "torch" else None
        return key if same is None else Global("torch", same.name)
    if not isinstance(key, Object) or key.op != "REDUCE" or not isinstance(key.args, tuple):
        return key
    if key.state is not NO_STATE or not key.args:
        return key
    return _made(key, Call.plain(key, 0, len(key.args)))


def _made(key: Object, call: Call) -> Node:
    """Return what a call makes of its arguments, if it is one of those
    that equal plain values; otherwise `key`.
    """
    module, _, name = key.name.rpartition(".")
    first = call.settled(0)
    if key.name == "torch.device":
        return f"torch.device {device_name(key)}"
    if key.name == "torch.serialization._get_layout" and isinstance(first, str):
        return Global(*first.rpartition(".")[::2])
    if isinstance(first, tuple | list):
        if key.name == "torch.Size" or (module in _BUILT_IN and name == "tuple"):
            return tuple(first)
        return Elements(first) if module in _BUILT_IN and name == "frozenset" else key
    if key.name == _ENCODE:
        return _encoded(key)
    if module in _BUILT_IN and name in _CONSTRUCTORS:
        return _constructed(key, _CONSTRUCTORS[name], call.all_settled())
    if key.name in SCALARS:
        with suppress(DamagedFileError):  # nothing that numpy wrote so: it stays what it is
            return numpy_scalar(key)
    return key


def _encoded(node: Node) -> Node:
    """Return the bytes that a text becomes, as protocol 2 writes them; anything else as it is."""
    if not isinstance(node, Object) or node.name != _ENCODE:
        return node
    call = Call.plain(node, 1, 2)
    content, encoding = call.reference(0), call.reference(1) if len(call) > 1 else "utf-8"
    known = encoding if isinstance(encoding, str) and encoding in _CODECS else "latin-1"
    return content.encode(known, "replace") if isinstance(content, str) else node


def _constructed(key: Object, make: Callable[..., Node], args: tuple[Node, ...]) -> Node:
    """Return what a built-in type makes of numbers and short texts; `key` if of anything else."""
    given = [node.text if isinstance(node, ByteString) else _encoded(node) for node in args]
    if not all(isinstance(node, bool | int | float | str | bytes) for node in given):
        return key
    if any(isinstance(node, str | bytes) and len(node) > _LONGEST for node in given):
        return key
    with suppress(TypeError, ValueError, OverflowError):
        value = make(*given)
        return value.real if isinstance(value, complex) and not value.imag else value
    return key
