"""Single flipped bits of a checkpoint, and what `verify` says of each."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ckpt_surgery.fileio import MemorySource
from ckpt_surgery.ops.verify import verify
from ckpt_surgery.reports.verification import VerifyReport

SMALL = 4096
"""Bytes of a file of which every bit is flipped."""

WAYS: list[dict[str, Any]] = [
    {"weights_only": True},
    {"weights_only": True, "mmap": True},
]


def places(nbytes: int, bits: int | None, seed: int) -> Iterator[int]:
    """The bits to flip: all of a small file, otherwise `bits` random ones (20,000)."""
    if bits is None and nbytes <= SMALL:
        yield from range(8 * nbytes)
        return
    chance = random.Random(seed)
    yield from (chance.randrange(8 * nbytes) for _ in range(bits or 20_000))


class Flips:
    """One file, of which one bit after another is flipped."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data = data
        self.name = path.name
        self.before = self._examine(data)

    def flipped(self, place: int) -> bytes:
        data = bytearray(self.data)
        data[place >> 3] ^= 1 << (place & 7)
        return bytes(data)

    def judge(self, place: int) -> str:
        """What becomes of one flipped bit: found, harmless, unchecked, or missed."""
        data = self.flipped(place)
        report = self._examine(data)
        if self._says_more(report):
            return "found"
        if any(finding.rule == "no-checksum" for finding in report.verdicts[0].findings):
            return "unchecked"
        return "harmless" if self._loads_alike(data) else "missed"

    def _examine(self, data: bytes) -> VerifyReport:
        return verify([MemorySource(data, name=self.name)], threads=1)

    def _says_more(self, report: VerifyReport) -> bool:
        """Whether something is wrong that was not before."""
        if report.failures:
            return True
        known = {(each.rule, each.entry, each.message) for each in self.before.verdicts[0].findings}
        return any(
            each.severity != "note" and (each.rule, each.entry, each.message) not in known
            for each in report.verdicts[0].findings
        )

    def _loads_alike(self, data: bytes) -> bool:
        with TemporaryDirectory() as folder:
            one, other = Path(folder) / "a" / self.name, Path(folder) / "b" / self.name
            for path, content in ((one, self.data), (other, data)):
                path.parent.mkdir()
                path.write_bytes(content)
            return all(_loaded(one, way) == _loaded(other, way) for way in WAYS)


def _loaded(path: Path, way: dict[str, Any]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(_contents(torch.load(path, map_location="cpu", **way)))
        except Exception as error:
            return type(error).__name__


def _contents(value: object) -> Iterator[object]:
    if isinstance(value, torch.Tensor):
        dense = value.detach().contiguous().reshape(-1)
        yield value.shape, value.dtype, dense.view(torch.uint8).tolist() if dense.numel() else []
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _contents(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _contents(each)
    else:
        yield repr(value)
