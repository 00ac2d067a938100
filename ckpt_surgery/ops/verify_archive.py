"""The verdicts on an archive of other files: on itself, and on each checkpoint in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from ckpt_surgery.checkpoint.findings import Finding, Severity
from ckpt_surgery.errors import CkptError, UnknownFormatError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.parallel import shown
from ckpt_surgery.fileio.record_sums import crc32_of
from ckpt_surgery.formats.archive_check import Archive, look_into
from ckpt_surgery.formats.pickle_scan import find_pickles
from ckpt_surgery.formats.recognise import find_format
from ckpt_surgery.formats.torch_zip import forget_archive
from ckpt_surgery.ops.hash import file_digest
from ckpt_surgery.pickles.risk import Risk, classify_all
from ckpt_surgery.reports.verification import Checksums, Verdict
from ckpt_surgery.writing.output import ProgressBar

if TYPE_CHECKING:
    from ckpt_surgery.ops.verify_checks import Checks

_ONLY_LEADS: Final = frozenset({"safetensors-index", "torch-index", "compressed"})
_SHA256: Final = "sha256:"
_BARE: Final = "have no checksum: whether the bytes are right cannot be seen"


class _Inspect(Protocol):
    """What checks one file: `is_covered` says that the archive has a checksum of all of it."""

    def __call__(self, member: Source, checks: Checks, *, is_covered: bool) -> Verdict: ...


@dataclass(slots=True)
class _Work:
    """An archive, what to check, and what was found of its own."""

    file: Source
    archive: Archive
    checks: Checks
    findings: list[Finding]
    sha256: str | None = None


def of_archive(
    file: Source,
    checks: Checks,
    inspect: _Inspect,
    *,
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> list[Verdict] | None:
    """Return the verdict on an archive, then those of `inspect` on the checkpoints in it.

    None for what is no archive of other files, or if nothing is wrong with it and no member of it
    is a checkpoint.
    """
    archive = look_into(file)
    if archive is None:
        return None
    work = _Work(file, archive, checks, list(archive.findings))
    checksums = _checksums(work, threads, progress)
    wrong = {each.entry for each in work.findings if each.severity == "error"}
    named = [name for name, member in archive.files.items() if _is_checkpoint(member)]
    if not named and not wrong:
        return None
    risks = _risks(work, set(named))
    inner = _digests(work, named, progress)
    inside = [_inspected(work, name, inner, inspect, is_whole=name not in wrong) for name in named]
    whole = Verdict(
        file.name,
        file.size,
        archive.kind,
        tuple(work.findings),
        replace(checksums, sha256=work.sha256),
        tuple(risks),
    )
    return [whole, *(each for each in inside if each is not None)]


def _is_checkpoint(member: Source) -> bool:
    """Say whether a member is a checkpoint, perhaps a damaged one."""
    try:
        return find_format(member).name not in _ONLY_LEADS
    except UnknownFormatError:
        return False
    except CkptError:
        return True
    finally:
        forget_archive()


def _inspected(
    work: _Work, name: str, checks: Checks, inspect: _Inspect, *, is_whole: bool
) -> Verdict | None:
    """Return the verdict on one member; None, and a finding, for what cannot be checked."""
    member = work.archive.files[name]
    lists = [each for each in checks.lists if each.about(member.name)]
    is_covered = work.archive.is_checked and is_whole
    try:
        return inspect(member, replace(checks, lists=lists), is_covered=is_covered)
    except CkptError as error:
        work.findings.append(Finding("error", error.message, name, error.hint, "damaged"))
        return None


def _risks(work: _Work, checkpoints: set[str]) -> list[Risk]:
    """Return what pickles beside the checkpoints name; what is dangerous is a finding."""
    risks: dict[str, Risk] = {}
    beside = {name: each for name, each in work.archive.files.items() if name not in checkpoints}
    if any(each.severity == "error" for each in work.findings):  # what is not opened is looked for
        beside["the archive"] = work.archive.source
    for name, member in beside.items():
        for risk in classify_all(one for each in find_pickles(member) for one in each.looked.names):
            if risk.name in risks:
                continue
            risks[risk.name] = risk
            if risk.level == "dangerous":
                what = f"loading {name} may call it: it {risk.what}"
                work.findings.append(Finding("error", what, risk.name, None, "dangerous-global"))
    return list(risks.values())


def _checksums(work: _Work, threads: int | None, progress: ProgressBar | None) -> Checksums:
    """Compare the members that are stored; those of other kinds were compared when read."""
    archive = work.archive
    with shown(progress, sum(data.nbytes for _, data in archive.sums)) as tally:
        computed = crc32_of([data for _, data in archive.sums], threads=threads, tally=tally)
        for (name, data), crc32 in zip(archive.sums, computed, strict=True):
            if crc32 != data.crc32:
                what = f"the checksum of its bytes is {crc32:08x}, and the archive says "
                work.findings.append(
                    Finding("error", f"{what}{data.crc32:08x}", name, None, "checksum", data.offset)
                )
    sizes = [member.size for member in archive.files.values()]
    if archive.is_checked:
        return Checksums(len(sizes), sum(sizes))
    severity: Severity = "error" if _requires(work.checks) else "note"
    what = f"{len(sizes)} members of {sum(sizes)} bytes together {_BARE}"
    work.findings.append(Finding(severity, what, None, None, "no-checksum"))
    return Checksums(0, 0, len(sizes), sum(sizes))


def _requires(checks: Checks) -> bool:
    return checks.require_checksums or (checks.policy is not None and checks.policy.checksums)


def _digests(work: _Work, named: Sequence[str], progress: ProgressBar | None) -> Checks:
    """Compare the archive itself with the digests; return what its members are to be checked for.

    An archive whose own SHA-256 is wanted and right needs no digest of a member.
    """
    checks = work.checks
    wanted = [digest.lower().removeprefix(_SHA256) for digest in checks.digests]
    if wanted and file_digest(work.file, progress) in wanted:
        work.sha256 = file_digest(work.file, progress)
        checks = replace(checks, digests=())
    for given in checks.lists:
        lines = [line for line in given.about(work.file.name) if line.is_of_whole_file]
        inside = any(given.about(work.archive.files[name].name) for name in named)
        if not lines and not inside:
            what = f"'{given.name}' has no digest of it"
            work.findings.append(Finding("error", what, None, None, "digest"))
        for line in lines:
            found = file_digest(work.file, progress)
            if found == line.digest:
                work.sha256 = found
                continue
            what = f"SHA-256 of the file is {found}, and the list says {line.digest}"
            work.findings.append(Finding("error", what, None, None, "digest"))
    return checks
