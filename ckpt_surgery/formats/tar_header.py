"""What makes a block the header of a tar archive, without the standard library's `tarfile`."""

from __future__ import annotations

from typing import Final

TAR_BLOCK: Final = 512
"""Bytes of a header."""

_CHECKSUM: Final = slice(148, 156)
_BINARY: Final = (0x80, 0xFF)  # the first byte of a number that is no text, and of a negative one


def is_tar_header(block: bytes) -> bool:
    """Say whether `tarfile` would accept a block as a header, going by the checksum in it."""
    stated = _number(block[_CHECKSUM])
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    total = sum(rest) + (_CHECKSUM.stop - _CHECKSUM.start) * ord(" ")
    signed = total - 256 * sum(byte > 127 for byte in rest)  # as some old programs add them up
    return stated in (total, signed)


def _number(field: bytes) -> int | None:
    """Return a number in octal digits or in binary; None for anything else."""
    if field[0] in _BINARY:
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == _BINARY[0] else value - (1 << 8 * (len(field) - 1))
    try:
        return int(field.partition(b"\0")[0].decode("ascii").strip() or "0", 8)
    except ValueError:  # UnicodeDecodeError is one
        return None
