"""The record `.data/serialization_id` as torch computes it.

Two numbers of 20 decimal digits: the hashes of the record names combined, and the checksums of
the records combined (`PyTorchStreamWriter::writeSerializationId` of caffe2's inline_container.cc,
torch 2.1 and later). torch only logs it, but equal bytes are the proof of an equal layout.

The names are combined in the order in which a C++ `unordered_set` visits them, so the first number
depends on the standard library that torch was built with. This is libstdc++'s, of the builds for
Linux; it follows from its `_Hash_bytes` (MurmurHash64A), its table of bucket counts and its way of
linking new nodes in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

_MASK: Final = (1 << 64) - 1
_MURMUR_MULTIPLIER: Final = 0xC6A4A7935BD1E995
_MURMUR_SEED: Final = 0xC70F6907

# Each is the least of libstdc++'s primes that is at least twice the one before.
_BUCKET_COUNTS: Final = (
    *(13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933),
    *(351061, 712697, 1447153),
)


def serialization_id(records: Sequence[tuple[str, int, int]]) -> bytes:
    """Return the 40 digits for records of (name below the root, length
    in bytes, CRC-32), as written.

    A record without bytes counts with its name only: torch writes no checksum after it.
    """
    names = 0
    for value in _visiting_order([_hash_name(name) for name, _, _ in records]):
        names = _combine(names, value)
    checksums = 0
    for _, nbytes, crc32 in records:
        if nbytes:
            checksums = _combine(checksums, crc32)
    return b"%020d%020d" % (names, checksums)


def _combine(seed: int, value: int) -> int:
    """`c10::hash_combine`."""
    return (seed ^ (value + 0x9E3779B9 + (seed << 6) + (seed >> 2))) & _MASK


def _hash_name(name: str) -> int:
    """`std::hash<std::string>` of libstdc++: MurmurHash64A over little-endian words."""
    data = name.encode()
    whole = len(data) & ~7
    value = _MURMUR_SEED ^ (len(data) * _MURMUR_MULTIPLIER & _MASK)
    for at in range(0, whole, 8):
        word = int.from_bytes(data[at : at + 8], "little") * _MURMUR_MULTIPLIER & _MASK
        word = (word ^ word >> 47) * _MURMUR_MULTIPLIER & _MASK
        value = (value ^ word) * _MURMUR_MULTIPLIER & _MASK
    if whole < len(data):
        value ^= int.from_bytes(data[whole:], "little")
        value = value * _MURMUR_MULTIPLIER & _MASK
    value = (value ^ value >> 47) * _MURMUR_MULTIPLIER & _MASK
    return value ^ value >> 47


def _visiting_order(hashes: list[int]) -> Iterable[int]:
    """Return the order in which an `unordered_set` visits elements inserted in the order given.

    A node goes to the front of its bucket's run, and if the bucket is empty to the front of the
    list; growing re-inserts all nodes in the order of the list.
    """
    visited: list[int] = []
    sizes = (0, *_BUCKET_COUNTS[: 1 + bisect_left(_BUCKET_COUNTS, len(hashes))])
    for have, room in pairwise(sizes):
        runs: dict[int, list[int]] = {}  # a bucket's nodes; both levels hold the last one first
        for value in visited + hashes[have:room]:
            runs.setdefault(value % room, []).append(value)
        visited = [value for run in reversed(runs.values()) for value in reversed(run)]
    return visited
