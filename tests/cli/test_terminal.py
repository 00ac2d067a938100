"""What a person at a terminal sees."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import pytest

fcntl = pytest.importorskip("fcntl", reason="no terminals of this kind here")
pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")


@pytest.fixture
def at_terminal(environment):
    """Run `ckpt` on a terminal of some width; the exit code and the screen's text."""

    def run(*args: str, columns: int = 100, **extra: str) -> tuple[int, str]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "ckpt_surgery", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | extra,
        )
        os.close(slave)
        seen = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux says EIO when the last writer is gone
                break
            if not data:
                break
            seen += data
        os.close(master)
        return process.wait(60), seen.decode().replace("\r\n", "\n")

    return run


def uncolored(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_table_has_colors_and_the_same_text(folder, at_terminal, invoke):
    code, screen = at_terminal("inspect", "net.pth")
    assert code == 0
    assert "\x1b[" in screen
    lines = [line.split() for line in uncolored(screen).splitlines()]
    assert lines == [line.split() for line in invoke("inspect", "net.pth").stdout.splitlines()]


@pytest.mark.parametrize(
    ("args", "extra"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"})], ids=["option", "variable"]
)
def test_no_color_holds(folder, at_terminal, args, extra):
    assert "\x1b" not in at_terminal("inspect", "net.pth", *args, **extra)[1]
    assert (
        "\x1b"
        not in at_terminal("strip", "net.pth", "--prefix", "fc", "--dry-run", *args, **extra)[1]
    )


def test_narrow_terminal_folds_names_and_cuts_nothing(folder, at_terminal, net):
    screen = at_terminal("inspect", "net.pth", "--no-color", columns=60)[1]
    assert all(len(line) <= 60 for line in screen.splitlines())
    table = screen.partition("\n\n")[0].splitlines()
    start, end = table[0].index("name"), table[0].index("shape")
    names = "".join(line[start:end].strip() for line in table[1:])
    assert names == "".join(net.state_dict())
    assert "float32" in screen
    assert "(4, 4, 1, 1)" in screen


def test_file_cannot_speak_to_the_terminal(folder, at_terminal):
    for form in ([], ["--tree"], ["--fold"], ["--keys"], ["--csv"], ["--json"]):
        screen = at_terminal("inspect", "rude.pth", "--no-color", *form, columns=300)[1]
        assert "\x1b" not in screen
        assert "\x07" not in screen
        assert "[bold]markup" in screen


def test_large_table_is_not_slowed_by_its_beauty(folder, at_terminal):
    screen = at_terminal("inspect", "many.pth")[1]
    assert "layers.2999.attention.weight" in screen
    assert "\x1b[1mname" not in screen


def test_checkpoint_is_not_printed_to_a_terminal(folder, at_terminal):
    for output in ([], ["-o", "-"]):
        code, screen = at_terminal("strip", "net.pth", "--prefix", "fc", *output)
        assert code == 2
        assert "standard output is a terminal" in screen
        assert "hint: give -o FILE" in screen


def test_terminal_is_no_checkpoint(at_terminal):
    for args in ([], ["-"]):
        code, screen = at_terminal("inspect", *args)
        assert code == 2
        assert "standard input is a terminal" in screen


def test_short_write_shows_no_progress(folder, at_terminal):
    code, screen = at_terminal("strip", "net.pth", "--prefix", "fc", "-o", "out.pth", "--no-color")
    assert code == 0
    assert "\x1b" not in screen
    assert screen.count("\n") == 5
