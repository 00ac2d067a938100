"""Files that are of two formats at once, so that two readers see two different files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.zip_structs import END, END_MAGIC, LOCAL_MAGIC

_TAR: Final = b"ustar"
_TAR_OFFSET: Final = 257
_MOST_COMMENT: Final = 0xFFFF
_PROGRAMS: Final = (
    (b"\x7fELF", "a program for Linux"),
    (b"MZ", "a program for Windows"),
    (b"#!", "a script"),
    (b"%PDF", "a PDF document"),
)


def other_formats(source: Source, own: str) -> Iterator[str]:
    """Yield what `source`, of the format called `own`, is as well for other programs."""
    is_zip = source.size >= 4 and source.read_at(0, 4) == LOCAL_MAGIC
    if not is_zip and _ends_as_zip(source):
        yield "a zip archive, which its last bytes say"
    if own != "torch-tar" and _starts_as_tar(source):
        yield "a tar archive, which its first block says"
    start = source.read_at(0, min(source.size, 8))
    yield from (what for magic, what in _PROGRAMS if start.startswith(magic))


def _starts_as_tar(source: Source) -> bool:
    end = _TAR_OFFSET + len(_TAR)
    return source.size >= end and source.read_at(_TAR_OFFSET, len(_TAR)) == _TAR


def _ends_as_zip(source: Source) -> bool:
    """Return whether the file ends with the end record of a zip archive, whose comment fits."""
    nbytes = min(source.size, END.size + _MOST_COMMENT)
    tail = source.read_at(source.size - nbytes, nbytes)
    at = tail.rfind(END_MAGIC)
    while at >= 0:
        if at + END.size <= len(tail):
            comment = END.unpack_from(tail, at)[-1]
            if at + END.size + comment == len(tail):
                return True
        at = tail.rfind(END_MAGIC, 0, at)
    return False
