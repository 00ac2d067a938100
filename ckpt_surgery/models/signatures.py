"""Recognising torchvision's architectures in a list of names and shapes, without torch.

``signatures.bin`` beside this module holds a checksum of every (name, shape) of every
architecture; ``scripts/make_signatures.py`` makes it. ``num_batches_tracked`` is left out: files
from before torch 0.4.1 lack it. The tensors whose rows follow the number of classes are listed
apart, so that a head of any size is recognised.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.spellings import respellings, unwrapped
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MAGIC = b"CKPTSIG1"
_FEWEST = 8
"""Tensors below which a resemblance says nothing."""
_LEAST_LIKENESS = 0.5
_LONGEST_NAME = 512
"""Characters; no architecture has longer names, a hostile file may."""
_DEEPEST_PREFIX = 8
"""Segments that wrappers may have put before the names."""


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
class Signature:
    """An architecture: its name, others with the same tensors, its classes, heads and checksums."""

    name: str
    also: tuple[str, ...]
    classes: int | None
    heads: tuple[Head, ...]
    checksums: array[int]

    @property
    def count(self) -> int:
        return len(self.checksums) + len(self.heads)


@dataclass(frozen=True, slots=True)
class Recognition:
    """The architecture that a state dict is, or is nearest to.

    `agreeing` of the architecture's `wanted` tensors are there in the right shape, out of `found`
    tensors that the state dict has (``num_batches_tracked`` is counted nowhere). `prefix` is what
    their names have before the architecture's own, with its dot. `classes` is the size of the
    head, None if the architecture has none or the file lacks it.
    """

    name: str
    also: tuple[str, ...]
    prefix: str
    agreeing: int
    wanted: int
    found: int
    classes: int | None

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the architecture is there."""
        return self.agreeing == self.wanted

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing else, either."""
        return self.is_complete and self.found == self.wanted

    @property
    def fraction(self) -> float:
        """Of the tensors of either side, those that agree."""
        return self.agreeing / (self.wanted + self.found - self.agreeing)

    def to_dict(self) -> dict[str, object]:
        """As the JSON report of ``ckpt inspect`` has it."""
        return {
            "name": f"torchvision:{self.name}",
            "also": [f"torchvision:{name}" for name in self.also],
            "prefix": self.prefix,
            "agreeing": self.agreeing,
            "wanted": self.wanted,
            "found": self.found,
            "classes": self.classes,
            "fraction": round(self.fraction, 4),
            "summary": str(self),
        }

    def __str__(self) -> str:
        if self.is_exact:
            parts = [f"torchvision {self.name}", "every key"]
        elif self.is_complete:
            more = self.found - self.wanted
            parts = [
                f"contains torchvision {self.name}",
                f"and {more} more {'key' if more == 1 else 'keys'}",
            ]
        else:
            parts = [
                f"nearest to torchvision {self.name}",
                f"{self.agreeing} of its {self.wanted} keys and shapes",
            ]
        if self.classes is not None:
            parts.append(f"{self.classes}-class head")
        if self.prefix:
            parts.append(f"prefix '{self.prefix}'")
        return ", ".join(parts)


def recognise(
    tensors: Iterable[tuple[str, Shape]], table: Sequence[Signature] | None = None
) -> Recognition | None:
    """Return the architecture whose tensors these are, or the nearest; None if none is near.

    Near means that half of all tensors of either side agree, and that no other architecture is as
    near. Wrapper prefixes and old spellings are seen through.
    """
    shapes = {name: tuple(shape) for name, shape in tensors if not _is_counter(name)}
    signatures = load_table() if table is None else table
    largest = max((signature.count for signature in signatures), default=0)
    if not _FEWEST <= len(shapes) <= largest / _LEAST_LIKENESS:
        return None
    if any(len(name) > _LONGEST_NAME for name in shapes):
        return None
    best: list[Recognition] = []
    for prefix in _prefixes(shapes):
        below = {
            unwrapped(name.removeprefix(prefix)): shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
        checksums = _checksums_of(below)
        for signature in signatures:
            found = _recognise(signature, prefix, below, checksums, len(shapes))
            if not best or found.fraction > best[0].fraction:
                best = [found]
            elif found.fraction == best[0].fraction:
                # of one architecture the longest prefix, where wrappers are seen through anyway
                best = [*(other for other in best if other.name != found.name), found]
    if len(best) != 1 or best[0].fraction < _LEAST_LIKENESS:
        return None
    return best[0]


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _prefixes(names: Iterable[str]) -> list[str]:
    """No prefix, and those that at least half of the names have, with their dots."""
    below: Counter[str] = Counter()
    total = 0
    for name in names:
        total += 1
        segments = name.split(".", _DEEPEST_PREFIX)[:-1]
        below.update(".".join(segments[:n]) + "." for n in range(1, len(segments) + 1))
    return ["", *(prefix for prefix, count in below.items() if 2 * count >= total)]


def _checksums_of(shapes: Mapping[str, Shape]) -> set[int]:
    """Checksums of the names as they are, and of what they may be old spellings of."""
    return {
        checksum(spelling, shape)
        for name, shape in shapes.items()
        for spelling in (name, *respellings(name))
    }


def _recognise(
    signature: Signature,
    prefix: str,
    shapes: Mapping[str, Shape],
    checksums: set[int],
    found: int,
) -> Recognition:
    sizes = Counter(
        classes
        for head in signature.heads
        if (classes := head.classes(shapes.get(head.name, ()))) is not None
    )
    classes, agreeing_heads = sizes.most_common(1)[0] if sizes else (None, 0)
    return Recognition(
        name=signature.name,
        also=signature.also,
        prefix=prefix,
        agreeing=len(checksums.intersection(signature.checksums)) + agreeing_heads,
        wanted=signature.count,
        found=found,
        classes=classes,
    )


def checksum(name: str, shape: Shape) -> int:
    """32 bits for a name and a shape. Not against forgery: a resemblance is a hint, not a proof."""
    return zlib.crc32(f"{name} {'x'.join(map(str, shape))}".encode("utf-8", "surrogatepass"))


def encode_table(signatures: Sequence[Signature], version: str) -> bytes:
    """Return the content of ``signatures.bin``: magic, header
    length, compressed JSON, checksums.
    """
    header = {
        "torchvision": version,
        "architectures": [
            {
                "name": s.name,
                "also": list(s.also),
                "classes": s.classes,
                "heads": [[h.name, h.per_class, h.base, *h.rest] for h in s.heads],
                "checksums": len(s.checksums),
            }
            for s in signatures
        ],
    }
    packed = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    numbers = array("I", (number for s in signatures for number in s.checksums))
    if sys.byteorder == "big":
        numbers.byteswap()
    return _MAGIC + struct.pack("<I", len(packed)) + packed + numbers.tobytes()


def _decode_table(data: bytes) -> tuple[Signature, ...]:
    """Return what `encode_table` was given; raises ValueError if `data` is nothing of the kind."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("this is no table of signatures")
    start = len(_MAGIC) + 4
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    header = json.loads(zlib.decompress(data[start : start + length]))
    numbers = array("I")
    numbers.frombytes(data[start + length :])
    if sys.byteorder == "big":
        numbers.byteswap()
    signatures = []
    at = 0
    for item in header["architectures"]:
        signatures.append(
            Signature(
                name=item["name"],
                also=tuple(item["also"]),
                classes=item["classes"],
                heads=tuple(Head(h[0], h[1], h[2], tuple(h[3:])) for h in item["heads"]),
                checksums=numbers[at : at + item["checksums"]],
            )
        )
        at += item["checksums"]
    return tuple(signatures)


@cache
def load_table() -> tuple[Signature, ...]:
    """Return the table that comes with the package."""
    # importlib.resources imports tempfile, shutil and all compressions, for one small file
    from pkgutil import get_data

    data = get_data("ckpt_surgery.models", "signatures.bin")
    if data is None:
        raise FileNotFoundError("the package's loader has no 'signatures.bin'")
    return _decode_table(data)
