"""Say whether a file is whole, what it would run, and whether torch reads the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.findings import Finding, Rule, Severity, finding_of
from ckpt_surgery.errors import (
    DamagedFileError,
    LimitExceededError,
    PathLike,
    ReadError,
    UnknownFormatError,
)
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.fileio.member import require_whole_members
from ckpt_surgery.fileio.parallel import shown
from ckpt_surgery.fileio.record_sums import crc32_of
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.detect import opened
from ckpt_surgery.formats.other_formats import other_formats
from ckpt_surgery.formats.pickle_scan import FoundPickle, find_pickles
from ckpt_surgery.formats.recognise import find_format, source_is_directory
from ckpt_surgery.formats.torch_zip import forget_archive
from ckpt_surgery.formats.torch_zip_container import PICKLE
from ckpt_surgery.ops.proofs import proved
from ckpt_surgery.ops.salvage import damage, shard_damage
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.ops.verify_digests import DigestChecks
from ckpt_surgery.pickles import DEFAULT_LIMITS
from ckpt_surgery.pickles.risk import Risk, classify_all, classify_path
from ckpt_surgery.pickles.weights_only import refusal
from ckpt_surgery.reports import Failure
from ckpt_surgery.reports.verification import Checksums, Verdict, VerifyReport, WeightsOnly
from ckpt_surgery.startup.collector import collector_paused
from ckpt_surgery.writing.output import ProgressBar

if TYPE_CHECKING:
    from ckpt_surgery.compute.value_checks import ValueCounts

_MOST_NAMED: Final = 3  # tensors that are named with a damaged storage
_OF_TORCH: Final = frozenset({"torch-zip", "torch-legacy", "torch-tar", "torch-module"})
_WITH_PICKLES: Final = _OF_TORCH | {"npy", "npz"}  # arrays of objects
_WITHOUT_WEIGHTS_ONLY: Final = {
    "torchscript": "it is a TorchScript archive, which is a program",
    "torch-tar": "it is an archive of torch 0.1, which only the unsafe way reads",
}


def verify(
    sources: Sequence[PathLike | Source],
    checks: Checks = Checks(),  # noqa: B008 - it is frozen
    *,
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> VerifyReport:
    """Check every file of `sources`; what cannot be read at all does not stop the others."""
    verdicts: list[Verdict] = []
    failures: list[Failure] = []
    names: list[str] = []
    for source in sources:
        names.append(os.fspath(source) if isinstance(source, str | os.PathLike) else source.name)
        try:
            file = opened(source) if isinstance(source, str | os.PathLike) else source
        except DamagedFileError as error:  # an archive that is named for a member of it
            size = os.path.getsize(error.file or "")  # noqa: PTH202
            verdicts.append(Verdict(names[-1], size, None, (finding_of(error),)))
            continue
        except ReadError as error:
            failures.append(Failure.of(error, names[-1]))
            continue
        try:
            with closing(file):
                first, *inside = _verdicts(file, checks, threads, progress)
                verdicts += (proved(first, checks.proofs), *inside)
        except ReadError as error:
            failures.append(Failure.of(error, names[-1]))
    return VerifyReport(tuple(names), tuple(verdicts), tuple(failures), strict=checks.strict)


def _verdicts(
    file: Source, checks: Checks, threads: int | None, progress: ProgressBar | None
) -> list[Verdict]:
    """Return the verdict on a file; of an archive of other files, then those on its checkpoints.

    Raises `ReadError` if there is nothing to check.
    """
    inspection = _Inspection(file, checks, threads, progress)
    described = inspection.described()
    format_, checkpoint, unknown = described
    is_around = format_ is not None and checkpoint is not None and format_.is_around(checkpoint)
    if (unknown is not None or is_around) and not source_is_directory(file):
        from ckpt_surgery.ops.verify_archive import of_archive

        def inspect(member: Source, checks: Checks, *, is_covered: bool) -> Verdict:
            one = _Inspection(member, checks, threads, progress, is_covered=is_covered)
            return one.verdict(*one.described())

        found = of_archive(file, checks, inspect, threads=threads, progress=progress)
        if found is not None:
            return found
    return [inspection.verdict(*described)]


class _Inspection:
    """The checks of one file, in turn; `findings` grows.

    `is_covered`: an archive around the file has a checksum of all of its bytes, which is right.
    """

    def __init__(
        self,
        file: Source,
        checks: Checks,
        threads: int | None,
        progress: ProgressBar | None,
        *,
        is_covered: bool = False,
    ) -> None:
        self.is_covered = is_covered
        self.file = file
        self.checks = checks
        self.threads = threads
        self.progress = progress
        self.findings: list[Finding] = []
        self.digests = DigestChecks(file, threads, progress)

    def verdict(
        self,
        format_: Format | None,
        checkpoint: Checkpoint | None,
        unknown: UnknownFormatError | None,
    ) -> Verdict:
        """Check everything that was `described`. Raises `unknown` if there is nothing to check."""
        members = (
            [] if format_ is None or checkpoint is None else list(_members(format_, checkpoint))
        )
        pickles = list(self._pickles(members, readable=checkpoint is not None))
        risks = self._risks(checkpoint, pickles)
        if unknown is not None:
            if not any(risk.level == "dangerous" for risk in risks):
                raise unknown
            self.findings.append(finding_of(unknown))
        if checkpoint is None:
            found = tuple(self.findings)
            return Verdict(self.file.name, self.file.size, None, found, globals=tuple(risks))
        weights_only = self._weights_only(members, pickles)
        self._look_around(checkpoint, members)
        digests = self._digests(checkpoint)
        checksums = self._checksums(checkpoint, members)
        tensors = self._values(checkpoint) if self.checks.values else None
        self._apply_policy(checkpoint, risks, weights_only)
        return Verdict(
            self.file.name,
            self.file.size,
            checkpoint.format,
            tuple(self.findings),
            checksums,
            tuple(risks),
            weights_only,
            tensors,
            digests,
        )

    def described(self) -> tuple[Format | None, Checkpoint | None, UnknownFormatError | None]:
        """Return the file as it is read, if it can be; why not is among the findings."""
        try:
            require_whole_members([self.file])
            format_ = find_format(self.file)
            with collector_paused():
                return format_, format_.read(self.file, DEFAULT_LIMITS), None
        except UnknownFormatError as error:
            self.findings += shard_damage(self.file)
            return None, None, None if self.findings else error
        except (DamagedFileError, LimitExceededError) as error:
            self.findings += shard_damage(self.file) or [finding_of(error), *damage(self.file)]
            return None, None, None
        finally:
            forget_archive()

    def _pickles(self, members: Sequence[_Member], *, readable: bool) -> Iterator[FoundPickle]:
        """Yield the pickles of the file and its members; of one that
        cannot be read any there may be.
        """
        if not readable and not source_is_directory(self.file):
            yield from find_pickles(self.file)
        for member in members:
            if member.checkpoint.format in _WITH_PICKLES:
                yield from find_pickles(member.checkpoint.file)

    def _risks(self, checkpoint: Checkpoint | None, pickles: Sequence[FoundPickle]) -> list[Risk]:
        """Return what the file names, the dangerous and unknown ones among the findings."""
        if checkpoint is not None and checkpoint.format == "torchscript":
            return []  # its names are of classes in it, and its pickles are not read by Python
        risks = classify_all(name for each in pickles for name in each.looked.names)
        if not pickles and checkpoint is not None:
            risks = [classify_path(name) for name in checkpoint.globals]
        for risk in risks:
            if risk.level == "dangerous":
                what = f"loading the file may call it: it {risk.what}"
                self._find("error", what, risk.name, rule="dangerous-global")
            elif risk.level in {"unknown", "doubtful"}:
                what = risk.what or "nothing is known of it, and its code runs"
                found = f"loading the file imports it: {what}"
                self._find("warning", found, risk.name, rule="unknown-global")
        return risks

    def _weights_only(
        self, members: Sequence[_Member], pickles: Sequence[FoundPickle]
    ) -> WeightsOnly | None:
        """Return whether torch loads it safely; a warning among the findings if it does not."""
        reasons = [_WITHOUT_WEIGHTS_ONLY.get(member.format.name) for member in members]
        is_torch = any(member.checkpoint.format in _OF_TORCH for member in members)
        read = [each for each in pickles if is_torch and each.entry in {"", PICKLE}]
        if not any(reasons) and not read:
            return None
        reasons += (refusal(each.data, each.looked.root, each.looked.names) for each in read)
        reason = next(filter(None, reasons), None)
        if reason is not None:
            self._find(
                "warning",
                f"torch.load refuses the file with weights_only=True: {reason}",
                hint="ckpt convert --state-dict-only writes weights that load safely",
                rule="weights-only",
            )
        return WeightsOnly(reason is None, reason)

    def _look_around(self, checkpoint: Checkpoint, members: Sequence[_Member]) -> None:
        """Find what is odd about the structure, and what no reader of the format sees."""
        for member in members:
            for found in member.format.check(member.checkpoint):
                entry = member.prefix + (found.entry or "")
                self.findings.append(replace(found, entry=entry or None))
            if source_is_directory(member.checkpoint.file):
                continue
            for what in other_formats(member.checkpoint.file, member.format.name):
                where = member.prefix or None
                self._find("warning", f"the file is {what}, as well", where, rule="polyglot")
        if checkpoint.unwritable:
            what = f"an edit would lose something: {checkpoint.unwritable}"
            self._find("warning", what, rule="hidden-bytes")
        if len(checkpoint.sources) > 1:
            for note in checkpoint.notes:
                self._find("note", note, rule="structure")

    def _checksums(self, checkpoint: Checkpoint, members: Sequence[_Member]) -> Checksums:
        """Compare every record that has a checksum with it."""
        records = [
            (member.prefix + name, data)
            for member in members
            for name, data in member.format.records(member.checkpoint)
            if data.nbytes
        ]
        stated = [(name, data) for name, data in records if data.crc32]
        bare = [(name, data) for name, data in records if not data.crc32]
        nbytes = sum(data.nbytes for _, data in stated)
        owners = _owners(checkpoint)
        with shown(self.progress, nbytes) as tally:
            ranges = [data for _, data in stated]
            computed = crc32_of(ranges, threads=self.threads, tally=tally)
            for (name, data), found in zip(stated, computed, strict=True):
                if found != data.crc32:
                    self._damaged(name, data, found, owners)
        absent = sum(data.nbytes for _, data in bare)
        if absent and self.digests.right is None:
            self.findings += self.digests.in_name()
        if absent and self.digests.right is None and not self.is_covered:
            self._without_checksum(len(bare), absent)
        return Checksums(len(stated), nbytes, len(bare), absent, self.digests.right)

    def _damaged(
        self, name: str, data: ByteRange, found: int, owners: Mapping[_Place, list[str]]
    ) -> None:
        tensors = owners.get((id(data.source), data.offset), [])
        named = ", ".join(f"'{tensor}'" for tensor in tensors[:_MOST_NAMED])
        more = f" and {len(tensors) - _MOST_NAMED} more" if len(tensors) > _MOST_NAMED else ""
        self._find(
            "error",
            f"the checksum of its bytes is {found:08x}, and the file says {data.crc32:08x}"
            + (f": {named}{more}" if named else ""),
            name,
            hint="'--salvage OUT' writes the tensors that are whole",
            rule="checksum",
            offset=data.offset,
        )

    def _without_checksum(self, count: int, nbytes: int) -> None:
        required = self.checks.require_checksums or (
            self.checks.policy is not None and self.checks.policy.checksums
        )
        what = "1 record" if count == 1 else f"{count} records"
        self._find(
            "error" if required else "note",
            f"{what} of {nbytes} bytes together have no checksum: whether the bytes are right "
            "cannot be seen",
            hint="keep a digest beside the file: ckpt hash, then ckpt verify --against-hash",
            rule="no-checksum",
        )

    def _values(self, checkpoint: Checkpoint) -> int:
        """Look at every element; the number of tensors that could be looked at."""
        from ckpt_surgery.compute.value_checks import count_values

        tensors = dict(checkpoint.tensors)
        total = sum(tensor.nbytes for tensor in tensors.values())
        with shown(self.progress, total) as tally:
            counts = count_values(tensors, threads=self.threads, advance=tally)
        for name, found in counts.items():
            if found is not None:
                self._judge(name, found)
        skipped = [name for name, found in counts.items() if found is None]
        if skipped:
            self._find(
                "note",
                f"{len(skipped)} tensors hold no numbers that can be looked at one by one",
                skipped[0],
                rule="values",
            )
        return len(tensors) - len(skipped)

    def _judge(self, name: str, found: ValueCounts) -> None:
        bad = [f"{n} are {what}" for n, what in ((found.nan, "NaN"), (found.inf, "infinite")) if n]
        if bad:
            what = f"of {found.numbers} numbers {' and '.join(bad)}"
            self._find("error", what, name, rule="not-finite")
        elif found.is_constant:
            what = f"all {found.numbers} numbers are {found.low:g}"
            self._find("note", what, name, rule="values")
        if found.subnormal:
            what = f"{found.subnormal} of {found.numbers} numbers are subnormal"
            self._find("note", what, name, rule="values")

    def _digests(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Return the digests that were asked for; those that are not as wanted are findings."""
        found, wrong = self.digests.wanted(checkpoint, self.checks.digests)
        self.findings += wrong
        for given in self.checks.lists:
            self.findings += self.digests.listed(checkpoint, given)
        return found

    def _apply_policy(
        self, checkpoint: Checkpoint, risks: Sequence[Risk], weights_only: WeightsOnly | None
    ) -> None:
        if self.checks.policy is not None:
            loads = weights_only is None or weights_only.loads
            names = tuple(risk.name for risk in risks)
            self.findings += self.checks.policy.findings(checkpoint, names, loads=loads)

    def _find(
        self,
        severity: Severity,
        message: str,
        entry: str | None = None,
        *,
        rule: Rule,
        hint: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.findings.append(Finding(severity, message, entry, hint, rule, offset))


_Place = tuple[int, int]
"""The identity of a source and a byte in it."""


def _owners(checkpoint: Checkpoint) -> dict[_Place, list[str]]:
    """Return the names of the tensors in each storage, by the place at which it starts."""
    found: dict[_Place, list[str]] = {}
    for name, tensor in checkpoint.tensors:
        for part in tensor.strided_parts():
            if part.storage is not None and isinstance(part.storage.data, ByteRange):
                data = part.storage.data
                found.setdefault((id(data.source), data.offset), []).append(name)
    return found


class _Member(NamedTuple):
    """A file of a checkpoint that is a checkpoint by itself: a shard, or the only file.

    `prefix` stands before the names of its records.
    """

    prefix: str
    format: Format
    checkpoint: Checkpoint


def _members(format_: Format, checkpoint: Checkpoint) -> Iterator[_Member]:
    """Yield the files that can be checked one by one; the whole if they cannot be read so."""
    members: list[_Member] = []
    for source in checkpoint.sources[1:]:
        try:
            own = find_format(source)
            shard = own.read(source, DEFAULT_LIMITS)
        except ReadError:  # a part that only the whole makes sense of
            break
        members.append(_Member(f"{os.path.basename(source.name)}: ", own, shard))  # noqa: PTH119
    else:
        yield from members
    if len(members) < max(len(checkpoint.sources) - 1, 1):
        yield _Member("", format_, checkpoint)
