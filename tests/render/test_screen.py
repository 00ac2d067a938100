"""Tables and lines on a stream, programs' forms, and the progress bar."""

from __future__ import annotations

import io
import json

import pytest

from ckpt_surgery.checkpoint.description import Other, StateDict
from ckpt_surgery.compute.stats import TensorStats
from ckpt_surgery.render import edits, progress
from ckpt_surgery.render.inspection import View, show
from ckpt_surgery.render.lists import below, in_one_line
from ckpt_surgery.render.plain import to_json
from ckpt_surgery.render.screen import Column, Grid, Screen, _plain_lines
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.reports.inspection import InspectReport, Totals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


GRID = Grid((Column("n", right=True), Column("name", names=True)), (("1", "a"), ("10", "b.c")))


def test_plain_table_is_aligned_and_cut_nowhere():
    assert list(_plain_lines(GRID)) == [" n  name\n", " 1  a\n", "10  b.c\n"]


def test_terminal_shows_the_same_table():
    plain, terminal = io.StringIO(), Terminal()
    Screen(plain).grid(GRID)
    Screen(terminal, color="never").grid(GRID)
    assert [line.split() for line in terminal.getvalue().splitlines()] == [
        line.split() for line in plain.getvalue().splitlines()
    ]


class AsciiTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.TextIOWrapper, AsciiTerminal])
def test_stream_that_cannot_encode_drawings_gets_them_in_ascii(kind):
    raw = io.BytesIO()
    stream = kind(raw, encoding="ascii", errors="backslashreplace")
    drawn = Screen(stream, color="never")
    drawn.line("… and 3 more")
    drawn.grid(Grid((Column("name"), Column("bytes")), (("├── a", "1"), ("│   └── é", "2"))))
    stream.flush()
    lines = [" ".join(line.split()) for line in raw.getvalue().decode().splitlines()]
    assert lines == ["~ and 3 more", "name bytes", "|-- a 1", "| `-- \\xe9 2"]


def test_long_table_on_a_terminal_is_fitted_without_rich(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [(str(i), f"backbone.layer{i}.conv.weight", "(64, 64)") for i in range(2000)]
    grid = Grid((Column("n", right=True), Column("name", names=True), Column("shape")), rows)
    terminal = Terminal()
    Screen(terminal, color="never").grid(grid)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 2001
    assert max(map(len, lines)) <= 40
    assert lines[1].split() == ["0", "backbone.…conv.weight", "(64,", "64)"]


@pytest.mark.parametrize("choice", ["auto", "always"])
def test_colors_are_wanted_in_a_pipe_too(choice, monkeypatch):
    if choice == "auto":
        monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    screen = Screen(stream, color=choice)
    long = "x" * 300
    screen.grid(Grid((Column("name", names=True, style="cyan"),), ((long,),)))
    screen.line(long, "bold")
    assert f"\x1b[36m{long}" in stream.getvalue()
    assert f"\x1b[1m{long}\x1b[0m\n" in stream.getvalue()


def test_a_dumb_terminal_gets_no_colors(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    Screen(terminal).line("warning", "bold")
    assert terminal.getvalue() == "warning\n"


def test_markup_is_text():
    for stream in (io.StringIO(), Terminal()):
        screen = Screen(stream, color="never")
        screen.line("[bold]a[/bold] :smile:", "bold")
        screen.grid(Grid((Column("x"),), (("[red]b[/red]",),)))
        assert "[bold]a[/bold] :smile:" in stream.getvalue()
        assert "[red]b[/red]" in stream.getvalue()


def shown(report: InspectReport) -> str:
    stream = io.StringIO()
    show(report, View(), Screen(stream))
    return stream.getvalue()


def inspected(**fields) -> InspectReport:
    facts = {"state_dicts": (), "others": (), "totals": Totals(0, 0, 0, 0, 0)} | fields
    return InspectReport("f.pth", "torch-zip", 2000, **facts)


def test_footer_says_what_is_unused_and_noted():
    text = shown(inspected(totals=Totals(1, 2, 8, 16, 8), notes=("odd", "\x1b")))
    assert "unused: 8 bytes of storages that no tensor uses" in text
    assert "note: odd\nnote: \\x1b\n" in text
    assert "no state dict found" in text
    assert "f.pth: torch-zip, 2,000 bytes (2.0 KiB)" in text


def test_footer_is_bounded_on_a_terminal_and_whole_in_a_pipe():
    others = tuple(Other(f"o{i}", "int", i) for i in range(100))
    ties = (tuple(f"n{i}" for i in range(50)),)
    notes = ("n" * 600, *(f"note {i}" for i in range(50)), "note 3")
    report = inspected(others=others, ties=ties, notes=notes)
    terminal = Terminal()
    show(report, View(), Screen(terminal, color="never"))
    text = " ".join(terminal.getvalue().split())
    assert "… and 60 more" in text
    assert "n7 = … 42 more" in text
    assert "note 40" not in text
    text = shown(report)
    assert "o99 = 99\n" in text
    assert "n48 = n49\n" in text
    assert "n" * 600 in text
    assert text.count("note: note 3\n") == 1
    assert "more" not in text


def test_lists_are_bounded_on_a_terminal_and_whole_in_a_pipe():
    assert list(below("abc", 2)) == ["  a", "  b", "  … and 1 more"]
    assert list(below("abc")) == ["  a", "  b", "  c"]
    assert in_one_line(["a", "", "c"], 2) == "a, (top level) and 1 more"
    assert in_one_line(["a", "b"]) == "a, b"
    assert Screen(Terminal(), color="never").most(3) == 3
    assert Screen(io.StringIO()).most(3) > 10**9


def test_a_warning_is_shown_once():
    report = EditReport(
        *("strip", ("a.pth",), None, "torch-zip"),
        *((), (), (), (), (), ()),
        warnings=("careful", "odd", "careful"),
    )
    stream = io.StringIO()
    edits.show(report, Screen(stream))
    assert stream.getvalue().count("warning: careful") == 1
    assert report.to_dict()["warnings"] == ["careful", "odd"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "x = 3"),
        ("a\nb", "x = 'a\\nb'"),
        (True, "x = True"),
        (float("nan"), "x = nan"),
        (1 << 100_000, "x = a number of 100001 bits"),
        (None, "x: some.Type"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_of_an_entry_is_shown(value, text):
    assert f"  {text}\n" in shown(inspected(others=(Other("x", "some.Type", value),)))


def test_counts_of_an_entry_are_shown():
    others = (Other("o", "dict"), Other("l", "list"), Other("", "list"))
    details = {"o": {"groups": 2, "states": 110}, "l": {"entries": 1}}
    text = shown(inspected(others=others, details=details))
    assert "  o: 2 groups, 110 states (dict)\n  l: 1 entry (list)\n  (top level): list\n" in text


def test_stats_without_numbers_are_dashes():
    from ckpt_surgery.checkpoint.description import Entry, Tensor
    from ckpt_surgery.dtypes import BY_NAME
    from ckpt_surgery.reports.inspection import Place

    tensor = Tensor((2,), BY_NAME["float32"], (1,), layout="sparse_coo")
    entries = tuple(Entry(name, tensor) for name in ("none", "nan", "some"))
    stats = {
        "none": None,
        "nan": TensorStats(None, None, None, None, 2, 0, 0),
        "some": TensorStats(-1, 1, 0, 1, 0, 0, 0, (1, 0, 8)),
    }
    places = {entry.name: Place(0, 0) for entry in entries}
    report = inspected(state_dicts=(StateDict("", "model", entries),), stats=stats, places=places)
    stream = io.StringIO()
    show(report, View(), Screen(stream))
    rows = [line.split() for line in stream.getvalue().splitlines()[1:4]]
    assert [row[2:5] for row in rows] == [["(2,)", "float32", "sparse_coo"]] * 3
    assert rows[0][7:] == ["-"] * 8
    assert rows[1][7:] == ["-", "-", "-", "-", "2", "0", "0"]
    assert rows[2][7:] == ["-1", "1", "0", "1", "0", "0", "0", "▂▁█"]


def test_json_is_strict():
    document = {"a": (float("inf"), 1 << 5000, None, True, b"x"), "b": {"c": "\x1b\ud800"}}
    text = to_json(document)
    assert text.isascii()
    loaded = json.loads(text, parse_constant=pytest.fail)
    assert loaded["a"] == ["inf", hex(1 << 5000), None, True, "b'x'"]


def test_edit_report_names_warnings_and_edits():
    report = EditReport(
        command="strip",
        inputs=("a.pth",),
        output="b.pth",
        format="torch-zip",
        plan=(
            {"edit": "compact", "unused_nbytes": 2048},
            {"edit": "compact", "unused_nbytes": 9, "kept_nbytes": 4, "copied_nbytes": 5},
        ),
        rules=(
            {"kind": "keys", "text": "k.txt", "matched": 1},
            {"rule": "replace", "old": ".net", "new": "", "matched": 2},
            {"rule": "map", "source": "m.toml", "names": {}, "matched": 3},
        ),
        kept=("x",),
        removed=(),
        renamed=(),
        carried=tuple(f"o{i}" for i in range(22)),
        dropped=("optimizer", ""),
        warnings=("careful \x1b",),
        nbytes_before=10,
        nbytes_after=5000,
    )
    stream = io.StringIO()
    edits.show(report, Screen(stream))
    assert stream.getvalue().splitlines() == [
        "--keys-from k.txt: matched 1 name",
        "--replace .net '': changed 2 names",
        "--map m.toml: changed 3 names",
        "kept 1 entry",
        "removed beside them: optimizer, (top level)",
        "carried over: " + ", ".join(f"o{i}" for i in range(22)),
        "compacted: 2.0 KiB that no tensor uses",
        (
            "compacted: 9 bytes that no tensor uses, of which 4 bytes inside overlapping views "
            "stay; views broken: 5 bytes more"
        ),
        "warning: careful \\x1b",
        "a.pth: written to b.pth, 10 bytes -> 4.9 KiB",
    ]


def test_progress_appears_only_after_a_while(monkeypatch):
    clock, terminal = [0.0], Terminal()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    bar = progress.progress_bar(color="never")
    with bar(10 << 20) as advance:
        advance(1 << 20)
        assert terminal.getvalue() == ""
    monkeypatch.undo()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    with progress.progress_bar(color="never")(10 << 20) as advance:
        advance(1 << 20)
        advance(9 << 20)
    assert "10.0/10.0 MiB" in terminal.getvalue()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_progress_is_for_terminals(monkeypatch, stream):
    monkeypatch.setattr(progress.sys, "stderr", stream)
    assert progress.progress_bar() is None


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, ["name", "shape", "bytes"]),
        (36, ["name", "shape"]),
        (20, ["name", "shape"]),
    ],
)
def test_narrow_terminal_loses_spare_columns_before_names(width, shown, monkeypatch):
    grid = Grid(
        [Column("name", names=True), Column("shape"), Column("bytes", right=True, spare=1)],
        [("a.rather.long.name.weight", "(1,)", "4")],
    )
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    Screen(terminal, color="never").grid(grid)
    assert terminal.getvalue().splitlines()[0].split() == shown
