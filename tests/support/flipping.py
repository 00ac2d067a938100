"""Single flipped bits of a checkpoint, and what `verify` says of each."""

from __future__ import annotations

import gzip
import io
import random
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ckpt_surgery import digest
from ckpt_surgery.errors import UnknownFormatError
from ckpt_surgery.fileio import ByteRange, MemorySource
from ckpt_surgery.formats.archive_check import Archive, look_into
from ckpt_surgery.formats.recognise import find_format
from ckpt_surgery.ops.digest_lists import DigestList
from ckpt_surgery.ops.verify import verify
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.pickles import DEFAULT_LIMITS
from ckpt_surgery.render.hashing import write_digests
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


def digest_list(data: bytes, name: str) -> DigestList:
    """What ``ckpt hash --files`` and ``ckpt hash --per-tensor`` print of the file."""
    lines = StringIO()
    for options in ({"files": True}, {"per_tensor": True}):
        report = digest([MemorySource(data, name=name)], threads=1, **options)
        write_digests(report, lines)
    return DigestList.parse(lines.getvalue(), "DIGESTS")


class Flips:
    """One file, of which one bit after another is flipped."""

    def __init__(self, data: bytes, path: Path, *, listed: bool = False) -> None:
        """Take the bytes of the file `path`. With `listed` digests of it were kept."""
        self.data = data
        self.name = path.name
        self.checks = Checks(lists=[digest_list(data, self.name)] if listed else [])
        self.spans = list(self._spans())
        self.before = self._examine(data)

    def flipped(self, place: int) -> bytes:
        data = bytearray(self.data)
        data[place >> 3] ^= 1 << (place & 7)
        return bytes(data)

    def judge(self, place: int) -> str:
        """What becomes of one flipped bit.

        It is found (and the record or a tensor in it named, if it lies in one, else "unnamed"),
        harmless, unchecked, or missed.
        """
        data = self.flipped(place)
        report = self._examine(data)
        if self._says_more(report):
            return "found" if self._names(report, place >> 3) else "unnamed"
        if any(finding.rule == "no-checksum" for finding in report.verdicts[0].findings):
            return "unchecked"
        return "harmless" if self._loads_alike(data) else "missed"

    def _examine(self, data: bytes) -> VerifyReport:
        return verify([MemorySource(data, name=self.name)], self.checks, threads=1)

    def _says_more(self, report: VerifyReport) -> bool:
        """Whether something is wrong that was not before."""
        return bool(report.failures or self._new(report))

    def _new(self, report: VerifyReport) -> list[Any]:
        """The findings that were not there before, but for notes."""
        known = {
            (each.rule, each.entry, each.message)
            for verdict in self.before.verdicts
            for each in verdict.findings
        }
        return [
            each
            for verdict in report.verdicts
            for each in verdict.findings
            if each.severity != "note" and (each.rule, each.entry, each.message) not in known
        ]

    def _names(self, report: VerifyReport, byte: int) -> bool:
        """Whether the record is named in which a byte lies, or a tensor in it; or there is none.

        Where only the digest in its name speaks for a file, no place in it can be named.
        """
        if not self.checks.lists and any(v.checksums.sha256 for v in self.before.verdicts):
            return True
        names = next((names for start, end, names in self.spans if start <= byte < end), ())
        found = [*report.failures, *self._new(report)]
        said = " ".join(f"{each.entry or ''} {each.message}" for each in found)
        return not names or any(name in said for name in names)

    def _spans(self) -> Iterator[tuple[int, int, Sequence[str]]]:
        """Where each record's bytes lie in the file; its name and those of the tensors in it."""
        source = MemorySource(self.data, name=self.name)
        try:
            format_ = find_format(source)
            checkpoint = format_.read(source, DEFAULT_LIMITS)
        except UnknownFormatError:
            archive = look_into(source)
            assert archive is not None
            yield from self._archive_spans(archive)
            return
        owners: dict[int, list[str]] = {}
        for name, tensor in checkpoint.tensors:
            for part in tensor.strided_parts():
                if part.storage is not None and isinstance(part.storage.data, ByteRange):
                    owners.setdefault(part.storage.data.offset, []).append(name)
        for name, data in format_.records(checkpoint):
            tensors = owners.get(data.offset, [])
            # What a list says of a file without checksums is said by tensor, and of the whole.
            names = tensors if self.checks.lists else [name, *tensors]
            yield data.offset, data.offset + data.nbytes, names

    def _archive_spans(self, archive: Archive) -> Iterator[tuple[int, int, Sequence[str]]]:
        """The members of a zip archive; of a compressed one the stream, behind its header."""
        if archive.kind != "zip":
            yield 18, len(self.data), [" stream"]
            return
        with zipfile.ZipFile(io.BytesIO(self.data)) as members:
            for info in members.infolist():
                start = info.header_offset + len(info.FileHeader())
                yield start, start + info.compress_size, [info.filename]

    def _loads_alike(self, data: bytes) -> bool:
        if self.name.endswith(".gz"):
            return gzip.decompress(self.data) == gzip.decompress(data)
        with TemporaryDirectory() as folder:
            one, other = Path(folder) / "a" / self.name, Path(folder) / "b" / self.name
            for path, content in ((one, self.data), (other, data)):
                path.parent.mkdir()
                path.write_bytes(content)
            before, after = ([_loaded(path, way) for way in WAYS] for path in (one, other))
            if all(isinstance(each, str) for each in before):  # TorchScript, which is a program
                before, after = _members(one), _members(other)
            return before == after


def _members(path: Path) -> list[Any]:
    """Every member of a zip archive as a reader gets it."""
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


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
