"""How much of a pickle is read before it is called hostile."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that no honest checkpoint reaches; the largest allowed value of each.

    `pickle_bytes` is the length of one pickle. `operations` counts opcodes when reading (those
    that only file the value just made in the memo are free) and nodes visited when walking and
    writing. `depth` is the length of a path through the graph, and the number of marks on the
    stack, one for each container begun and not ended: CPython's own pickler gives up near 1,000.
    `duplicates` counts DUP opcodes, which no pickler writes. `memo` is the number of memo entries,
    hence one more than the highest index. `digits` is the length of a decimal integer, as CPython
    bounds it (its conversion takes quadratic time). `memory` is bytes of memory that a graph would
    take, or `memory_share` for each byte of its pickle if that is more.
    """

    pickle_bytes: int = 512 << 20
    operations: int = 1 << 26
    depth: int = 10_000
    duplicates: int = 1 << 16
    memo: int = 1 << 26
    digits: int = 4_300
    memory: int = 512 << 20
    memory_share: int = 64


DEFAULT_LIMITS: Final = Limits()
