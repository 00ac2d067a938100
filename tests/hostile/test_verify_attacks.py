"""`verify` names what each known attack would call, as other scanners do, and runs nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from torch_checks import quiet

from ckpt_surgery import verify
from ckpt_surgery.reports.verification import VerifyReport

# Of the published samples, those in which nothing dangerous is named.
HARMLESS = {
    "bad_pytorch.pt",
    "benign0_v3.pkl",
    "benign_password_protected.zip",
    "int_array.npy",
    "int_arrays_compressed.npz",
    "object_array.npy",
    "object_arrays_compressed.npz",
}
# A 7-Zip archive is not looked into, and is said to be one.
CLOSED = {"malicious1.7z"}
# What picklescan calls dangerous by mistake: it takes a memo entry that was never written for a
# module, and the unpickler fails there.
_MISTAKES = {"unknown.os"}
_NO_SAMPLES = ("LICENSE", "README.md", "int_array")  # the last are honest numbers of numpy


def dangerous(report: VerifyReport) -> set[str]:
    return {
        risk.name
        for verdict in report.verdicts
        for risk in verdict.globals
        if risk.level == "dangerous"
    }


def samples(shared_dir: Path) -> list[Path]:
    return [
        f for f in sorted((shared_dir / "hostile").iterdir()) if not f.name.startswith(_NO_SAMPLES)
    ]


def test_honest_numbers_among_the_attacks_are_no_error(shared_dir: Path) -> None:
    for name in ("int_array.npy", "int_arrays_compressed.npz"):
        report = verify([shared_dir / "hostile" / name])
        assert report.exit_code == 0
        assert not dangerous(report)


def test_the_dangerous_name_of_every_attack_is_an_error(shared_dir: Path) -> None:
    for path in samples(shared_dir):
        report = verify([path])
        if path.name in HARMLESS | CLOSED:
            assert report.exit_code, path.name  # no checkpoint, or an encrypted one
            assert not dangerous(report)
        else:
            assert report.exit_code == 1, path.name
            assert dangerous(report), path.name
            rules = {finding.rule for finding in report.verdicts[0].findings}
            assert "dangerous-global" in rules


def test_what_picklescan_calls_dangerous_is_dangerous(
    shared_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scanner = pytest.importorskip("picklescan.scanner")
    caplog.set_level(logging.CRITICAL)
    compared = 0
    for path in samples(shared_dir):
        if path.name in CLOSED:
            continue
        found = scanner.scan_file_path(str(path))
        theirs = {
            f"{each.module}.{each.name}"
            for each in found.globals
            if each.safety is scanner.SafetyLevel.Dangerous
        }
        missing = theirs - dangerous(verify([path])) - _MISTAKES
        assert not missing, (path.name, missing)
        compared += len(theirs)
    assert compared > 50


def test_what_fickling_calls_malicious_is_dangerous(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fickle = pytest.importorskip("fickling.fickle")
    analysis = pytest.importorskip("fickling.analysis")
    compared = 0
    for path in samples(shared_dir):
        try:
            with path.open("rb") as file, quiet():
                pickles = fickle.StackedPickle.load(file, fail_on_decode_error=False)
            with quiet():
                worst = max(analysis.check_safety(each).severity for each in pickles)
        except (NotImplementedError, ValueError):  # it reads no archives, nor all opcodes
            continue
        if worst >= analysis.Severity.LIKELY_OVERTLY_MALICIOUS:
            assert dangerous(verify([path])), path.name
            compared += 1
    assert compared > 30
