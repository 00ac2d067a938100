"""The table of known architectures, ``signatures.bin``, of which only what is asked for is decoded.

A few *anchors* of each architecture, the lowest checksums of its rows, lead to those that a file
may be; only these are decoded. ``scripts/make_signatures.py`` makes the table.

The file is a magic, the length of its header, the header (compressed JSON: versions, names, where
the blocks lie), the anchors in rising order, the number of the architecture of each, and the
blocks: the rows of 16 architectures each, as compressed JSON.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from itertools import product
from typing import Any, Final

from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.fold import fold
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MAGIC: Final = b"CKPTSIG2"
_ANCHORS: Final = 12
_LEAST_ANCHORS: Final = 6
"""Of an architecture's anchors, those that a file has to have to be compared with it."""
_LEAST_PROMISE: Final = 0.75
"""Of the best likeness that anchors promise, that of the others that are looked at."""
_MOST_CANDIDATES: Final = 64
_IN_A_BLOCK: Final = 16
_CHOICE: Final = re.compile(r"\{([\d.,]+)\}")


@dataclass(frozen=True, slots=True)
class Head:
    """A tensor whose first axis is ``per_class * classes + base``; `rest` are its other axes."""

    name: str
    per_class: int
    base: int
    rest: Shape

    def classes(self, shape: Shape) -> int | None:
        """Return the number of classes of a tensor of `shape`; None if it is no such head."""
        if not shape or tuple(shape[1:]) != self.rest:
            return None
        classes, odd = divmod(shape[0] - self.base, self.per_class)
        return classes if classes > 0 and not odd else None


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A name with ``#`` for its numbers, and a number of axes; it may lack if it is a tied one."""

    name: str
    axes: int
    is_optional: bool = False

    @property
    def checksum(self) -> int:
        return open_checksum(self.name, self.axes)


@dataclass(frozen=True, slots=True)
class Signature:
    """An architecture: its name, others with the same tensors, its classes and heads.

    `checksums` are those of its names and shapes apart from the heads; or it is known by `rows`,
    whose numbers of layers and sizes are open.
    """

    name: str
    also: tuple[str, ...] = ()
    classes: int | None = None
    heads: tuple[Head, ...] = ()
    checksums: frozenset[int] = frozenset()
    rows: tuple[OpenRow, ...] = ()

    @property
    def anchors(self) -> list[int]:
        """The checksums by which it is found."""
        rows = (row.checksum for row in self.rows if not row.is_optional)
        return sorted({*self.checksums, *rows})[:_ANCHORS]


@dataclass(frozen=True, slots=True)
class Known:
    """What an architecture is made from: a `Signature` with its names and shapes in their order."""

    name: str
    tensors: tuple[tuple[str, Shape], ...] = ()
    also: tuple[str, ...] = ()
    classes: int | None = None
    heads: tuple[Head, ...] = ()
    rows: tuple[OpenRow, ...] = ()

    @property
    def signature(self) -> Signature:
        numbers = frozenset(checksum(name, shape) for name, shape in self.tensors)
        return Signature(self.name, self.also, self.classes, self.heads, numbers, self.rows)


@dataclass(frozen=True)
class Table:
    """All that is known; `names` are those of each architecture, the first being its own.

    `counts` say how many tensors (or rows, if it is known by them) each has.
    """

    versions: Mapping[str, str]
    names: Sequence[tuple[str, ...]]
    counts: Sequence[int]
    anchors: array[int]
    owners: array[int]
    blocks: Sequence[bytes]
    _opened: dict[int, list[Any]] = field(default_factory=dict, repr=False, compare=False)
    _known: dict[int, Signature] = field(default_factory=dict, repr=False, compare=False)

    def candidates(self, checksums: Collection[int]) -> Iterator[Signature]:
        """Yield the architectures that a file with these checksums may be, the likeliest first."""
        seen = Counter(owner for number in checksums for owner in self._owners(number))
        promises = {}
        for owner, anchors in seen.items():
            if anchors >= min(_LEAST_ANCHORS, self.counts[owner]):
                count = self.counts[owner]
                share = min(1, anchors / min(count, _ANCHORS))
                agreeing = min(count * share, len(checksums))
                promises[owner] = agreeing / (count + len(checksums) - agreeing)
        best = sorted(promises, key=lambda owner: -promises[owner])[:_MOST_CANDIDATES]
        for owner in best:
            if promises[owner] >= _LEAST_PROMISE * promises[best[0]]:
                yield self.signature(owner)

    def _owners(self, number: int) -> Iterator[int]:
        at = bisect_left(self.anchors, number)
        while at < len(self.anchors) and self.anchors[at] == number:
            yield self.owners[at]
            at += 1

    def signature(self, index: int) -> Signature:
        """Return the architecture of a number."""
        block, place = divmod(index, _IN_A_BLOCK)
        if block not in self._opened:
            self._opened[block] = json.loads(zlib.decompress(self.blocks[block]))
        if index not in self._known:
            self._known[index] = _read(self._opened[block][place], self.names[index])
        return self._known[index]


def make_table(known: Sequence[Known], versions: Mapping[str, str]) -> Table:
    """Return the table of these architectures."""
    anchors = sorted(
        (number, owner) for owner, each in enumerate(known) for number in each.signature.anchors
    )
    return Table(
        dict(versions),
        [(each.name, *each.also) for each in known],
        [len(each.tensors) + len(each.heads) + len(each.rows) for each in known],
        array("I", (number for number, _ in anchors)),
        array("H", (owner for _, owner in anchors)),
        [
            zlib.compress(_to_json([_written(each) for each in known[at : at + _IN_A_BLOCK]]), 9)
            for at in range(0, len(known), _IN_A_BLOCK)
        ],
    )


def encode_table(table: Table) -> bytes:
    """Return the content of ``signatures.bin``."""
    header = {
        "versions": table.versions,
        "names": table.names,
        "counts": table.counts,
        "anchors": len(table.anchors),
        "blocks": [len(block) for block in table.blocks],
    }
    packed = zlib.compress(_to_json(header), 9)
    arrays = b"".join(_little(numbers).tobytes() for numbers in (table.anchors, table.owners))
    return b"".join([_MAGIC, struct.pack("<I", len(packed)), packed, arrays, *table.blocks])


def _decode_table(data: bytes) -> Table:
    """Return what `encode_table` was given; raises ValueError if `data` is nothing of the kind."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("this is no table of signatures")
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    at = len(_MAGIC) + 4 + length
    header = json.loads(zlib.decompress(data[len(_MAGIC) + 4 : at]))
    anchors, owners = array("I"), array("H")
    for numbers in (anchors, owners):
        end = at + header["anchors"] * numbers.itemsize
        numbers.frombytes(data[at:end])
        at = end
    blocks = []
    for size in header["blocks"]:
        blocks.append(data[at : at + size])
        at += size
    names = [tuple(each) for each in header["names"]]
    return Table(
        header["versions"], names, header["counts"], _little(anchors), _little(owners), blocks
    )


@cache
def load_table() -> Table:
    """Return the table that comes with the package."""
    # importlib.resources imports tempfile, shutil and all compressions, for one small file
    loader: Any = __spec__.loader  # pkgutil would ask it the same
    path = os.path.join(os.path.dirname(__file__), "signatures.bin")  # noqa: PTH118, PTH120
    return _decode_table(loader.get_data(path))


def _little(numbers: array[int]) -> array[int]:
    """Return the same numbers, in the order of bytes that the file has or the machine wants."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _written(known: Known) -> dict[str, Any]:
    """Return an architecture as a block has it."""
    if known.rows:
        return {"open": [[row.name, row.axes, int(row.is_optional)] for row in known.rows]}
    rows: dict[tuple[str, Shape], list[str]] = {}
    for each in fold(known.tensors):
        stem, dot, last = each.pattern.rpartition(".")
        shape: Any = each.value
        rows.setdefault((stem + dot, shape), []).append(last)
    written = {
        "classes": known.classes,
        "heads": [[head.name, head.per_class, head.base, *head.rest] for head in known.heads],
        "rows": [
            f"{stem} {' '.join(last)} {'x'.join(map(str, shape))}"
            for (stem, shape), last in rows.items()
        ],
    }
    if _read(written, (known.name, *known.also)) != known.signature:
        raise ValueError(f"'{known.name}' has names that cannot be written short")
    return written


def _read(written: Mapping[str, Any], names: tuple[str, ...]) -> Signature:
    """Return the architecture of what a block has of it."""
    name, *also = names
    if "open" in written:
        rows = tuple(OpenRow(row[0], row[1], bool(row[2])) for row in written["open"])
        return Signature(name, tuple(also), rows=rows)
    heads = tuple(Head(h[0], h[1], h[2], tuple(h[3:])) for h in written["heads"])
    numbers = frozenset(number for row in written["rows"] for number in _checksums(row))
    return Signature(name, tuple(also), written["classes"], heads, numbers)


def _checksums(row: str) -> Iterator[int]:
    """Yield the checksum of every name of a row: ``layers.{0..3}. weight bias 64x3``."""
    stem, *last, shape = row.split(" ")
    for start in _expanded(stem):
        for end in last:
            for tail in _expanded(end):
                yield zlib.crc32(f"{start}{tail} {shape}".encode("utf-8", "surrogatepass"))


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern of `names.fold` stands for."""
    text, choices = _CHOICE.split(pattern)[::2], _CHOICE.findall(pattern)
    for chosen in product(*map(_numbers, choices)):
        yield "".join(part for pair in zip(text, (*chosen, ""), strict=True) for part in pair)


def _numbers(choice: str) -> list[str]:
    """Return the numbers of ``0..3,7``."""
    found: list[str] = []
    for part in choice.split(","):
        first, _, last = part.partition("..")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


def checksum(name: str, shape: Shape) -> int:
    """32 bits for a name and a shape. Not against forgery: a resemblance is a hint, not a proof."""
    return zlib.crc32(f"{name} {'x'.join(map(str, shape))}".encode("utf-8", "surrogatepass"))


def open_checksum(name: str, axes: int) -> int:
    """32 bits for a folded name and its number of axes."""
    return zlib.crc32(f"{name} /{axes}".encode("utf-8", "surrogatepass"))


def folded(name: str) -> str:
    """`name` with ``#`` for every number between dots: ``layers.#.weight``."""
    if not any(map(str.isdecimal, name)):
        return name
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))
