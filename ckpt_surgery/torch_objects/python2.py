"""What Python 2 wrote as byte strings, as the text or the bytes that Python 3 would write.

Python 2 had one type for both. Left as they are, some load only with ``encoding=``, and not at all
with ``weights_only=True``, which knows no byte string of 256 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt_surgery.pickles import ByteString, Node, Object, walk

_ARRAY: Final = ("multiarray._reconstruct",)
_SCALAR: Final = ("multiarray.scalar",)


def modern_texts(root: Node) -> Iterator[tuple[int, Node]]:
    """Yield each byte string of Python 2 below `root`, by its
    identity, with what is written for it.

    Numbers of numpy are bytes. Everything else is text: in UTF-8 if it is that, as torch reads it,
    otherwise in Latin-1.
    """
    raw: set[int] = set()
    packed: set[int] = set()
    found: list[ByteString] = []
    for node in walk(root):
        if isinstance(node, ByteString):
            found.append(node)
        elif isinstance(node, Object):
            raw.update(map(id, _numbers(node)))
            packed.update(map(id, _packed(node)))
    for text in found:
        if text.data.isascii():
            yield id(text), text.text
        elif id(text) in raw:
            yield id(text), text.data
        else:
            yield id(text), text.data.decode("latin-1") if id(text) in packed else text.text


def _numbers(node: Object) -> tuple[Node, ...]:
    """Return the bytes of an array's or scalar's numbers, as `numpy` pickles them."""
    if node.name.endswith(_ARRAY) and isinstance(node.state, tuple):
        return node.state[-1:]
    if node.name.endswith(_SCALAR) and isinstance(node.args, tuple):
        return node.args[1:2]
    return ()


def _packed(node: Object) -> tuple[Node, ...]:
    """Return the packed fields of a date or time, which Python 3 takes as Latin-1."""
    return node.args if node.name.startswith("datetime.") and isinstance(node.args, tuple) else ()
