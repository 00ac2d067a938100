"""Laws of several files on a line: each by itself, none stopped by another, one code for all."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckpt_surgery.startup.collector import collector_paused, freeze_what_is_made, never_freezing

NAMES = [f"runs/{letter}/epoch_{i}.pth" for letter in "ab" for i in range(3)]


@pytest.fixture
def runs(folder: Path) -> list[str]:
    """Six checkpoints in two folders, and one that is none, below the current directory."""
    for number, name in enumerate(NAMES):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"a.w": torch.full((4,), number), "a.b": torch.zeros(2)}, name)
    Path("runs/b/bad.pth").write_bytes(b"nothing that anybody saved" * 9)
    return NAMES


def held(name: str) -> list[str]:
    return list(torch.load(name, weights_only=True))


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "files",
    [["runs"], ["runs/*/*.pth"], ["runs/a", "runs/b"], ["runs/", "runs/a/epoch_?.pth", "runs/b"]],
    ids=["directory", "pattern", "directories", "found more than once"],
)
def test_strip_edits_all_but_what_fails(runs, invoke, files):
    result = invoke("strip", *files, "--name", "a.b", "-i", "-j", "2")
    assert result.exit_code == 2
    assert "error: 'runs/b/bad.pth': " in result.stderr
    assert all(held(name) == ["a.w"] for name in NAMES)
    rows = [line.split()[0] for line in result.stdout.splitlines()[1:7]]
    assert rows == NAMES
    done, failed = result.stdout.splitlines()[-2:]
    assert done.startswith("written: 6 files, ")
    assert failed == "failed: 1 file"


def test_names_after_several_files_are_told_from_files(runs, invoke):
    assert invoke("strip", "runs/a/epoch_0.pth", "a.b", "runs/b/epoch_*.pth", "-i").exit_code == 0
    assert [held(name) == ["a.w"] for name in NAMES] == [True, False, False, True, True, True]
    refused = invoke("strip", "runs/a/epoch_0.pth", "runs/a/epoch_9.pth", "-i")
    assert (refused.exit_code, "runs/a/epoch_9.pth" in refused.stderr) == (2, True)


def test_rename_edit_and_convert_give_each_file_a_name_of_its_own(runs, invoke):
    files = ("runs/a/epoch_0.pth", "runs/a/epoch_1.pth")
    for verb, template in (
        (("rename", "--add-prefix", "m."), "{parent}/{stem}-m{suffix}"),
        (("edit", "--scale", "a.w=2"), "{stem}.edited.pth"),
        (("convert",), "{name}.safetensors"),
    ):
        result = invoke(verb[0], *files, *verb[1:], "--output-template", template)
        assert result.exit_code == 0, result.stderr
    assert held("runs/a/epoch_1-m.pth") == ["m.a.w", "m.a.b"]
    assert torch.load("epoch_1.edited.pth")["a.w"].tolist() == [2] * 4
    assert Path("epoch_1.pth.safetensors").exists()
    # one file alone may have a template as well
    again = invoke("convert", "train.pth.tar", "--plain", "--output-template", "{stem}{suffix}.new")
    assert again.exit_code == 0, again.stderr
    assert Path("train.pth.tar.new").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "several files need an output each"),
        (["-o", "x.pth"], "'-o' names one output for several files"),
        (["-i", "--json"], "'--json' is for one file"),
        (["-i", "--record", "log.json"], "'--record' is for one file"),
        (["-i", "--output-template", "{stem}"], "contradict each other"),
        (["--output-template", "{stem}.new"], "would be the output of"),
        (["--output-template", "{parent}/{name}"], "the output is the input"),
        (["--output-template", "{stom}"], "has a placeholder that there is not"),
        (["--output-template", "{parent.__class__}"], "has a placeholder that there is not"),
        (["--output-template", "{stem"], "has a placeholder that there is not"),
        (["--output-template", "new/{stem}"], "does not exist"),
    ],
)
def test_outputs_that_several_files_cannot_have_are_refused_before_any(runs, invoke, options, said):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    files = ("runs/a/epoch_0.pth", "runs/b/epoch_0.pth")
    result = invoke("rename", *files, "--add-prefix", "m.", *options)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "line",
    [
        ("inspect",),
        ("inspect", "--stats"),
        ("strip", "--name", "a.b", "--dry-run"),
        ("match", "--like", "runs/a/epoch_0.pth"),
        ("verify",),
        ("hash",),
    ],
    ids=" ".join,
)
def test_jsonl_has_a_line_for_every_file_and_one_says_the_error(runs, invoke, line):
    result = invoke(line[0], "runs", *line[1:], "--jsonl", "-j", "2")
    documents = lines(result.stdout)
    assert result.exit_code == 2
    assert sorted(each["inputs"][0] for each in documents) == sorted([*NAMES, "runs/b/bad.pth"])
    (failed,) = (each for each in documents if each["exit_code"] == 2)
    assert failed["inputs"] == ["runs/b/bad.pth"]
    assert ("error" in failed) or failed["failures"]
    assert {each["command"] for each in documents} == {line[0]}


def test_match_says_of_each_file_whether_it_loads(runs, invoke):
    torch.save({"a.w": torch.zeros(4)}, "other.pth")
    good = invoke("match", "runs/a", "--like", "runs/b/epoch_0.pth")
    assert (good.exit_code, good.stdout.splitlines()[-1]) == (
        0,
        "3 of 3 files load strictly into runs/b/epoch_0.pth",
    )
    worse = invoke("match", "runs/a", "other.pth", "--like", "runs/b/epoch_0.pth")
    assert worse.exit_code == 1
    assert worse.stdout.splitlines()[4].split() == ["other.pth", "no", "1", "1", "0", "0"]
    failing = invoke("match", "runs", "--like", "runs/b/epoch_0.pth").stdout.splitlines()
    assert failing[-1] == "failed: 1 file"
    assert invoke("inspect", "runs").stdout.splitlines()[-1] == "failed: 1 file"


def test_what_lies_in_several_files_is_one_checkpoint_of_a_directory(folder, invoke):
    """Shards by their index, a distributed checkpoint as a whole; what lies beside them, too."""
    Path("all").mkdir()
    assert invoke("convert", "net.pth", "--format", "dcp", "-o", "all/dcp").exit_code == 0
    shards = ("--format", "safetensors-index", "--max-shard-size", "100", "--allow-loss")
    made = invoke("convert", "net.pth", *shards, "-o", "all/hf")
    assert made.exit_code == 0, made.output
    Path("all/hf/beside.pth").write_bytes(Path("net.pth").read_bytes())
    Path("all/hf/other.index.json").write_text("{}")
    result = invoke("hash", "all")
    index = "all/hf/model.safetensors.index.json"
    found = [line.split("  ") for line in result.stdout.splitlines()]
    assert [name for _, name in found] == ["all/dcp/.metadata", "all/hf/beside.pth", index]
    assert {digest for digest, _ in found} == {invoke("hash", "net.pth").stdout.split("  ")[0]}
    assert invoke("convert", "all", "--output-template", "{stem}.one.pth").exit_code == 0
    assert held("model.one.pth")
    assert held("dcp.one.pth") == held("beside.one.pth")
    kept = Path(index).read_bytes()
    refused = invoke("rename", "all", "--add-prefix", "x.", "-i")
    assert f"'{index}': a sharded checkpoint is not replaced in place" in refused.stderr
    assert Path(index).read_bytes() == kept
    assert held("all/hf/beside.pth")[0].startswith("x.")
    (first, *_) = sorted(Path("all/hf").glob("*-of-*"))
    first.unlink()
    result = invoke("verify", "all")
    assert (result.exit_code, first.name in result.stdout) == (1, True)


def test_errors_name_files_as_the_line_does(runs, invoke):
    result = invoke("inspect", "./runs//b", "--jsonl")
    named = [(each["inputs"][0], each["error"]["file"]) for each in lines(result.stdout)
             if each["exit_code"]]  # fmt: skip
    assert named == [("./runs//b/bad.pth",) * 2]
    assert result.stderr.startswith("error: './runs//b/bad.pth': ")


def test_what_several_outputs_held_already_is_said_once(runs, invoke):
    line = ("strip", "runs/a", "--name", "a.b", "--output-template", "{stem}.out.pth")
    Path("runs/b/bad.pth").unlink()
    assert invoke(*line).exit_code == 0
    said = invoke(*line).stdout.splitlines()[5:]
    assert said[0] == "warning: the output holds this already (3 files)"
    assert said[1].startswith("written: 3 files, of which 3 had it already, ")


def test_quiet_prints_errors_alone(runs, invoke):
    result = invoke("strip", "runs", "--name", "a.b", "-i", "-q")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: 'runs/b/bad.pth'")


def test_one_file_with_jsonl_is_one_line(runs, invoke):
    for line in (("strip", NAMES[0], "a.b", "--dry-run"), ("match", NAMES[0], "--like", NAMES[1])):
        (document,) = lines(invoke(*line, "--jsonl").stdout)
        assert document["inputs"][0] == NAMES[0]


def test_reports_come_in_the_order_of_the_line(runs, invoke):
    """The order of the reports is that of the line, however many are worked on at once."""
    order = [NAMES[i] for i in (3, 0, 5, 1, 4, 2)]
    documents = lines(invoke("inspect", *order, "--jsonl", "-j", "4").stdout)
    assert [each["file"] for each in documents] == order


def test_what_is_left_of_each_file_is_let_go(monkeypatch):
    monkeypatch.setattr("ckpt_surgery.startup.collector._freezes", False)
    freeze_what_is_made()
    before = gc.get_freeze_count()
    with never_freezing(), collector_paused():
        pass
    assert gc.get_freeze_count() == before
    with collector_paused():
        pass
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_the_table_is_shown_on_a_terminal(runs, at_terminal):
    code, seen = at_terminal("inspect", "runs/a", columns=80)
    assert (code, "3 files: 6 tensors" in seen) == (0, True)


@pytest.mark.parametrize(
    "line",
    [
        *("inspect", "verify", "hash", "convert -o x.pth", "match --like net.pth", "freeze-plan"),
        *("strip --name x -o x.pth", "rename --add-prefix x -o x.pth", "edit --untie x -o x.pth"),
        "fit --like net.pth -o x.pth",
    ],
)
def test_no_file_and_no_pipe_is_a_usage_error_in_cron(folder, environment, line):
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_surgery", *line.split()],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no FILE is named, and standard input is a device\n")
