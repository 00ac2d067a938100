"""The opcodes of a pickle one after another, without carrying them out.

The list is that of CPython's ``Lib/pickletools.py``, which itself imports ``pickle``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles.machine import TruncatedPickleError

# How an opcode's argument is laid out: a number is its length in bytes, "line" ends with a line
# feed, "lines" are two of these, and the others begin with their length in so many bytes.
_Layout = int | str
_TABLE: Final[tuple[tuple[_Layout, str], ...]] = (
    (0, "MARK=( STOP=. POP=0 POP_MARK=1 DUP=2 NONE=N REDUCE=R APPEND=a BUILD=b DICT=d"),
    (0, "APPENDS=e LIST=l OBJ=o SETITEM=s TUPLE=t SETITEMS=u EMPTY_DICT=} EMPTY_LIST=]"),
    (0, "EMPTY_TUPLE=) BINPERSID=Q"),
    ("line", "FLOAT=F INT=I LONG=L PERSID=P STRING=S UNICODE=V GET=g PUT=p"),
    ("lines", "GLOBAL=c INST=i"),
    (1, "BININT1=K BINGET=h BINPUT=q"),
    (2, "BININT2=M"),
    (4, "BININT=J LONG_BINGET=j LONG_BINPUT=r"),
    (8, "BINFLOAT=G"),
    ("length 1", "SHORT_BINSTRING=U SHORT_BINBYTES=C"),
    ("length 4", "BINSTRING=T BINUNICODE=X BINBYTES=B"),
)
_HIGH: Final[tuple[tuple[int, str, _Layout], ...]] = (
    *((0x80, "PROTO", 1), (0x81, "NEWOBJ", 0), (0x82, "EXT1", 1), (0x83, "EXT2", 2)),
    *((0x84, "EXT4", 4), (0x85, "TUPLE1", 0), (0x86, "TUPLE2", 0), (0x87, "TUPLE3", 0)),
    *((0x88, "NEWTRUE", 0), (0x89, "NEWFALSE", 0), (0x8A, "LONG1", "length 1")),
    *((0x8B, "LONG4", "length 4"), (0x8C, "SHORT_BINUNICODE", "length 1")),
    *((0x8D, "BINUNICODE8", "length 8"), (0x8E, "BINBYTES8", "length 8")),
    *((0x8F, "EMPTY_SET", 0), (0x90, "ADDITEMS", 0), (0x91, "FROZENSET", 0)),
    *((0x92, "NEWOBJ_EX", 0), (0x93, "STACK_GLOBAL", 0), (0x94, "MEMOIZE", 0)),
    *((0x95, "FRAME", 8), (0x96, "BYTEARRAY8", "length 8"), (0x97, "NEXT_BUFFER", 0)),
    (0x98, "READONLY_BUFFER", 0),
)
_LAYOUTS: Final[dict[int, _Layout]] = {
    **{ord(each[-1]): layout for layout, group in _TABLE for each in group.split()},
    **{code: layout for code, _, layout in _HIGH},
}
NAMES: Final[dict[int, str]] = {
    **{ord(each[-1]): each[:-2] for _, group in _TABLE for each in group.split()},
    **{code: name for code, name, _ in _HIGH},
}
"""What each opcode is called."""

_STOP: Final = ord(".")


def opcodes(data: bytes, start: int = 0) -> Iterator[int]:
    """Yield each opcode from offset `start` on, up to and with STOP.

    Raises `DamagedFileError` for a byte that is none, `TruncatedPickleError` without STOP.
    """
    at, end = start, len(data)
    while at < end:
        code = data[at]
        layout = _LAYOUTS.get(code)
        if layout is None:
            raise DamagedFileError(f"{code:#04x} is no opcode", entry=f"byte {at}")
        yield code
        if code == _STOP:
            return
        at = at + 1 + layout if isinstance(layout, int) else _after(data, at + 1, layout)
    raise TruncatedPickleError("the pickle is truncated")


def _after(data: bytes, at: int, layout: str) -> int:
    """Return the offset behind an argument of no fixed length."""
    kind, _, width = layout.partition(" ")
    if kind == "length":
        nbytes = int(width)
        return at + nbytes + int.from_bytes(data[at : at + nbytes], "little")
    for _ in range(2 if kind == "lines" else 1):
        at = data.find(b"\n", at) + 1
        if not at:
            raise TruncatedPickleError("the pickle is truncated")
    return at
