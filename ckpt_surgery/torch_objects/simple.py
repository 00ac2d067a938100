"""Plain Python values for objects that are hardly more: numpy scalars, Namespaces, paths.

``torch.load(weights_only=True)`` refuses the classes and takes the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import unpack
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Dict, Node, Object
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.kinds import type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.trails import trails

_SCALARS: Final = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})
_NAMESPACES: Final = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
_PATHS: Final = frozenset(
    f"pathlib{module}.{name}"
    for module in ("", "._local")
    for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
)
_NO_BYTES: Final = frozenset({"builtins.bytes", "__builtin__.bytes"})
# How numpy's kinds of numbers are laid out, by kind and bytes: the signs of `struct`.
_NUMBERS: Final = {
    "b1": "?",
    **{f"i{size}": sign for size, sign in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    **{f"u{size}": sign for size, sign in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    **{f"f{size}": sign for size, sign in ((2, "e"), (4, "f"), (8, "d"))},
}
_LONGEST: Final = 1 << 20  # bytes of a scalar that is a text
_LONGEST_PATH: Final = 1000  # folders


class _NotSimple:
    """The type of `_NOT_SIMPLE`; None is a value."""


_NOT_SIMPLE: Final = _NotSimple()

_Now = Callable[[Node], Node]
"""What takes the place of a node by now."""


def find_simple(checkpoint: Checkpoint) -> Iterator[tuple[str, Node, Node]]:
    """Yield the path of every object that is hardly more than a plain value, itself, that value."""
    replaced = checkpoint.replaced

    def now(node: Node) -> Node:
        return replaced.get(id(node), node)

    for trail, node in trails(checkpoint.root, replaced=replaced):
        if isinstance(node, Object):
            value = _simple(node, now)
            if value is not _NOT_SIMPLE:
                yield trail.path, node, value


def is_simple(node: Object) -> bool:
    """Return whether an object is hardly more than a plain value, which can take its place."""
    return _simple(node) is not _NOT_SIMPLE


def plain_form(node: Object) -> Node:
    """Return the plain value that an object stands for, itself if it is more than that."""
    value = _simple(node)
    return node if value is _NOT_SIMPLE else value


def _simple(node: Object, now: _Now = lambda node: node) -> Node:
    """Return the plain value that an object stands for, `_NOT_SIMPLE` if it is more than that."""
    name = type_name(node)
    try:
        if name in _SCALARS:
            return _scalar(node)
        if name in _NAMESPACES:
            return _attributes(node, now)
        if name in _PATHS:
            return _path(node, name)
        if name == "collections.defaultdict":
            return _without_default(node)
    except DamagedFileError:  # nothing that Python wrote so: it stays what it is
        return _NOT_SIMPLE
    return _NOT_SIMPLE


def _scalar(node: Object) -> Node:
    """Return the number or text that numpy's ``scalar(dtype, bytes)`` makes."""
    call = Call.plain(node, 2, 2)
    dtype, data = call.settled(0), _bytes(call.reference(1))
    code = _dtype_code(dtype)
    if code is None or data is None:
        return _NOT_SIMPLE
    order, kind, size = code[0], code[1], code[2:]
    sign = _NUMBERS.get(kind + size)
    if sign is not None and len(data) == int(size):
        (number,) = unpack((">" if order == ">" else "<") + sign, data)
        return number
    if kind == "U" and len(data) <= _LONGEST and len(data) == 4 * int(size):
        return data.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    return _NOT_SIMPLE


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


def _attributes(node: Object, now: _Now) -> Node:
    """Return the attributes of a Namespace as a dictionary."""
    if node.items is not None or node.elements is not None:
        return _NOT_SIMPLE
    state = now(state_of(node))
    if state is NO_STATE:
        return Dict()
    pairs = mapping_pairs(state)
    if pairs is None:
        return _NOT_SIMPLE
    return Dict([part for pair in pairs for part in pair])


def _path(node: Object, name: str) -> Node:
    call = Call.plain(node, 0, _LONGEST_PATH)
    parts = [text(part) for part in call.all_settled()]
    if None in parts:
        return _NOT_SIMPLE
    from pathlib import PurePosixPath, PureWindowsPath

    kind = PureWindowsPath if "Windows" in name else PurePosixPath
    return str(kind(*(part or "" for part in parts)))


def _without_default(node: Object) -> Node:
    pairs = mapping_pairs(node)
    if pairs is None or node.state is not NO_STATE:
        return _NOT_SIMPLE
    return Dict([part for pair in pairs for part in pair])
