"""Read a pickle of any protocol, 0 to 5, into an inert graph.

The loop follows CPython's ``Modules/_pickle.c``; where that would call or import something, a node
is made instead. It never recurses, allocates nothing that the data merely announces, and hashes
nothing but memo indices.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from struct import Struct
from struct import error as StructError  # noqa: N812 (it is an exception, unlike its name)
from typing import NamedTuple

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.pickles.limits import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.machine import (
    Machine,
    TruncatedPickleError,
    decode_text,
    give_state,
    lost_calls,
    own_character,
    too_many_marks,
    too_many_memos,
)
from ckpt_surgery.pickles.nodes import Dict, Global, List, Node, Object, PersistentId
from ckpt_surgery.pickles.rare import RARE
from ckpt_surgery.pickles.scan import require_memory, require_whole_frames
from ckpt_surgery.pickles.tensor_items import refuse_changed
from ckpt_surgery.startup.collector import collector_paused

_UINT16 = Struct("<H").unpack_from
_INT32 = Struct("<i").unpack_from
_UINT32 = Struct("<I").unpack_from
_FLOAT64 = Struct(">d").unpack_from
_STOP = 0x2E


class Parsed(NamedTuple):
    """A pickle read.

    `end` is the offset just after STOP and `protocol` what PROTO said (0 if nothing). `globals`
    are all the names in the pickle, in order, even those of which nothing is left in the graph;
    `lost` are the calls among that: unpickling would make them and throw the result away, so
    that writing the graph again would lose them. `rare` are opcodes in it, all of those that only
    some unpicklers read among them.
    """

    root: Node
    end: int
    protocol: int
    globals: tuple[Global, ...]
    lost: tuple[Object, ...]
    rare: frozenset[int] = frozenset()


def parse(
    data: bytes,
    *,
    start: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    persistent_load: Callable[[Node], Node] = PersistentId,
) -> Parsed:
    """Read the pickle at offset `start` of `data`; what follows its STOP is not looked at.

    `persistent_load` makes the node for a persistent id.

    Raises `TruncatedPickleError` if the data ends before STOP, `DamagedFileError` if the pickle
    is malformed or gives items to a tensor, `LimitExceededError` if it is larger than `limits`.
    """
    require_memory(data, start, limits)
    machine = Machine(data, start, limits, persistent_load)
    too_long = LimitExceededError(f"the pickle is longer than {limits.pickle_bytes} bytes")
    try:
        with collector_paused():
            root = _run(machine)
    except TruncatedPickleError as error:
        if len(data) - start > limits.pickle_bytes:
            raise too_long from error
        raise
    if machine.pos - start > limits.pickle_bytes:
        raise too_long
    if machine.framed:
        require_whole_frames(data, start, machine.pos)
    if machine.changed_tensors:
        raise refuse_changed(machine.changed_tensors[0], root)
    machine.discarded += machine.stack
    for stack in machine.below:
        machine.discarded += stack
    lost = lost_calls(root, machine.discarded)
    names, rare = tuple(machine.globals), frozenset(machine.rare)
    return Parsed(root, machine.pos, machine.protocol, names, lost, rare)


class Looked(NamedTuple):
    """A pickle that may be broken: its `root` if it is whole, otherwise the `failure`.

    `names` are those of everything up to there, and `end` is where reading ended.
    """

    root: Node
    names: tuple[Global, ...]
    end: int
    failure: CkptError | None


def look_at(data: bytes, *, start: int = 0, limits: Limits = DEFAULT_LIMITS) -> Looked:
    """Read as much of a pickle as there is; nothing that is wrong with it raises.

    An unpickler has imported and called all that comes before the place where it fails.
    """
    machine = Machine(data, start, limits, PersistentId)
    root: Node = None
    failure: CkptError | None = None
    try:
        with collector_paused():
            root = _run(machine)
    except CkptError as error:
        failure = error
    return Looked(root, tuple(machine.globals), machine.pos, failure)


def _run(machine: Machine) -> Node:
    """Carry out the opcodes up to STOP; the root. Raises as `parse` does.

    Long, because a call for each opcode would double the time. The branches stand in the order of
    how often state dicts need them, and a value's memo index, which follows nearly every one, is
    taken along with it.
    """
    data, pos = machine.data, machine.pos
    memo, memo_limit, depth_limit = machine.memo, machine.limits.memo, machine.limits.depth
    stack, below = machine.stack, machine.below
    value: Node
    op = at = pos
    try:
        for _ in repeat(None, machine.limits.operations):
            at = pos
            op = data[pos]
            pos += 1
            if op == 0x68:  # BINGET
                stack.append(memo[data[pos]])
                pos += 1
                continue
            if op == 0x4B:  # BININT1
                stack.append(data[pos])
                pos += 1
                continue
            if op == 0x28:  # MARK
                below.append(stack)
                stack = []
                if len(below) > depth_limit:
                    raise too_many_marks(machine.limits)
                continue
            if op == 0x74:  # TUPLE
                value = tuple(stack)
                stack = below.pop()
            elif op == 0x58:  # BINUNICODE
                (size,) = _UINT32(data, pos)
                pos += 4 + size
                value = data[pos - size : pos].decode("utf-8", "surrogatepass")
                if size == 1:
                    value = own_character(value)
            elif op == 0x86:  # TUPLE2
                last = stack.pop()
                value = (stack.pop(), last)
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                value = Object("REDUCE", stack.pop(), args, at)
            elif op == 0x4A:  # BININT
                stack.append(_INT32(data, pos)[0])
                pos += 4
                continue
            elif op == 0x4D:  # BININT2
                stack.append(_UINT16(data, pos)[0])
                pos += 2
                continue
            elif op == 0x51:  # BINPERSID
                stack.append(machine.persistent_load(stack.pop()))
                continue
            elif op == 0x89:  # NEWFALSE
                stack.append(False)
                continue
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
                continue
            elif op == 0x85:  # TUPLE1
                value = (stack.pop(),)
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_UINT32(data, pos)[0]])
                pos += 4
                continue
            elif op == 0x87:  # TUPLE3
                last = stack.pop()
                middle = stack.pop()
                value = (stack.pop(), middle, last)
            elif op == 0x7D:  # EMPTY_DICT
                value = Dict()
            elif op == 0x75:  # SETITEMS
                items = stack
                stack = below.pop()
                machine.add_items(stack[-1], items, at)
                continue
            elif op == 0x73:  # SETITEM
                value = stack.pop()
                items = [stack.pop(), value]
                machine.add_items(stack[-1], items, at)
                continue
            elif op == 0x5D:  # EMPTY_LIST
                value = List()
            elif op == 0x65:  # APPENDS
                items = stack
                stack = below.pop()
                machine.add_elements(stack[-1], items, at)
                continue
            elif op == 0x61:  # APPEND
                items = [stack.pop()]
                machine.add_elements(stack[-1], items, at)
                continue
            elif op == 0x4E:  # NONE
                stack.append(None)
                continue
            elif op == 0x88:  # NEWTRUE
                stack.append(True)
                continue
            elif op == 0x47:  # BINFLOAT
                stack.append(_FLOAT64(data, pos)[0])
                pos += 8
                continue
            elif op == 0x62:  # BUILD
                value = stack.pop()
                give_state(stack[-1], value, at)
                continue
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                value = Object("NEWOBJ", stack.pop(), args, at)
            elif op == 0x94:  # MEMOIZE
                machine.stack = stack
                machine.rare.add(op)
                machine.put(len(memo))
                continue
            elif op == 0x8C:  # SHORT_BINUNICODE
                size = data[pos]
                pos += 1 + size
                machine.rare.add(op)
                value = decode_text(data[pos - size : pos])
            elif op in (0x71, 0x72):  # BINPUT and LONG_BINPUT of what was filed before
                value = stack.pop()
                pos -= 1
            elif op == 0x2E:  # STOP
                machine.pos, machine.stack = pos, stack
                return stack.pop()
            else:
                rare = RARE.get(op)
                if rare is None:
                    raise DamagedFileError(f"opcode 0x{op:02x} does not exist")
                machine.pos, machine.stack = pos, stack
                machine.rare.add(op)
                rare(machine)
                pos, stack = machine.pos, machine.stack
                continue
            stack.append(value)
            op = data[pos]
            if op == 0x72:  # LONG_BINPUT
                (index,) = _UINT32(data, pos + 1)
                pos += 5
            elif op == 0x71:  # BINPUT
                pos += 2
                index = data[pos - 1]
            else:
                continue
            if index >= memo_limit:
                raise too_many_memos(index)
            memo[index] = value
    except CkptError as error:
        if error.entry is None:
            error.entry = f"byte {at}"
        raise
    except (IndexError, KeyError, StructError, ValueError) as error:
        raise _explain(machine, error, at, max(pos, machine.pos)) from error
    raise LimitExceededError(
        f"the pickle has more than {machine.limits.operations} operations", entry=f"byte {at}"
    )


def _explain(machine: Machine, error: Exception, at: int, pos: int) -> CkptError:
    """Return what it means that the opcode at `at` failed with `error` when `pos` was reached."""
    data, entry = machine.data, f"byte {at}"
    no_more = isinstance(error, StructError) or pos >= len(data)
    if at >= len(data) or (no_more and data[at] != _STOP):
        return TruncatedPickleError("the pickle is truncated", entry=entry)
    if isinstance(error, IndexError):
        return DamagedFileError("an opcode takes more than there is on the stack", entry=entry)
    if isinstance(error, KeyError):
        return DamagedFileError(f"memo entry {error} was never written", entry=entry)
    return DamagedFileError(f"an opcode cannot be read: {str(error)[:200]}", entry=entry)
