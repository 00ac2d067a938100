"""What `verify` found of each file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_surgery.checkpoint.findings import Finding, Severity
from ckpt_surgery.pickles.risk import Risk
from ckpt_surgery.reports import Failure, envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Checksums:
    """How much of a file was compared with its checksums: records and bytes that have one.

    `absent` and `absent_nbytes` count those that have none, so that nothing can be said of them,
    unless `sha256`: digits of the whole file's SHA-256 that were known from elsewhere, all or those
    in its name, and are right.
    """

    checked: int = 0
    checked_nbytes: int = 0
    absent: int = 0
    absent_nbytes: int = 0
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "checked": self.checked,
            "checked_nbytes": self.checked_nbytes,
            "absent": self.absent,
            "absent_nbytes": self.absent_nbytes,
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class WeightsOnly:
    """Whether ``torch.load(weights_only=True)`` loads a file, and the reason if it does not."""

    loads: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"loads": self.loads, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with one file, what was looked at, and what it would import.

    `format` is None for what is no checkpoint, or too damaged to say; `weights_only` for a file
    without a pickle. `tensors` is the number of those whose values were looked at, None without.
    `proofs` are signatures that are right: their kind, file and key, and what a record says.
    """

    file: str
    size: int
    format: str | None
    findings: tuple[Finding, ...]
    checksums: Checksums = Checksums()
    globals: tuple[Risk, ...] = ()
    weights_only: WeightsOnly | None = None
    tensors: int | None = None
    digests: tuple[str, ...] = ()
    proofs: tuple[Mapping[str, str], ...] = ()

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def fails(self, *, strict: bool) -> bool:
        """Return whether the answer is no: an error, or with `strict` a warning, too."""
        return bool(self.count("error") or (strict and self.count("warning")))

    def to_dict(self, *, strict: bool) -> dict[str, Any]:
        return {
            "file": self.file,
            "size": self.size,
            "format": self.format,
            "ok": not self.fails(strict=strict),
            "findings": [_finding_dict(finding) for finding in self.findings],
            "checksums": self.checksums.to_dict(),
            "risks": [
                {"name": risk.name, "level": risk.level, "what": risk.what} for risk in self.globals
            ],
            "weights_only": None if self.weights_only is None else self.weights_only.to_dict(),
            "tensors": self.tensors,
            "digests": list(self.digests),
            "proofs": [dict(each) for each in self.proofs],
        }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON has it."""
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "message": finding.message,
        "entry": finding.entry,
        "offset": finding.offset,
        "hint": finding.hint,
    }


@dataclass(frozen=True, slots=True)
class Lost:
    """An entry of a damaged file that was not written, and why."""

    path: str
    part: str
    why: str

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "part": self.part, "why": self.why}


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What was written of a damaged file: the names of its tensors, and what was `lost`."""

    file: str
    output: str | None
    format: str
    tensors: tuple[str, ...]
    lost: tuple[Lost, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "format": self.format,
            "tensors": list(self.tensors),
            "lost": [each.to_dict() for each in self.lost],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdicts on all files that could be read. With `strict`, warnings count as errors."""

    inputs: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    failures: tuple[Failure, ...] = ()
    strict: bool = False
    salvaged: SalvageReport | None = None

    def each(self) -> Iterator[VerifyReport]:
        """Yield a report of each file by itself."""
        for verdict in self.verdicts:
            yield replace(self, inputs=(verdict.file,), verdicts=(verdict,), failures=())
        for failure in self.failures:
            yield replace(self, inputs=(failure.file,), verdicts=(), failures=(failure,))

    @property
    def exit_code(self) -> int:
        if self.failures:
            return 2
        return 1 if any(each.fails(strict=self.strict) for each in self.verdicts) else 0

    def to_dict(self) -> dict[str, Any]:
        salvaged = self.salvaged
        document = {
            **envelope(
                "verify",
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=None if salvaged is None else salvaged.output,
            ),
            "strict": self.strict,
            "files": [each.to_dict(strict=self.strict) for each in self.verdicts],
            "failures": [failure.to_dict() for failure in self.failures],
        }
        return document | ({} if salvaged is None else {"salvaged": salvaged.to_dict()})
