"""Text from a file made safe to print, and numbers made readable. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LONGEST: Final = 200  # characters of one name or value in a report for people
_BYTE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def visible(text: str) -> str:
    """`text` with every character that does not print as itself written as an escape.

    A file decides about names and values; a control character or a change of direction in one
    would otherwise speak to the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shorten(text: str, longest: int = LONGEST) -> str:
    """`text` with its middle left out if it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def printable(text: str, longest: int = LONGEST) -> str:
    """Both: short and safe."""
    return visible(shorten(text, longest))


def shape(sizes: Sequence[int]) -> str:
    """Return a shape as Python writes it: ``(64, 3, 7, 7)``, ``(10,)``, ``()``."""
    inside = ", ".join(map(str, sizes))
    return f"({inside},)" if len(sizes) == 1 else f"({inside})"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 tensor``, ``21,814 tensors``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def nbytes(number: int) -> str:
    """Return bytes for people: ``512 bytes``, ``83.2 MiB``."""
    if abs(number) < 1024:
        return count(number, "byte")
    size = float(number)
    for unit in _BYTE_UNITS:
        size /= 1024
        if abs(size) < 1023.95 or unit == _BYTE_UNITS[-1]:
            break
    return f"{size:,.1f} {unit}"
