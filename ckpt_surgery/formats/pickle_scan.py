"""The pickles in any file, broken ones included, and the names in them.

An unpickler imports and calls what a pickle names until it fails, so that a name counts that stands
before the place where the pickle breaks. Zip archives are looked through by the marks of their
records, whatever their directory says.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt_surgery.errors import CkptError, DamagedFileError, ReadError
from ckpt_surgery.fileio import CHUNK, Source, looks_like_zip, read_zip
from ckpt_surgery.fileio.zip_salvage import FoundRecord, find_records
from ckpt_surgery.fileio.zip_structs import DEFLATED, STORED
from ckpt_surgery.formats.torch_legacy import TorchLegacy
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits, TruncatedPickleError
from ckpt_surgery.pickles.parse import Looked, look_at
from ckpt_surgery.pickles.risk import classify_all
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MOST_PICKLES: Final = 100  # one after another in one place
_OF_LEGACY: Final = 5  # pickles of a file of torch before 1.6, then the bytes of storages
_MOST_INFLATED: Final = 1 << 28  # bytes of one record
_MOST_SCANNED: Final = 1 << 26  # bytes of a file of no format that is looked through for a hint
_MOST_NAMED: Final = 3
_LONGEST_NAME: Final = 80
_FIRST_WINDOW: Final = 1 << 20
_NUMPY: Final = b"\x93NUMPY"
_OBJECTS: Final = re.compile(rb"""['"]descr['"]\s*:\s*['"]?[^,}]*O""")
_PICKLE_NAME: Final = re.compile(r".*\.(pkl|pickle|p|joblib|dat|data|bin|pt|pth|ckpt)")
_BINARY: Final = re.compile(rb"\x80[\x00-\x05]")
_TEXTUAL: Final = re.compile(rb"[(\]})NIFLSVclgdp]")


@dataclass(frozen=True, slots=True)
class FoundPickle:
    """A pickle: the record that it is in (empty: the file itself), and `data` from its start on.

    `looked` is what could be read of it, the names in it above all.
    """

    entry: str
    data: bytes
    looked: Looked


def find_pickles(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[FoundPickle]:
    """Yield the pickles in `source`, as a file of pickles, an archive or a numpy array.

    Raises `ReadError` if it cannot be read; nothing that is wrong in it raises.
    """
    if source.size == 0:
        return
    head = source.read_at(0, min(source.size, 256))
    if looks_like_zip(source):
        for name, data in _members(source, limits):
            yield from _successive(name, data, limits)[0]
    elif head.startswith(_NUMPY):
        yield from _successive("", _behind_header(source, limits), limits)[0]
    else:
        yield from _growing(source, limits)


def with_dangers(error: CkptError, source: Source) -> CkptError:
    """Return the error for what cannot be read, with a hint of what its pickles may call."""
    if source.size > _MOST_SCANNED:
        return error
    with suppress(ReadError):
        names = (name for each in find_pickles(source) for name in each.looked.names)
        dangerous = [risk for risk in classify_all(names) if risk.level == "dangerous"]
        if dangerous:
            listed = ", ".join(risk.name[:_LONGEST_NAME] for risk in dangerous[:_MOST_NAMED])
            more = len(dangerous) - _MOST_NAMED
            listed += f" and {more} more" if more > 0 else ""
            known = f"{error.hint}; " if error.hint and isinstance(error, DamagedFileError) else ""
            error.hint = (
                f"{known}do not load it: it may call {listed}; 'ckpt verify' says what that does"
            )
    return error


def _growing(source: Source, limits: Limits) -> Iterator[FoundPickle]:
    """Yield the pickles at the start of a file, of which little more is read than they take."""
    most = min(source.size, limits.pickle_bytes)
    nbytes = min(_FIRST_WINDOW, most)
    count = _OF_LEGACY if TorchLegacy().sniff(source) else _MOST_PICKLES
    while True:
        found, is_cut = _successive("", source.read_at(0, nbytes), limits, count)
        if not is_cut or nbytes == most:
            yield from found
            return
        nbytes = min(nbytes * 4, most)


def _successive(
    entry: str, data: bytes, limits: Limits, most: int = 0
) -> tuple[list[FoundPickle], bool]:
    """Return the pickles one after another at the start of `data`, and
    whether `data` ends inside one.
    """
    found: list[FoundPickle] = []
    if not _BINARY.match(data) and not _TEXTUAL.match(data):
        return found, False
    while data and len(found) < (most or _MOST_PICKLES):
        looked = look_at(data, limits=limits)
        if looked.failure is not None and not looked.names:
            break  # what is no pickle breaks at once
        found.append(FoundPickle(entry, data, looked))
        if looked.failure is not None:
            break
        data = data[looked.end :]
    else:
        return found, False
    return found, isinstance(looked.failure, TruncatedPickleError)


def _members(source: Source, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Name and content of the records that may be pickles."""
    try:
        archive = read_zip(source)
    except ReadError:
        for record in find_records(source):
            yield record.name, _content(source, record, limits)
        return
    for each in archive.records:
        if _PICKLE_NAME.fullmatch(each.name) and each.nbytes <= limits.pickle_bytes:
            data = each.data
            if each.compressed:
                yield each.name, _inflated(source, data.offset, data.nbytes)
            else:  # not `read`, which compares the checksum: what is wrong is looked at, too
                yield each.name, source.read_at(data.offset, data.nbytes)


def _content(source: Source, record: FoundRecord, limits: Limits) -> bytes:
    """As much of a record as there is; of a large storage only its start."""
    most = source.size - record.start
    stored = min(most if record.stored_nbytes is None else record.stored_nbytes, most)
    head = source.read_at(record.start, min(stored, 256))
    if record.method == STORED:
        if head.startswith(_NUMPY):
            return _array_pickle(source.read_at(record.start, min(stored, limits.pickle_bytes)))
        if not _BINARY.match(head) and not _TEXTUAL.match(head):
            return b""
        return source.read_at(record.start, min(stored, limits.pickle_bytes))
    return _inflated(source, record.start, stored) if record.method == DEFLATED else b""


def _inflated(source: Source, start: int, stored: int) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    room = _MOST_INFLATED
    for at in range(start, start + stored, CHUNK):
        try:
            part = inflate.decompress(source.read_at(at, min(CHUNK, start + stored - at)), room)
        except zlib.error:
            break
        parts.append(part)
        room -= len(part)
        if inflate.eof or not room:
            break
    data = b"".join(parts)
    return _array_pickle(data) if data.startswith(_NUMPY) else data


def _behind_header(source: Source, limits: Limits) -> bytes:
    return _array_pickle(source.read_at(0, min(source.size, limits.pickle_bytes)))


def _array_pickle(data: bytes) -> bytes:
    """Return the pickle of an array of objects; nothing for one of numbers."""
    width = 2 if data[6:7] == b"\x01" else 4
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    return data[end:] if _OBJECTS.search(data[:end]) else b""
