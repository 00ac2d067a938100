"""Long reports go through the pager of the user's choice, short ones and pipes never."""

from __future__ import annotations

import io
import sys

import pytest

from ckpt_surgery.render import pager
from ckpt_surgery.render.screen import paged


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def copying(tmp_path, monkeypatch):
    """A pager that copies what it is given to a file."""
    seen = tmp_path / "seen.txt"
    script = tmp_path / "pager.py"
    script.write_text(f"import sys; open({str(seen)!r}, 'w').write(sys.stdin.read())")
    monkeypatch.setenv("PAGER", f"{sys.executable} {script}")
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("COLUMNS", "80")
    return seen


def test_long_report_goes_to_the_pager(copying):
    terminal = Terminal()
    with paged(terminal, color="never") as screen:
        for number in range(9):
            screen.line(str(number))
    assert copying.read_text() == "".join(f"{n}\n" for n in range(9))
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("lines", "wanted"), [(3, True), (9, False)])
def test_short_report_and_unwanted_pager(copying, lines, wanted):
    terminal = Terminal()
    with paged(terminal, color="never", pager=wanted) as screen:
        for number in range(lines):
            screen.line(str(number))
    assert terminal.getvalue() == "".join(f"{n}\n" for n in range(lines))
    assert not copying.exists()


def test_pipe_has_no_pager(copying):
    pipe = io.StringIO()
    with paged(pipe) as screen:
        for number in range(9):
            screen.line(str(number))
    assert pipe.getvalue().count("\n") == 9
    assert not copying.exists()


@pytest.mark.parametrize("value", ["", "cat", "no-such-pager-anywhere", "'unclosed"])
def test_no_pager(value, monkeypatch):
    monkeypatch.setenv("PAGER", value)
    assert pager.pager_command() == []
    terminal = Terminal()
    with paged(terminal, color="never") as screen:
        screen.line("x")
    assert terminal.getvalue() == "x\n"


def test_pager_that_does_not_start_is_done_without(tmp_path, monkeypatch):
    odd = tmp_path / "odd"
    odd.write_bytes(b"\0 no program")
    odd.chmod(0o755)
    monkeypatch.setenv("PAGER", str(odd))
    terminal = Terminal()
    pager.page("a\nb\n", terminal, lines=1)
    assert terminal.getvalue() == "a\nb\n"


def test_pager_that_leaves_early_is_no_error(monkeypatch):
    monkeypatch.setenv("PAGER", f"{sys.executable} -c 0")
    terminal = Terminal()
    pager.page("line\n" * 100_000, terminal, lines=1)
    assert terminal.getvalue() == ""
