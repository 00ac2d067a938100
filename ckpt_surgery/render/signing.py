"""What was signed, for people."""

from __future__ import annotations

from ckpt_surgery.render.screen import Screen
from ckpt_surgery.render.text import printable
from ckpt_surgery.reports.signing import SignReport


def show(report: SignReport, screen: Screen) -> None:
    """Say with which key what was signed, and where the signatures are."""
    screen.line(f"signed {printable(report.model)} with the key {report.key}")
    screen.line(f"signature in {printable(report.output)}", "bold")
    if report.statement is not None:
        screen.line(f"signed record in {printable(report.statement)}", "bold")
