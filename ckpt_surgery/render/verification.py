"""What `verify` found, for people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.render.color import WARNING
from ckpt_surgery.render.screen import Screen
from ckpt_surgery.render.text import count, nbytes, printable
from ckpt_surgery.reports.verification import SalvageReport, Verdict, VerifyReport

_MOST: Final = 20  # findings of one kind and severity
_LONGEST: Final = 500  # characters of a message
_STYLES: Final = {"error": "bold red", "warning": WARNING, "note": "dim"}
_ALL_DIGITS: Final = 64
_LEVELS: Final = ("dangerous", "doubtful", "unknown", "harmless")


def show(report: VerifyReport, screen: Screen) -> None:
    """For each file the answer, what was found, and what was looked at."""
    for verdict in report.verdicts:
        fails = verdict.fails(strict=report.strict)
        screen.line(f"{printable(verdict.file)}: {_answer(verdict)}", "bold" if fails else "green")
        for finding, style in _listed(verdict, screen.most(_MOST)):
            screen.line(f"  {finding}", style)
        for line in _facts(verdict):
            screen.line(f"  {line}")
    if report.salvaged is not None:
        _show_salvaged(report.salvaged, screen)


def _answer(verdict: Verdict) -> str:
    found = [
        count(number, severity)
        for severity in ("error", "warning", "note")
        if (number := verdict.count(severity))
    ]
    what = f"{verdict.format or 'not readable'}, {nbytes(verdict.size)}"
    return f"{'OK, ' if not verdict.count('error') else ''}{', '.join(found) or 'whole'} ({what})"


def _listed(verdict: Verdict, most: int) -> Iterator[tuple[str, str]]:
    """Yield each finding as a line and its style; of many of one kind only the first ones."""
    order = {"error": 0, "warning": 1, "note": 2}
    findings = sorted(verdict.findings, key=lambda f: (order[f.severity], f.rule))
    for (severity, rule), group in groupby(findings, key=lambda f: (f.severity, f.rule)):
        listed = list(group)
        for finding in listed[:most]:
            yield _line(finding), _STYLES[severity]
        if len(listed) > most:
            yield f"… and {len(listed) - most:,} more of {rule} (--json lists all)", "dim"
        hints = dict.fromkeys(f.hint for f in listed if f.hint is not None)
        yield from ((f"hint: {printable(hint, _LONGEST)}", "dim") for hint in hints)


def _line(finding: Finding) -> str:
    where = f" {printable(finding.entry)}:" if finding.entry is not None else ""
    return f"{finding.severity}: {finding.rule}:{where} {printable(finding.message, _LONGEST)}"


def _facts(verdict: Verdict) -> Iterator[str]:
    """Yield what was looked at and is as it should be."""
    sums = verdict.checksums
    if sums.checked:
        records = count(sums.checked, "record")
        yield f"checksums compared: {records}, {nbytes(sums.checked_nbytes)}"
    if sums.sha256 is not None:
        what = "is" if len(sums.sha256) == _ALL_DIGITS else "begins"
        yield f"SHA-256 {what} as it should: {sums.sha256}"
    if verdict.tensors is not None:
        yield f"values looked at: {count(verdict.tensors, 'tensor')}"
    if verdict.globals:
        levels = [risk.level for risk in verdict.globals]
        each = ", ".join(f"{n} {level}" for level in _LEVELS if (n := levels.count(level)))
        yield f"classes and functions named: {each}"
    if verdict.weights_only is not None and verdict.weights_only.loads:
        yield "torch.load(weights_only=True) loads it"
    for digest in verdict.digests:
        yield f"digest: {digest}"
    for proof in verdict.proofs:
        says = f"{printable(proof['says'], _LONGEST)}; " if proof["says"] else ""
        yield f"{proof['kind']}: {says}signed with the key {proof['key']}"


def _show_salvaged(report: SalvageReport, screen: Screen) -> None:
    screen.line(f"salvaged {count(len(report.tensors), 'tensor')}", "bold")
    for warning in report.warnings:
        screen.line(f"warning: {printable(warning, _LONGEST)}", WARNING)
    if report.lost:
        screen.line(f"lost: {len(report.lost):,}")
        most = screen.most(_MOST)
        for each in report.lost[:most]:
            screen.line(f"  {printable(each.path)}: {printable(each.why)}")
        if len(report.lost) > most:
            screen.line(f"  … and {len(report.lost) - most:,} more (--json lists all)")
    if report.output is not None:
        screen.line(f"written to {printable(report.output)}", "bold")
