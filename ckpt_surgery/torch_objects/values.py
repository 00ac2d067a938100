"""Plain values in a pickle graph: what a node is worth, and a node for a value, of its kind."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from ckpt_surgery.pickles import NO_STATE, ByteString, Dict, List, Node, Object, own_text
from ckpt_surgery.torch_objects.kinds import type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of, with_items
from ckpt_surgery.torch_objects.numpy_values import numpy_bytes, numpy_code
from ckpt_surgery.torch_objects.storages import text

_SCALAR: Final = ".multiarray.scalar"
_DEEPEST: Final = 50
_MOST_VALUES: Final = 1_000_000
# What numpy calls a type of numbers, and how `struct` packs one.
_CODES: Final = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?",
}  # fmt: skip


class NoValueError(Exception):
    """A node that is no plain value, or a value that a node cannot have. The text says why."""


def node_of(value: object) -> Node:
    """Return a node for a value of TOML: a text, a number, a truth value, a list, a table.

    Raises `NoValueError` for a date or a time, which TOML has as well.
    """
    if isinstance(value, str):
        return own_text(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        return List(map(node_of, value))
    if isinstance(value, Mapping):
        items: list[Node] = []
        for key, part in value.items():
            items += (own_text(key), node_of(part))
        return Dict(items)
    raise NoValueError("dates and times are no values of a checkpoint: quote it to make it a text")


def value_of(node: Node) -> Any:
    """Return the plain value that a node is worth; a tuple is a list, an object its attributes.

    A number of numpy is that number. Raises `NoValueError` for anything else, and for what is
    nested too deeply or is too much.
    """
    return _Reader().value(node, 0)


def kind_name(node: Node) -> str:
    """Return what a node is called: its class, or numpy's type of a number (``numpy.float64``)."""
    packed = _packed(node)
    if packed is None:
        return type_name(node)
    name = next(name for name, code in _CODES.items() if code == packed[0][-1])
    words = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
    return f"numpy.{words[name[0]]}{int(name[1]) * 8 if name[0] != 'b' else ''}"


class _Reader:
    """Reads one value, whose parts are counted; `path` leads to the part being read."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES
        self._path: list[str] = []

    def value(self, node: Node, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise NoValueError("it is nested too deeply, or too large, to be shown as a value")
        if node is None or isinstance(node, bool | int | float):
            return node
        if (string := text(node)) is not None:
            return string
        if isinstance(node, list | tuple):
            return [self._part(str(place), child, depth) for place, child in enumerate(node)]
        packed = _packed(node)
        if packed is not None:
            form, data = packed
            return struct.unpack(form, data)[0]
        return self._mapping(node, depth)

    def _mapping(self, node: Node, depth: int) -> dict[str, Any]:
        pairs = mapping_pairs(node)
        if pairs is None and isinstance(node, Object) and node.op != "REDUCE":
            state = state_of(node)
            pairs = [] if state is NO_STATE else mapping_pairs(state)
        if pairs is None:
            where = f"'{'/'.join(self._path)}' in it" if self._path else "it"
            raise NoValueError(f"{where} is {_article(type_name(node))}, which is no plain value")
        found: dict[str, Any] = {}
        for key, part in pairs:
            name = text(key)
            if name is None and isinstance(key, int):
                name = str(key)
            if name is None or name in found:
                raise NoValueError("a key of it is no text")
            found[name] = self._part(name, part, depth)
        return found

    def _part(self, name: str, node: Node, depth: int) -> Any:
        self._path.append(name)
        value = self.value(node, depth + 1)
        self._path.pop()
        return value


def _article(word: str) -> str:
    return f"an {word}" if word[:1] in "aeiouAEIOU" else f"a {word}"


def node_like(old: Node, value: object) -> Node:
    """Return a node for a value, of the kind that `old` is: an int, a float, a tuple, numpy's.

    Raises `NoValueError` if it cannot be of that kind without another value, or if `old` is of a
    kind that no value has.
    """
    packed = _packed(old)
    if packed is not None:
        assert isinstance(old, Object)  # noqa: S101 - it is a call
        assert isinstance(old.args, tuple)  # noqa: S101 - with arguments
        data = _pack(packed[0], value)
        return Object(old.op, old.callee, (old.args[0], _bytes_like(old.args[1], data)))
    if old is None:
        return node_of(value)
    if isinstance(old, bool) or isinstance(value, bool):
        if isinstance(old, bool) and isinstance(value, bool):
            return value
    elif isinstance(old, int) and isinstance(value, int | float):
        return _whole(value)
    elif isinstance(old, float) and isinstance(value, int | float):
        return float(value)
    elif text(old) is not None and isinstance(value, str):
        return own_text(value)
    elif isinstance(old, list | tuple) and isinstance(value, list):
        return _sequence_like(old, value)
    elif isinstance(value, Mapping) and mapping_pairs(old) is not None:
        return _mapping_like(old, value)
    kind = _article(type_name(old))
    raise NoValueError(f"{kind} cannot become {_shown(value)} and keep its type")


def _sequence_like(old: list[Node] | tuple[Node, ...], value: list[object]) -> Node:
    same = len(old) == len(value)
    new = [
        node_like(old[place], part) if same else node_of(part) for place, part in enumerate(value)
    ]
    return tuple(new) if isinstance(old, tuple) else List(new)


def _mapping_like(old: Node, value: Mapping[str, object]) -> Node:
    known = {text(key): (key, part) for key, part in mapping_pairs(old) or ()}
    items: list[Node] = []
    for name, part in value.items():
        if name in known:
            items += (known[name][0], node_like(known[name][1], part))
        else:
            items += (own_text(name), node_of(part))
    return with_items(old, items)


def _whole(value: float) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise NoValueError(f"an int cannot become {value!r} and keep its type")
    return int(value)


def _shown(value: object) -> str:
    kinds = {bool: "a bool", int: "an int", float: "a float", str: "a text", list: "a list"}
    return kinds.get(type(value), "a table")


def _packed(node: Node) -> tuple[str, bytes] | None:
    """Return the format of `struct` and the bytes of a number of numpy; None if it is none."""
    if not isinstance(node, Object) or not node.name.endswith(_SCALAR):
        return None
    if not isinstance(node.args, tuple) or len(node.args) != 2:
        return None
    known, data = numpy_code(node.args[0]), numpy_bytes(node.args[1])
    if known is None or data is None:
        return None
    order, code = known
    form = _CODES.get(code)
    if form is None or struct.calcsize(form) != len(data):
        return None
    return (">" if order == ">" else "<") + form, data


def _bytes_like(old: Node, data: bytes) -> Node:
    if isinstance(old, Object):
        assert isinstance(old.args, tuple)  # noqa: S101 - `_raw` looked
        return Object(old.op, old.callee, (data.decode("latin-1"), *old.args[1:]))
    return ByteString(data) if isinstance(old, ByteString) else data


def _pack(form: str, value: object) -> bytes:
    """Return a number's bytes. Raises `NoValueError` if the type does not have that number."""
    is_bool, is_float = form.endswith("?"), form[-1] in "efd"
    if isinstance(value, bool) == is_bool and isinstance(value, bool | int | float):
        number = float(value) if is_float else value if is_bool else _whole(value)
        try:
            data = struct.pack(form, number)
        except (struct.error, OverflowError):
            data = b""
        if data and math.isinf(struct.unpack(form, data)[0]) == math.isinf(number):
            return data
    raise NoValueError(f"a number of numpy cannot become {value!r} and keep its type")
