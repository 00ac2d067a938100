"""The opcodes that the pickles of checkpoints rarely hold: text, Python 2, protocols 3 and later.

Each is a function of the `Machine`; `RARE` finds it by its opcode.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles.machine import (
    Machine,
    TruncatedPickleError,
    decode_text,
)
from ckpt_surgery.pickles.nodes import ByteString, Dict, Extension, List, Node, Object

_HIGHEST_PROTOCOL: Final = 5
_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED: Final = {
    b"\n": b"",
    b"\\": b"\\",
    b"'": b"'",
    b'"': b'"',
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
}

_Opcode = Callable[[Machine], None]


# Structure


def _proto(machine: Machine) -> None:
    protocol = machine.uint(1)
    if protocol > _HIGHEST_PROTOCOL:
        raise DamagedFileError(f"pickle protocol {protocol} does not exist")
    machine.protocol = protocol


def _frame(machine: Machine) -> None:
    machine.framed = True
    nbytes = machine.uint(8)
    if nbytes > len(machine.data) - machine.pos:
        raise TruncatedPickleError("the pickle is truncated")


def _pop(machine: Machine) -> None:
    if not machine.stack:
        machine.to_mark()
        return
    top = machine.stack.pop()
    if not (isinstance(top, Object) and _is_made_again(machine, top)):
        machine.discarded.append(top)


def _is_made_again(machine: Machine, popped: Object) -> bool:
    """Return whether the next opcode gets what `popped` is a second copy of.

    So it is written if an object's arguments hold the object itself: the pickler finds it in the
    memo when it has written it a second time (CPython issue 12687).
    """
    data, pos = machine.data, machine.pos
    following = data[pos : pos + 1]
    if following == b"h":
        index = int.from_bytes(data[pos + 1 : pos + 2], "little")
    elif following == b"j":
        index = int.from_bytes(data[pos + 1 : pos + 5], "little")
    elif following == b"g" and data[pos + 1 : pos + 21].split(b"\n")[0].isdigit():
        index = int(data[pos + 1 : pos + 21].split(b"\n")[0])
    else:
        return False
    twin = machine.memo.get(index)
    return isinstance(twin, Object) and twin.op == popped.op and twin.callee is popped.callee


def _pop_mark(machine: Machine) -> None:
    machine.discarded += machine.to_mark()


def _dup(machine: Machine) -> None:
    machine.duplicates += 1
    most = machine.limits.duplicates
    if machine.duplicates > most:
        raise LimitExceededError(f"the pickle has more than {most} DUP opcodes")
    machine.stack.append(machine.stack[-1])


def _get(machine: Machine) -> None:
    machine.stack.append(machine.memo[_index(machine)])


def _put(machine: Machine) -> None:
    machine.put(_index(machine))


def _index(machine: Machine) -> int:
    line = machine.line()
    if not line.isdigit():
        raise DamagedFileError(f"a memo index is {line[:20]!r}")
    return _integer(machine, line.lstrip(b"0") or b"0")


# Numbers


def _int(machine: Machine) -> None:
    line = machine.line()
    machine.stack.append(line == b"01" if line in (b"00", b"01") else _integer(machine, line))


def _long(machine: Machine) -> None:
    machine.stack.append(_integer(machine, machine.line().removesuffix(b"L")))


def _integer(machine: Machine, digits: bytes) -> int:
    if len(digits) > machine.limits.digits:
        raise LimitExceededError(f"an integer has {len(digits)} digits")
    return int(digits, 0)


def _long1(machine: Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.uint(1)), "little", signed=True))


def _long4(machine: Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(_size(machine)), "little", signed=True))


def _size(machine: Machine) -> int:
    """Return a signed length, of the opcodes of protocols 1 and 2."""
    size = int.from_bytes(machine.take(4), "little", signed=True)
    if size < 0:
        raise DamagedFileError(f"a length is {size}")
    return size


def _float(machine: Machine) -> None:
    line = machine.line()
    if b"_" in line or len(line) > machine.limits.digits:  # `float` takes what pickle does not
        raise DamagedFileError(f"a number is {line[:20]!r}")
    machine.stack.append(float(line))


# Text and bytes


def _string(machine: Machine) -> None:
    line = machine.line()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise DamagedFileError("a string has no quotes")
    machine.stack.append(ByteString(_ESCAPE.sub(_unescape, line[1:-1])))


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    if escaped in _ESCAPED:
        return _ESCAPED[escaped]
    if escaped[:1] == b"x" and len(escaped) == 3:
        return bytes([int(escaped[1:], 16)])
    if escaped.isdigit() and escaped < b"8":
        return bytes([int(escaped, 8) & 0xFF])
    if escaped in (b"", b"x"):
        raise DamagedFileError("a string ends inside an escape")
    return match[0]


def _binstring(machine: Machine) -> None:
    machine.stack.append(ByteString(machine.take(_size(machine))))


def _short_binstring(machine: Machine) -> None:
    machine.stack.append(ByteString(machine.take(machine.uint(1))))


def _unicode(machine: Machine) -> None:
    text = machine.line().decode("raw-unicode-escape")
    machine.stack.append(decode_text(text.encode("utf-8", "surrogatepass")))


def _binunicode8(machine: Machine) -> None:
    machine.stack.append(decode_text(machine.take(machine.uint(8))))


def _bytes(length_bytes: int) -> _Opcode:
    def read(machine: Machine) -> None:
        machine.stack.append(machine.take(machine.uint(length_bytes)))

    return read


def _bytearray8(machine: Machine) -> None:
    data = machine.take(machine.uint(8))
    machine.stack.append(
        Object("REDUCE", machine.builtin("bytearray"), (data,) if data else (), machine.pos)
    )


def _out_of_band(_: Machine) -> None:
    raise DamagedFileError("the pickle refers to a buffer that is not in the file")


# Containers


def _list(machine: Machine) -> None:
    made = List(machine.to_mark(), machine.pos)
    machine.stack.append(made)


def _dict(machine: Machine) -> None:
    made, items = Dict(), machine.to_mark()
    machine.add_items(made, items, machine.pos)
    machine.stack.append(made)


def _empty_set(machine: Machine) -> None:
    elements: list[Node] = []
    machine.stack.append(Object("REDUCE", machine.builtin("set"), (elements,), machine.pos))


def _add_elements(machine: Machine) -> None:
    elements = machine.to_mark()
    target = machine.stack[-1]
    if (
        not isinstance(target, Object)
        or target.callee is not machine.builtins.get("set")
        or not isinstance(target.args, tuple)
        or not isinstance(target.args[0], list)
    ):
        raise DamagedFileError("an element is added to something that is no set")
    target.args[0].extend(elements)
    target.at = target.changed = machine.pos


def _frozenset(machine: Machine) -> None:
    elements = machine.to_mark()
    machine.stack.append(Object("REDUCE", machine.builtin("frozenset"), (elements,), machine.pos))


# Names and calls


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.stack.append(machine.name(module.decode(), name.decode()))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise DamagedFileError("a class or function is named by something that is no text")
    machine.stack.append(machine.name(module, name))


def _extension(code_bytes: int) -> _Opcode:
    def read(machine: Machine) -> None:
        code = int.from_bytes(machine.take(code_bytes), "little", signed=code_bytes == 4)
        if code <= 0:
            raise DamagedFileError(f"an extension code is {code}")
        machine.stack.append(Extension(code))

    return read


def _persid(machine: Machine) -> None:
    machine.stack.append(machine.persistent_load(machine.line().decode("ascii")))


def _inst(machine: Machine) -> None:
    callee = machine.name(machine.line().decode(), machine.line().decode())
    args = tuple(machine.to_mark())
    machine.stack.append(Object("OBJ", callee, args, machine.pos))


def _obj(machine: Machine) -> None:
    callee, *args = machine.to_mark() or [None]
    if callee is None:
        raise DamagedFileError("an instance has no class")
    machine.stack.append(Object("OBJ", callee, tuple(args), machine.pos))


def _newobj_ex(machine: Machine) -> None:
    keywords, args, callee = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    # What copyreg has for this, so that protocol 2 can say it.
    maker = machine.builtins.get("copy_reg.__newobj_ex__")
    if maker is None:
        maker = machine.name("copy_reg", "__newobj_ex__")
        machine.builtins["copy_reg.__newobj_ex__"] = maker
    machine.stack.append(Object("REDUCE", maker, (callee, args, keywords), machine.pos))


RARE: Final[dict[int, _Opcode]] = {
    ord("\x80"): _proto,
    ord("\x95"): _frame,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    ord("2"): _dup,
    ord("g"): _get,
    ord("p"): _put,
    ord("I"): _int,
    ord("L"): _long,
    ord("\x8a"): _long1,
    ord("\x8b"): _long4,
    ord("F"): _float,
    ord("S"): _string,
    ord("T"): _binstring,
    ord("U"): _short_binstring,
    ord("V"): _unicode,
    ord("\x8d"): _binunicode8,
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    ord("\x8e"): _bytes(8),
    ord("\x96"): _bytearray8,
    ord("\x97"): _out_of_band,
    ord("\x98"): _out_of_band,
    ord("l"): _list,
    ord("d"): _dict,
    ord("\x8f"): _empty_set,
    ord("\x90"): _add_elements,
    ord("\x91"): _frozenset,
    ord("c"): _global,
    ord("\x93"): _stack_global,
    ord("\x82"): _extension(1),
    ord("\x83"): _extension(2),
    ord("\x84"): _extension(4),
    ord("P"): _persid,
    ord("i"): _inst,
    ord("o"): _obj,
    ord("\x92"): _newobj_ex,
}
