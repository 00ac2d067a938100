"""Small pickles that hang, crash or fill the memory of CPython's unpickler or of torch's.

Run as a script, with little memory, it parses, walks and writes each, and says what came of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

from ckpt_surgery.errors import CkptError
from ckpt_surgery.pickles import parse, walk
from ckpt_surgery.pickles.emit import emit

_MILLION = 1_000_000
_MANY = 200_000  # deeper than any stack that recursion would use
_MEMORY = 1 << 30


def _put(index: int) -> bytes:
    return b"Nr" + struct.pack("<I", index) + b"."


def _doubling(levels: int) -> bytes:
    """A tuple of twice a tuple of twice a tuple …"""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


def _list_doubling(levels: int) -> bytes:
    code = b"]q\x00"
    for i in range(levels):
        code += b"]q%c(h%ch%ce" % (i + 1, i, i)
    return code


# Each with what comes of parsing, walking and writing it.
BOMBS: dict[str, tuple[Callable[[], bytes], str, str, str]] = {
    "memo index 2^26 - 1": (lambda: _put((1 << 26) - 1), "ok", "ok", "ok"),
    "memo index 2^26": (lambda: _put(1 << 26), "LimitExceededError", "", ""),
    "memo index 2^31": (lambda: _put(1 << 31), "LimitExceededError", "", ""),
    "memo index 10^30": (lambda: b"Np1%s\n." % (b"0" * 30), "LimitExceededError", "", ""),
    "deep tuple as key": (
        lambda: b"})" + b"\x85" * _MILLION + b"Ns.",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep tuple in a set": (
        lambda: b"\x8f()" + b"\x85" * _MILLION + b"\x90.",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "doubling tuple as key": (lambda: b"}" + _doubling(40) + b"Ns.", "ok", "ok", "ok"),
    "doubling tuple in a set": (lambda: b"\x8f(" + _doubling(40) + b"\x90.", "ok", "ok", "ok"),
    "doubling list": (lambda: _list_doubling(200) + b".", "ok", "ok", "ok"),
    "huge bytearray": (
        lambda: b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R.",
        "ok",
        "ok",
        "ok",
    ),
    "announced text": (lambda: b"\x8d" + b"\xff" * 7 + b"\x7f.", "TruncatedPickleError", "", ""),
    "announced bytearray": (
        lambda: b"\x96" + struct.pack("<Q", 3 << 30) + b".",
        "TruncatedPickleError",
        "",
        "",
    ),
    "announced frame": (lambda: b"\x95" + b"\xff" * 8 + b".", "TruncatedPickleError", "", ""),
    "announced integer": (lambda: b"\x8b\xff\xff\xff\x7f.", "TruncatedPickleError", "", ""),
    "million digits": (lambda: b"I" + b"9" * _MILLION + b"\n.", "LimitExceededError", "", ""),
    "million digits of LONG": (
        lambda: b"L" + b"9" * _MILLION + b"L\n.",
        "LimitExceededError",
        "",
        "",
    ),
    "million digits of FLOAT": (
        lambda: b"F" + b"9" * _MILLION + b"\n.",
        "DamagedFileError",
        "",
        "",
    ),
    "long integer": (
        lambda: b"\x8b" + struct.pack("<i", 4 << 20) + b"\x01" * (4 << 20) + b".",
        "ok",
        "ok",
        "ok",
    ),
    "long integer, often": (
        lambda: (
            b"](\x8b"
            + struct.pack("<i", 4 << 20)
            + b"\x01" * (4 << 20)
            + b"q\x00"
            + b"h\x00" * _MILLION
            + b"e."
        ),
        "ok",
        "ok",
        "LimitExceededError",
    ),
    "many DUP": (lambda: b"N" + b"2" * 50_000 + b".", "ok", "ok", "ok"),
    "million DUP": (lambda: b"N" + b"2" * _MILLION + b".", "LimitExceededError", "", ""),
    "deep lists": (
        lambda: b"]" * _MANY + b"a" * (_MANY - 1) + b".",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep dictionaries": (
        lambda: b"}K\x01" * _MANY + b"N" + b"s" * _MANY + b".",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep states": (
        lambda: b"cm\nC\nq\x00" + b"h\x00)\x81" * _MANY + b"b" * (_MANY - 1) + b".",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep calls": (
        lambda: b"cm\nC\nq\x00" + b"h\x00" * _MANY + b")" + b"R\x85" * _MANY + b".",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep persistent ids": (
        lambda: b"N" + b"Q" * _MANY + b".",
        "ok",
        "LimitExceededError",
        "LimitExceededError",
    ),
    "deep call thrown away": (
        lambda: b"cm\nC\n)" + b"\x85" * _MANY + b"R0N.",
        "ok",
        "ok",
        "ok",
    ),
    "two million sets": (
        lambda: b"(" + b"\x8f" * 2 * _MILLION + b"t.",
        "LimitExceededError",
        "",
        "",
    ),
    "three million dictionaries": (
        lambda: b"(" + b"}" * 3 * _MILLION + b"t.",
        "LimitExceededError",
        "",
        "",
    ),
    "five million lists, truncated": (
        lambda: b"(" + b"]" * 5 * _MILLION,
        "LimitExceededError",
        "",
        "",
    ),
    "six million entries of the memo": (
        lambda: b"N" + b"\x94" * 6 * _MILLION + b".",
        "LimitExceededError",
        "",
        "",
    ),
    "marks": (lambda: b"(" * 9000 + b"N.", "ok", "ok", "ok"),
    "only marks": (lambda: b"(" * _MANY + b"N.", "LimitExceededError", "", ""),
    "million dots": (lambda: b"cm\n" + b"a." * _MILLION + b"a\n.", "DamagedFileError", "", ""),
    "chains below lists": (
        lambda: b"](]q\x00]q\x01(" + b"]" * 1000 + b"tq\x02" + b"\x85" * 1000 + b"e.",
        "ok",
        "ok",
        "ok",
    ),
}


def outcomes(data: bytes) -> list[str]:
    """What comes of parsing, of walking and of writing: "ok", or the name of the error."""
    said = ["", "", ""]
    root: object = None

    def read() -> None:
        nonlocal root
        root = parse(data).root

    for number, step in enumerate((read, lambda: sum(1 for _ in walk(root)), lambda: emit(root))):
        try:
            step()
        except CkptError as error:
            said[number] = type(error).__name__
        else:
            said[number] = "ok"
        if said[0] != "ok":
            break
    return said


def main() -> None:
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for name, (build, *_) in BOMBS.items():
        print(json.dumps([name, *outcomes(build())]), flush=True)  # noqa: T201 (its purpose)


if __name__ == "__main__":
    main()
