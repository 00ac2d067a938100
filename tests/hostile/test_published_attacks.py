"""On attacks as they are published `verify` names what is dangerous, as other scanners do or more.

The samples are those that lie beside the repository and those of `published_attacks`; the table of
differences in docs/verify.md is the one that is asserted here.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from published_attacks import Attack, attacks
from torch_checks import quiet

from ckpt_surgery import CkptError, inspect, verify
from ckpt_surgery.reports.verification import VerifyReport

# What picklescan calls suspicious, as it calls every name that it does not know.
SUSPICIOUS = {
    "picklescan-importlib_bypass.pkl",
    "picklescan-marshal_bypass.pkl",
    "fickling-builtins_import.pkl",
    "fickling-importlib_util.pkl",
    "fickling-interactive_console.pkl",
    "fickling-marshal_loads.pkl",
    "fickling-marshal_types.pkl",
    "fickling-smtplib.pkl",
    "fickling-socketserver.pkl",
    "fickling-spawnv_passfds.pkl",
    "fickling-sqlite3.pkl",
    "modelscan-eval_call.pkl",
    "modelscan-mailcap.pkl",
}
# What is a number where a module should be named, at which an unpickler fails.
MISTAKES = {"unknown.os"}
# What fickling does not read: archives.
UNREAD = (".zip", ".pt", ".txt")
# What fickling calls suspicious.
HALF = {"modelscan-mailcap.pkl"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Attack, Path]]:
    folder = tmp_path_factory.mktemp("attacks")
    for each in attacks():
        (folder / each.name).write_bytes(each.data)
    return [(each, folder / each.name) for each in attacks()]


def dangerous(report: VerifyReport) -> set[str]:
    return {
        finding.entry or ""
        for verdict in report.verdicts
        for finding in verdict.findings
        if finding.rule == "dangerous-global"
    }


def test_there_are_as_many_samples_as_the_documentation_says(shared_dir: Path) -> None:
    beside = {
        path.read_bytes()
        for path in (shared_dir / "hostile").iterdir()
        if path.name not in {"LICENSE", "README.md"}
    }
    made = {each.data for each in attacks()}
    assert (len(beside), len(made), len(made & beside)) == (53, 97, 0)


def test_the_dangerous_name_of_every_attack_is_an_error_and_none_runs(
    files: list[tuple[Attack, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for attack, path in files:
        report = verify([path])
        assert report.exit_code == 1, attack.name
        assert dangerous(report) >= attack.dangerous, attack.name
    assert not list(tmp_path.iterdir())


def test_inspect_names_it_too(files: list[tuple[Attack, Path]]) -> None:
    for attack, path in files:
        try:
            report = inspect(path)
        except CkptError as error:
            said = error.hint or ""
        else:
            said = " ".join([*report.globals, *(each.type for each in report.others)])
        named = any(name in said for name in attack.dangerous)
        assert named or "of objects" in said or "and 2 more" in said, (attack.name, said)


def test_picklescan_finds_no_more(
    files: list[tuple[Attack, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    scanner = pytest.importorskip("picklescan.scanner")
    caplog.set_level(logging.CRITICAL)
    less = set()
    for attack, path in files:
        found = scanner.scan_file_path(str(path))
        theirs = {
            f"{each.module}.{each.name}"
            for each in found.globals
            if each.safety is scanner.SafetyLevel.Dangerous
        }
        assert theirs - MISTAKES <= dangerous(verify([path])), attack.name
        if not theirs:
            less.add(attack.name)
    assert less == SUSPICIOUS


def test_fickling_finds_no_more(files: list[tuple[Attack, Path]]) -> None:
    fickle = pytest.importorskip("fickling.fickle")
    analysis = pytest.importorskip("fickling.analysis")
    less, unread = set(), set()
    for attack, path in files:
        try:
            with path.open("rb") as file, quiet():
                pickles = fickle.StackedPickle.load(file, fail_on_decode_error=False)
            with quiet():
                worst = max(analysis.check_safety(each).severity for each in pickles)
        except (NotImplementedError, ValueError):
            unread.add(attack.name)
            continue
        if worst < analysis.Severity.LIKELY_UNSAFE:
            less.add(attack.name)
    assert less == HALF
    assert unread == {attack.name for attack, _ in files if attack.name.endswith(UNREAD)}


def test_everything_that_picklescan_lists_is_dangerous_or_doubtful() -> None:
    from ckpt_surgery.pickles.risk import classify_path

    scanner = pytest.importorskip("picklescan.scanner")
    unknown = set()
    for module, names in scanner._unsafe_globals.items():
        for name in ["anything"] if names == "*" else [names] if isinstance(names, str) else names:
            if classify_path(f"{module}.{name}").level not in {"dangerous", "doubtful"}:
                unknown.add(f"{module}.{name}")
    assert not unknown
