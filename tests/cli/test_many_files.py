"""Several files in one call: one line each, one that fails does not stop the others."""

from __future__ import annotations

import json

import pytest


def rows(text: str) -> list[str]:
    return [line.split()[0] for line in text.split("\n\n", maxsplit=1)[0].splitlines()[1:]]


def test_several_files_have_a_line_each(folder, invoke):
    result = invoke("inspect", "net.pth", "train.pth.tar")
    assert result.exit_code == 0
    assert rows(result.stdout) == ["net.pth", "train.pth.tar"]
    assert "optimizer" in result.stdout
    assert "2 files: 45 tensors" in result.stdout


def test_file_that_fails_does_not_stop_the_others(folder, invoke):
    (folder / "cut.pth").write_bytes((folder / "net.pth").read_bytes()[:300])
    result = invoke("inspect", "cut.pth", "none.pth", "net.pth")
    assert result.exit_code == 2
    assert rows(result.stdout) == ["net.pth"]
    assert result.stderr.count("error: ") == 2
    assert "none.pth" in result.stderr


def test_directory_and_pattern(folder, invoke):
    (folder / "runs").mkdir()
    for name in ("a.pth", "b.pth"):
        (folder / "runs" / name).write_bytes((folder / "net.pth").read_bytes())
    (folder / "runs" / "notes.txt").write_text("x")
    wanted = ["runs/a.pth", "runs/b.pth"]
    assert rows(invoke("inspect", "runs").stdout) == wanted
    assert rows(invoke("inspect", "runs/*.pth").stdout) == wanted
    assert invoke("inspect", "nothing*.pth").exit_code == 2
    assert "no file matches 'nothing*.pth'" in invoke("inspect", "nothing*.pth").stderr


def test_directory_that_is_one_checkpoint_is_shown_as_one(folder, invoke):
    (folder / "model").mkdir()
    (folder / "model" / "pytorch_model.bin").write_bytes((folder / "net.pth").read_bytes())
    (folder / "model" / "training_args.bin").write_bytes((folder / "net.pth").read_bytes())
    assert "blocks.0.0.weight" in invoke("inspect", "model").stdout


@pytest.mark.parametrize("files", [["net.pth"], ["net.pth", "train.pth.tar"]])
def test_jsonl_is_a_document_a_line(files, folder, invoke):
    lines = invoke("inspect", *files, "--jsonl").stdout.splitlines()
    documents = [json.loads(line) for line in lines]
    assert [document["file"] for document in documents] == files
    assert documents[0] == json.loads(invoke("inspect", "net.pth", "--json").stdout)


@pytest.mark.parametrize("form", ["--keys", "--csv", "--json", "--tree", "--index", "--fold"])
def test_forms_of_one_file_are_refused_for_several(form, folder, invoke):
    result = invoke("inspect", "net.pth", "many.pth", form)
    assert result.exit_code == 2
    assert "is for one file" in result.stderr


def test_quiet_says_nothing_of_what_can_be_read(folder, invoke):
    result = invoke("inspect", "net.pth", "many.pth", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
