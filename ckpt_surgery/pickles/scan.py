"""Pickles gone through opcode by opcode without carrying any of them out.

For what has to be known before a pickle is read, or is worth a second look: how much memory its
graph takes, and whether its frames end where opcodes do.
"""

from __future__ import annotations

from typing import Final

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles.limits import Limits

_FRAME: Final = 0x95
_STOP: Final = 0x2E
_NEVER: Final = 1 << 63

# Bytes that a node takes, with what is kept of it while the graph is searched and written. Measured
# with CPython 3.11 and rounded up; opcodes that are not here push a reference.
_REFERENCE: Final = 8
_PER_CHARACTER: Final = 4
_COSTS: Final = {
    b"\x8f\x91": 560,  # sets: a call, its arguments and a list
    b"R\x81o": 430,  # calls, with room for what may be given to the object
    b"\x92i": 700,
    b"}d": 260,
    b"]l": 200,
    b"\x85\x86\x87t": 180,
    b"c\x93": 260,
    b"QP": 200,
    b"\x82\x83\x84": 160,
    b"\x94rp": 100,  # the memo
    b"UTS": 100,
    b"X\x8c\x8dVCB\x8e\x96": 60,
    b"JMGILF\x8a\x8b": 40,
    b"asb": 40,
    b"ue\x90": 120,
    b"(": 80,
}  # fmt: skip
# Opcodes that cost far more than their length, or others with them. What is left costs at most
# `_LIGHT_COST` for each byte: the worst is a text, a number, a state or an element.
_HEAVY: Final = b"\x8f\x91R\x81\x92(}]\x85\x86\x87\n\x93Q\x82\x83\x94U\x90"
_LIGHT_COST: Final = 36
_HEAVY_COST: Final = 1000

_SPECIAL: Final = 255
_LINES: Final = dict.fromkeys(b"FILPSVgp", 1) | dict.fromkeys(b"ci", 2)
_COUNTED: Final = {
    **dict.fromkeys(b"UC\x8c\x8a", 1),
    **dict.fromkeys(b"TXB\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
_FIXED: Final = {**dict.fromkeys(b"Khq\x80\x82", 1), **dict.fromkeys(b"M\x83", 2)} | {
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G", 8),
}


def _table() -> bytes:
    """Return how many bytes each opcode's argument takes,
    `_SPECIAL` if that is not known from it.
    """
    sizes = bytearray(256)
    for opcode, size in _FIXED.items():
        sizes[opcode] = size
    for opcode in (*_LINES, *_COUNTED, _FRAME, _STOP):
        sizes[opcode] = _SPECIAL
    return bytes(sizes)


_SIZES: Final = _table()


def require_whole_frames(data: bytes, start: int, end: int) -> None:
    """Refuse a pickle, from `start` to `end`, of which a frame ends inside an opcode or outside it.

    CPython's two unpicklers read such a one differently: a name may lose what is beyond the frame.
    """
    at, frame_end = start, _NEVER
    while at < end:
        if at == frame_end:
            frame_end = _NEVER
        following = _next(data, at)
        if data[at] == _FRAME:
            if frame_end != _NEVER:
                raise DamagedFileError("a frame begins inside another", entry=f"byte {at}")
            frame_end = following + int.from_bytes(data[at + 1 : following], "little")
        elif following > frame_end:
            raise DamagedFileError("an opcode reaches beyond its frame", entry=f"byte {at}")
        at = following
    if frame_end not in (end, _NEVER):
        raise DamagedFileError("a frame reaches beyond the end of the pickle")


def require_memory(data: bytes, start: int, limits: Limits) -> None:
    """Refuse a pickle whose graph would take far more memory than its length explains.

    Raises `LimitExceededError`. A pickle that is truncated counts up to where it ends.
    """
    nbytes = len(data) - start
    if nbytes * _HEAVY_COST <= limits.memory:
        return
    heavy = len(data) - len(data.translate(None, _HEAVY))
    if nbytes * _LIGHT_COST + heavy * _HEAVY_COST <= limits.memory:
        return
    cost, end = _cost(data, start)
    most = max(limits.memory, limits.memory_share * (end - start))
    if cost > most:
        raise LimitExceededError(
            f"the pickle has {end - start} bytes and would take {cost} bytes of memory, "
            f"more than {most}"
        )


def _cost(data: bytes, start: int) -> tuple[int, int]:
    """Return how many bytes of memory the graph of a pickle takes,
    about, and where the pickle ends.
    """
    costs = [_REFERENCE] * 256
    for opcodes, cost in _COSTS.items():
        for opcode in opcodes:
            costs[opcode] = cost
    cost, at, end = 0, start, len(data)
    while at < end:
        opcode = data[at]
        cost += costs[opcode]
        size = _SIZES[opcode]
        if size != _SPECIAL:
            at += 1 + size
        elif opcode == _STOP:
            return cost, at + 1
        else:
            following = _next(data, at)
            if opcode != _FRAME:
                cost += _PER_CHARACTER * (following - at)
            at = following
    return cost, end


def _next(data: bytes, at: int) -> int:
    """Return where the opcode after the one at `at` stands, beyond
    the data if that is truncated.
    """
    opcode = data[at]
    size = _SIZES[opcode]
    if size != _SPECIAL:
        return at + 1 + size
    if opcode in _COUNTED:
        width = _COUNTED[opcode]
        return at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
    if opcode == _STOP:
        return at + 1
    if opcode == _FRAME:
        return at + 9
    at += 1
    for _ in range(_LINES[opcode]):
        at = data.find(b"\n", at) + 1 or len(data)
    return at
