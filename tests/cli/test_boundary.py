"""Laws of the boundary: every end of a run has its exit code and its words."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from ckpt_surgery.cli import boundary
from ckpt_surgery.errors import DamagedFileError

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def raising(error: BaseException):
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            DamagedFileError("ends early", path="a.pth", entry="data.pkl", hint="get it again"),
            2,
            "error: 'a.pth' (data.pkl): ends early\nhint: get it again\n",
        ),
        (click.UsageError("Odd request."), 2, "error: odd request\n"),
        (click.NoSuchOption("--kys", possibilities=["--keys"]), 2, "did you mean '--keys'?"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (click.Abort(), 130, "error: interrupted\n"),
        (OSError(errno.ENOSPC, "x"), 2, "error: cannot write: no space left on device\n"),
        (OSError("odd"), 70, "error: this is a bug in ckpt: OSError: odd\nhint: "),
        (ValueError("odd"), 70, "error: this is a bug in ckpt: ValueError: odd\nhint: "),
        (MemoryError(), 2, "error: out of memory\n"),
        (RecursionError("deep"), 70, "RecursionError"),
        (BrokenPipeError(), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (click.exceptions.Exit(4), 4, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_exception_has_its_exit_code_and_words(capsys, error, code, said):
    assert boundary.run(raising(error)) == code
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) == bool(said)
    assert "Traceback" not in err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_number_that_a_command_returns_is_the_exit_code(result, code):
    assert boundary.run(lambda: result) == code


def test_traceback_is_shown_on_request(capsys):
    assert boundary.run(raising(ValueError("\x1b[31mred")), show_traceback=True) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "\x1b" not in err


def test_message_cannot_speak_to_the_terminal_and_is_bounded(capsys):
    boundary.run(raising(DamagedFileError("\x1b]0;title\x07\n" + "x" * 100_000)))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1
    assert len(err) < 10_000


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("stream", [None, Broken(OSError()), Broken(ValueError("closed"))])
def test_error_without_standard_error_ends_quietly(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert boundary.run(raising(ValueError())) == 70


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (None, 0),
        (Broken(BrokenPipeError()), 0),
        (Broken(OSError(errno.ENOSPC, "")), 2),
    ],
)
def test_standard_output_that_fails_at_the_end(monkeypatch, stream, code):
    monkeypatch.setattr(sys, "stdout", stream)
    assert boundary.run(lambda: 0) == code


def test_output_that_nobody_reads_is_discarded(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert boundary.run(lambda: pipe.write("x") and None) == 0
        pipe.flush()  # goes nowhere now, as at the interpreter's end


def test_error_with_a_broken_standard_output_keeps_its_code(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError()))
    assert boundary.run(raising(DamagedFileError("x"))) == 2


def test_signal_handlers_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    boundary.run(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_signal_stays_ignored(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("changed a handler"))
    assert boundary.run(lambda: 0) == 0


def test_no_command_prints_help_and_fails(invoke):
    result = invoke()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["inspct"],
            "error: no such command 'inspct', and no such file\nhint: did you mean 'inspect'?\n",
        ),
        (
            ["show", "net.pth"],
            "error: no such command 'show', and no such file\nhint: that is 'ckpt inspect'\n",
        ),
        (["xyzzy"], "error: no such command 'xyzzy', and no such file\nhint: see 'ckpt --help'\n"),
        (["strip", "--keeep"], "hint: did you mean '--keep'"),
        (["fit", "a", "b"], "hint: see 'ckpt fit --help'\n"),
        (["inspect", "--depth", "x"], "error: invalid value for '--depth': 'x' is not"),
        (["inspect", "nope.pth"], "error: 'nope.pth': cannot be read: no such file"),
        (["fit", os.curdir, "--like", "x", "--dry-run"], "error: '.': "),
        (["inspect", str(Path(__file__).parent)], "error: there is no checkpoint in the directory"),
    ],
)
def test_usage_error_says_what_to_do(invoke, args, said):
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_bug_in_a_command_is_called_one(folder, invoke, monkeypatch):
    monkeypatch.setattr("ckpt_surgery.ops.inspect.inspect", lambda *_, **__: 1 // 0)
    result = invoke("inspect", "net.pth")
    assert result.exit_code == 70
    assert "bug in ckpt: ZeroDivisionError" in result.stderr
    assert "Traceback" in invoke("inspect", "net.pth", "--traceback").stderr


# --- real processes -------------------------------------------------------------------------


def start(environment, *args, **streams) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ckpt_surgery", *args], env=environment, **streams
    )


def test_closed_pipe_is_a_normal_end(folder, environment):
    for args in (["inspect", "many.pth", "--keys"], ["strip", "big.pth", "--compact"]):
        process = start(environment, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert (process.wait(60), err) == (0, b"")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")],
)
def test_interrupted_run_says_so_and_leaves_nothing(folder, environment, number, code, said):
    before = sorted(folder.iterdir())
    process = start(
        environment,
        *("strip", "big.pth", "--compact"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a test run in the background ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    process.stdout.read(10)  # it is writing now, and waits for someone to read on
    process.send_signal(number)
    err = process.stderr.read()
    process.stderr.close()
    process.stdout.close()
    assert (process.wait(60), err) == (code, b"error: " + said + b"\n")
    assert sorted(folder.iterdir()) == before


_INTERRUPTING = """
import os, signal, sys

def hook(event, _arguments, left=[int(os.environ["IMPORTS"])]):
    if event == "import" and "ckpt_surgery.cli.start" in sys.modules:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
"""


@pytest.mark.parametrize("line", [["inspect", "net.pth"], ["strip", "--help"]])
@pytest.mark.parametrize("imports", [1, 2, 3, 4, 5, 7, *range(10, 160, 16)])
def test_an_interrupt_while_the_command_starts_gives_no_traceback(
    folder, environment, tmp_path, line, imports
):
    """The signal comes at an import: from the first after the handler to the last of all."""
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTING)
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    process = start(
        environment | {"PYTHONPATH": path, "IMPORTS": str(imports)},
        *line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it needs fewer imports
        assert imports > 80
        assert (bool(out), err) == (True, b"")
    else:
        assert (process.returncode, err) == (130, b"error: interrupted\n")


def test_a_process_in_the_background_keeps_ignoring_interrupts(folder, environment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTING)
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    process = start(
        environment | {"PYTHONPATH": path, "IMPORTS": "20"},
        "--version",
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.communicate(timeout=60)[0].startswith(b"ckpt ")
    assert process.returncode == 0


@needs_full
def test_full_standard_output_is_an_error(folder, environment):
    with Path("/dev/full").open("wb") as full:
        for args in (["inspect", "net.pth"], ["inspect", "many.pth", "--keys"], ["--help"]):
            process = start(environment, *args, stdout=full, stderr=subprocess.PIPE)
            err = process.communicate(timeout=60)[1]
            assert process.returncode == 2
            assert err.startswith(b"error: cannot write: no space left")
            assert b"Exception ignored" not in err


def test_closed_standard_streams_are_survived(folder, environment):
    def run(command: str) -> tuple[int, bytes]:
        line = f'exec "{sys.executable}" -m ckpt_surgery {command}'
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert run("inspect nope.pth 2>&-") == (2, b"")
    assert run("inspect net.pth >&-") == (0, b"")
    assert run("strip net.pth --prefix fc -o closed.pth >&- 2>&- <&-") == (0, b"")
    code, said = run("strip net.pth --prefix fc >&-")
    assert code == 2
    assert b"standard output is closed" in said
    code, said = run("inspect <&-")
    assert code == 2
    assert b"standard input is closed" in said
    code, said = run("inspect net.pth --keys-from - <&-")
    assert code == 2


def test_signals_are_left_alone_outside_the_main_thread():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(boundary.run(lambda: 0)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_module_runs_as_the_command(ckpt):
    from ckpt_surgery import __version__

    assert ckpt("--version").stdout == f"ckpt {__version__}\n".encode()
