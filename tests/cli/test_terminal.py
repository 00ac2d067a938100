"""What a person at a terminal sees."""

from __future__ import annotations

import os
import re
import select
import shutil
import struct
import subprocess
import sys

import pytest


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


def test_narrow_terminal_shows_names_and_says_what_it_does_not_show(folder, at_terminal, net):
    screen = at_terminal("inspect", "net.pth", "--color", "never", columns=60)[1]
    assert all(len(line) <= 60 for line in screen.splitlines())
    assert all(name in screen for name in net.state_dict())
    assert "(4, 4, 1, 1)" in screen
    assert "not shown at this width: elements, bytes" in screen


@pytest.mark.parametrize(
    ("args", "extra", "colored"),
    [
        ([], {}, True),
        (["--color", "never"], {}, False),
        (["--color=always"], {"NO_COLOR": "1"}, True),
        ([], {"NO_COLOR": "1"}, False),
        (["--no-color"], {}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "odd"], {}, True),
    ],
)
def test_errors_are_colored_on_terminals(at_terminal, args, extra, colored):
    code, screen = at_terminal("inspect", "nothing.pth", *args, **extra)
    assert code == 2
    assert screen.startswith("\x1b[1;31merror:\x1b[0m " if colored else "error: ")


@pytest.mark.skipif(shutil.which("less") is None, reason="no less here")
def test_less_shows_a_long_report_in_colors_and_to_its_end(folder, environment):
    """The pager of those who name none, on a terminal of its own, with somebody at the keys."""
    fcntl = pytest.importorskip("fcntl", reason="no terminals of this kind here")
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: value for name, value in environment.items() if name not in ("PAGER", "LESS")}
    # the first terminal that the leader of a session opens is the one that less asks for keys
    line = [sys.executable, "-m", "ckpt_surgery", "inspect", "train.pth.tar"]
    take = ["sh", "-c", 'exec <"$0" >"$0" 2>"$0"; exec "$@"', os.ttyname(slave), *line]
    process = subprocess.Popen(take, env=kept, start_new_session=True)
    seen, keys = b"", [(b"module.blocks.0.0.weight", b"G"), (b"(END)", b"q")]
    while process.poll() is None:
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
        if keys and keys[0][0] in seen:
            os.write(master, keys.pop(0)[1])
    os.close(slave)
    os.close(master)
    assert (process.returncode, keys) == (0, [])
    assert b"\x1b[1m" in seen  # bold, as it is, not as text
    assert b"ESC[" not in seen
    assert b"state_dict/module.fc.bias = state_dict_ema/module.fc.bias" in seen  # the last line


@pytest.mark.parametrize("columns", [40, 80])
def test_errors_are_broken_between_words_on_a_terminal(folder, at_terminal, ckpt, columns):
    line = ("convert", "train.pth.tar", "--format", "safetensors", "--dry-run")
    shown = uncolored(at_terminal(*line, columns=columns)[1])
    assert all(len(each) <= columns for each in shown.splitlines())
    plain = ckpt(*line).stderr.decode()
    assert len(plain.splitlines()) == 2  # in a pipe nothing is broken
    assert shown.replace("\n    ", " ") == plain


def test_digest_that_is_too_long_for_the_terminal_stands_below_its_name(
    folder, at_terminal, invoke
):
    digest, name = invoke("hash", "train.pth.tar").stdout.splitlines()[0].split("  ")
    wide = at_terminal("hash", "train.pth.tar", columns=120)[1]
    assert wide.splitlines()[0] == f"{digest}  {name}"
    narrow = at_terminal("hash", "train.pth.tar", columns=80)[1]
    assert narrow.splitlines()[:2] == [name, f"  {digest}"]


def test_list_of_values_goes_through_the_pager(folder, at_terminal):
    line, pager = ("get", "train.pth.tar"), {"PAGER": "sed s/^/paged:/", "LINES": "5"}
    shown = at_terminal(*line, **pager)[1].splitlines()
    assert all(each.startswith("paged:") for each in shown)
    assert at_terminal(*line, "--no-pager", **pager)[1].splitlines()[0] == "epoch = 3"
    methods = at_terminal("merge", "--methods", "--no-pager", **pager)[1]
    assert "paged:" not in methods
    assert "paged:" in at_terminal("merge", "--methods", **pager)[1]


def test_errors_have_no_colors_in_a_pipe_unless_wanted(ckpt):
    assert ckpt("inspect", "nothing.pth").stderr.startswith(b"error: ")
    assert ckpt("inspect", "nothing.pth", FORCE_COLOR="1").stderr.startswith(b"\x1b[1;31merror:")


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
        code, screen = at_terminal("strip", "net.pth", "--prefix", "fc", *output, NO_COLOR="1")
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
