"""Write a graph as a pickle of protocol 2, byte for byte as CPython's pickler would.

The order of opcodes, the batches and the memo follow ``Modules/_pickle.c`` of CPython 3.11. What
``torch.load(weights_only=True)`` can read is written in opcodes that it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from struct import Struct
from typing import Final, NamedTuple

from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles.limits import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.nodes import (
    NO_STATE,
    ByteString,
    Dict,
    Extension,
    Global,
    Node,
    Object,
    PersistentId,
)
from ckpt_surgery.pickles.settled import Begun
from ckpt_surgery.pickles.walk import NOTHING_REPLACED, too_deep, too_many_nodes

_BATCH: Final = 1000
_OPCODE_UINT16: Final = Struct("<cH").pack
_OPCODE_INT32: Final = Struct("<ci").pack
_OPCODE_UINT32: Final = Struct("<cI").pack
_OPCODE_FLOAT64: Final = Struct(">cd").pack
_BININT1: Final = tuple(b"K" + bytes([n]) for n in range(256))
_TUPLE: Final = (b")", b"\x85", b"\x86", b"\x87")
_LATIN1: Final = "latin1"
_CALL: Final = {"REDUCE": b"R", "NEWOBJ": b"\x81", "OBJ": b"o"}

_PersistentIdWriter = Callable[[PersistentId], Node]


def emit(
    root: Node,
    *,
    persistent_id: _PersistentIdWriter | None = None,
    replaced: Mapping[int, Node] = NOTHING_REPLACED,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """Return the pickle of `root`.

    `persistent_id` gives the id to write each time that a `PersistentId` is come to; without it
    that is the node's own. `replaced` maps the identity of a node to one that is written in its
    place wherever it occurs (and is not itself looked up in it).

    Raises `LimitExceededError` if the graph or the pickle is larger than `limits` allow, and
    `LossyEditError` if a call would be given something else than when it was read, because the
    pickle changes it after the call.
    """
    return _Writer(persistent_id, replaced, limits).write(root)


_Batch = tuple[bytes, Iterable[Node], bytes]
"""Nodes that go into a container together, between the opcodes before and after them."""

_NO_BATCHES: Final[Iterator[_Batch]] = iter(())


class _Level(NamedTuple):
    """A node of which parts are still to be written.

    After the last of `nodes` comes the opcode `after`; `made`, if any, is then complete and gets
    its place in the memo. If it got that while its parts were written, because it is one of them,
    `unmake` throws away the copy. Then come the `batches` of the contents of `node`.
    """

    nodes: Iterator[Node]
    after: bytes = b""
    made: Node = None
    unmake: bytes = b""
    batches: Iterator[_Batch] = _NO_BATCHES
    node: Node = None


class _Writer:
    """A pickle being written.

    `memo` and `names` say how to get what was written: by identity, and classes and functions by
    module and name. `kept` are the nodes made here, so that no other gets the identity of one.
    """

    def __init__(
        self,
        persistent_id: _PersistentIdWriter | None,
        replaced: Mapping[int, Node],
        limits: Limits,
    ) -> None:
        self.persistent_id = persistent_id
        self.replaced = replaced
        self.limits = limits
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[int, bytes] = {}
        self.names: dict[tuple[str, str], bytes] = {}
        self.begun = Begun(replaced, limits)
        self.kept: list[Node] = []

    def write(self, root: Node) -> bytes:
        """Return the pickle of `root`, PROTO to STOP; once only."""
        out, memo, replaced, limits = self.out, self.memo, self.replaced, self.limits
        left = limits.operations
        levels: list[tuple[Iterator[Node], bytes, Node, bytes, Iterator[_Batch], Node]] = []
        nodes, after, made, unmake, batches, opened = _Level(iter((root,)), b".")
        begun = self.begun
        while True:
            for node in nodes:
                left -= 1
                if left < 0:
                    raise too_many_nodes(limits)
                if replaced:
                    node = replaced.get(id(node), node)  # noqa: PLW2901 (what it is for)
                written = memo.get(id(node))
                if written is not None:
                    out += written
                    continue
                if type(node) is int:
                    out += _BININT1[node] if 0 <= node < 256 else self._integer(node)
                elif type(node) is str:
                    text = node.encode("utf-8", "surrogatepass")
                    out += _OPCODE_UINT32(b"X", len(text)) + text
                    self._put(node)
                elif type(node) is bool:
                    out += b"\x88" if node else b"\x89"
                elif node is None:
                    out += b"N"
                elif type(node) is float:
                    out += _OPCODE_FLOAT64(b"G", node)
                else:
                    level = self._open(node)
                    if level is not None:
                        levels.append((nodes, after, made, unmake, batches, opened))
                        if len(levels) > limits.depth:
                            raise too_deep(limits)
                        nodes, after, made, unmake, batches, opened = level
                        break
            else:
                if made is None:
                    out += after
                elif id(made) in memo:
                    out += unmake + memo[id(made)]
                    batches = _NO_BATCHES
                else:
                    if isinstance(opened, Object):
                        begun.require_settled(opened)
                    out += after
                    self._put(made)
                made = None
                batch = next(batches, None)
                if batch is not None:
                    begun.go_on(opened)
                    before, contents, after = batch
                    out += before
                    nodes = iter(contents)
                elif levels:
                    if opened is not None:
                        begun.end(opened)
                    nodes, after, made, unmake, batches, opened = levels.pop()
                else:
                    self._check_size()
                    return bytes(out)

    def _open(self, node: Node) -> _Level | None:
        """Begin to write `node`, which has not been written; None if that is all of it."""
        self._check_size()
        if isinstance(node, tuple):
            return self._open_tuple(node)
        if isinstance(node, Object):
            return self._open_object(node, node)
        if isinstance(node, PersistentId):
            pid = node.pid if self.persistent_id is None else self.persistent_id(node)
            self.kept.append(pid)
            return _Level(iter((pid,)), b"Q")
        if isinstance(node, list):
            return self._open_container(node, b"]", _list_batches(node))
        if isinstance(node, Dict):
            return self._open_container(node, b"}", _dict_batches(node.items))
        if isinstance(node, Global):
            return self._open_global(node)
        if isinstance(node, bytes):
            return self._open_object(_bytes_call(node), node)
        self._leaf(node)
        return None

    def _open_tuple(self, node: tuple[Node, ...]) -> _Level | None:
        if not node:
            self.out += b")"
            return None
        if len(node) < len(_TUPLE):
            return _Level(iter(node), _TUPLE[len(node)], node, b"0" * len(node))
        self.out += b"("
        return _Level(iter(node), b"t", node, b"1")

    def _open_object(self, call: Object, made: Node) -> _Level:
        """Begin to write `call`, which stands for `made`."""
        if call is not made:
            self.kept.append(call)
        opcode, batches = _CALL[call.op], _NO_BATCHES
        if call.elements or call.items or call.state is not NO_STATE:
            batches = _object_batches(call)
        parts: tuple[Node, ...] = (call.callee, call.args)
        if call.op == "OBJ":
            self.out += b"("
            args = self.replaced.get(id(call.args), call.args)
            parts = (call.callee, *args) if isinstance(args, tuple) else parts
        return _Level(iter(parts), opcode, made, opcode + b"0", batches, call)

    def _open_container(self, node: Node, opcode: bytes, batches: Iterator[_Batch]) -> _Level:
        self.out += opcode
        self._put(node)
        return _Level(iter(()), batches=batches, node=node)

    def _open_global(self, node: Global) -> _Level | None:
        written = self.names.get((node.module, node.name))
        if written is not None:
            self.out += written
            return None
        parent, _, last = node.name.rpartition(".")
        if parent:
            args = (Global(node.module, parent), last)
            return self._open_object(Object("REDUCE", Global("__builtin__", "getattr"), args), node)
        self.out += b"c%b\n%b\n" % (node.module.encode(), node.name.encode())
        self._put(node)
        return None

    def _leaf(self, node: Node) -> None:
        if isinstance(node, ByteString):
            short = len(node.data) < 256
            self.out += (
                bytes((0x55, len(node.data))) if short else _OPCODE_UINT32(b"T", len(node.data))
            )
            self.out += node.data
            self._put(node)
        elif isinstance(node, Extension):
            self.out += _extension(node.code)
        else:
            raise TypeError(f"{type(node).__name__} is no node of a pickle")

    def _integer(self, value: int) -> bytes:
        if 0 <= value < 1 << 16:
            return _OPCODE_UINT16(b"M", value)
        if -1 << 31 <= value < 1 << 31:
            return _OPCODE_INT32(b"J", value)
        self._check_size()
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        if value < 0 and data[-1] == 0xFF and data[-2] & 0x80:
            data = data[:-1]
        if len(data) < 256:
            return bytes((0x8A, len(data))) + data
        return _OPCODE_UINT32(b"\x8b", len(data)) + data

    def _put(self, node: Node) -> None:
        """File `node`, which was just written, in the memo."""
        index = len(self.memo)
        if index < 256:
            self.out += bytes((0x71, index))
            get = bytes((0x68, index))
        else:
            self.out += _OPCODE_UINT32(b"r", index)
            get = _OPCODE_UINT32(b"j", index)
        self.memo[id(node)] = get
        if type(node) is Global:
            self.names[node.module, node.name] = get

    def _check_size(self) -> None:
        if len(self.out) > self.limits.pickle_bytes:
            raise LimitExceededError(f"the pickle is longer than {self.limits.pickle_bytes} bytes")


def _list_batches(items: list[Node]) -> Iterator[_Batch]:
    if len(items) == 1:
        yield b"", items, b"a"
        return
    for start in range(0, len(items), _BATCH):
        yield b"(", items[start : start + _BATCH], b"e"


def _dict_batches(items: list[Node]) -> Iterator[_Batch]:
    if len(items) == 2:
        yield b"", items, b"s"
    elif items:
        # Only an empty batch tells the pickler that a full one was the last.
        for start in range(0, len(items) + 1, 2 * _BATCH):
            yield b"(", items[start : start + 2 * _BATCH], b"u"


def _object_batches(call: Object) -> Iterator[_Batch]:
    yield from _iterated_batches(call.elements or [], 1, b"a", b"e")
    yield from _iterated_batches(call.items or [], 2, b"s", b"u")
    if call.state is not NO_STATE:
        yield b"", (call.state,), b"b"


def _iterated_batches(nodes: list[Node], width: int, one: bytes, many: bytes) -> Iterator[_Batch]:
    """Batches of a subclass of a list or dictionary: of one alone it is known in time."""
    for start in range(0, len(nodes), width * _BATCH):
        batch = nodes[start : start + width * _BATCH]
        yield (b"", batch, one) if len(batch) == width else (b"(", batch, many)


def _bytes_call(data: bytes) -> Object:
    """Return the call that makes `data`, for which protocol 2 has no opcode."""
    if not data:
        return Object("REDUCE", Global("__builtin__", "bytes"), ())
    args = (data.decode("latin-1"), _LATIN1)
    return Object("REDUCE", Global("_codecs", "encode"), args)


def _extension(code: int) -> bytes:
    if code < 1 << 8:
        return bytes((0x82, code))
    return _OPCODE_UINT16(b"\x83", code) if code < 1 << 16 else _OPCODE_INT32(b"\x84", code)
