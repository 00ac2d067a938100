"""Random numbers that depend on a seed, a name and a position, and on nothing else.

Neither the order of the work, nor its division into pieces, nor the number of threads, nor the
version of torch changes them. Each is the output of SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014) at the element's position.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uniform(key: str, stream: int, start: int, stop: int) -> Tensor:
    """Numbers in [0, 1) for positions `start` to `stop`, as float64 multiples of 2^-53.

    `key` is the seed and the name of a tensor, `stream` the number of the input.
    """
    digest = hashlib.blake2b(f"{stream}:{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    state = torch.arange(start + 1, stop + 1, dtype=torch.int64)
    state.mul_(_signed(_GOLDEN)).add_(_signed(int.from_bytes(digest.digest(), "little")))
    for shift, factor in _MIX:
        state.bitwise_xor_(_shifted(state, shift)).mul_(_signed(factor))
    state.bitwise_xor_(_shifted(state, 31))
    return _shifted(state, 11).double().mul_(2.0**-53)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Return a right shift that fills with zeros; torch's fills with the sign."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
