"""``ckpt hash`` from the outside."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file


def test_a_list_is_checked_by_the_same_command(folder, invoke):
    made = invoke("hash", "net.pth", "train.pth.tar")
    assert made.exit_code == 0
    assert [line.split("  ")[1] for line in made.stdout.splitlines()] == [
        "net.pth",
        "train.pth.tar#state_dict",
        "train.pth.tar#state_dict_ema",
    ]
    (folder / "list").write_bytes(made.stdout_bytes)
    checked = invoke("hash", "--check", "list")
    assert (checked.exit_code, checked.stdout) == (
        0,
        "net.pth: OK\ntrain.pth.tar#state_dict: OK\ntrain.pth.tar#state_dict_ema: OK\n",
    )
    assert invoke("hash", "--check", "-", stdin=made.stdout_bytes).stdout == checked.stdout
    assert invoke("hash", "--check", "list", "-q").stdout == ""


def test_names_that_do_not_print_survive_a_list(folder, invoke):
    odd = "\x1b[31m#a\\b\n.pth"
    shutil.copy("rude.pth", odd)
    made = invoke("hash", odd, "--per-tensor")
    whole = invoke("hash", odd, "--files")
    assert all(line.isprintable() for line in made.stdout.splitlines())
    assert len(made.stdout.splitlines()) == 4
    (folder / "list").write_bytes(made.stdout_bytes + whole.stdout_bytes)
    checked = invoke("hash", "--check", "list")
    assert checked.exit_code == 0
    assert checked.stdout.count(": OK\n") == 5
    assert all(line.isprintable() for line in checked.stdout.splitlines())


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum")
def test_sha256sum_and_we_read_each_others_lists(folder, invoke):
    shutil.copy("net.pth", "a\nb\\c.pth")
    names = ["net.pth", "a\nb\\c.pth"]
    ours = invoke("hash", "--files", *names).stdout_bytes
    theirs = subprocess.run(["sha256sum", *names], capture_output=True, check=True).stdout
    assert ours == theirs
    assert subprocess.run(["sha256sum", "-c"], input=ours, capture_output=True).returncode == 0
    (folder / "list").write_bytes(theirs)
    assert invoke("hash", "--check", "list").exit_code == 0


def test_a_difference_is_the_answer_no(folder, invoke):
    (folder / "list").write_bytes(invoke("hash", "net.pth", "big.pth").stdout_bytes)
    torch.save({"big": torch.ones(1 << 19)}, "big.pth")
    checked = invoke("hash", "--check", "list")
    assert checked.exit_code == 1
    assert checked.stdout == "net.pth: OK\nbig.pth: FAILED\n1 digest of 2 did not match\n"
    document = json.loads(invoke("hash", "--check", "list", "--json").stdout)
    assert document["exit_code"] == 1
    assert [each["status"] for each in document["checked"]] == ["ok", "differs"]


def test_what_cannot_be_read_is_said_and_does_not_stop_the_rest(folder, invoke):
    done = invoke("hash", "gone.pth", "net.pth")
    assert done.exit_code == 2
    assert done.stdout.endswith("  net.pth\n")
    assert done.stderr == "error: 'gone.pth': cannot be read: no such file or directory\n"
    (folder / "list").write_text("ckpt1:" + "0" * 64 + "  gone.pth\n")
    checked = invoke("hash", "--check", "list")
    assert (checked.exit_code, checked.stdout) == (2, "gone.pth: FAILED to read\n")
    document = json.loads(invoke("hash", "gone.pth", "--json", "-q").stdout or "{}")
    assert document == {}


def test_json(folder, invoke):
    document = json.loads(invoke("hash", "net.pth", "--per-tensor", "--json").stdout)
    (model,) = document["models"]
    assert document["algorithm"] == "ckpt1"
    assert [t["name"] for t in model["tensors"]] == list(torch.load("net.pth"))
    assert "tensors" not in json.loads(invoke("hash", "net.pth", "--json").stdout)["models"][0]


def test_directories_and_standard_input(folder, invoke):
    (folder / "runs" / "a").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, "runs/w.safetensors")
    shutil.copy("net.pth", "runs/a/net.pth")
    shutil.copy("net.pth", "runs/net.pth")
    (folder / "runs" / "notes.txt").write_text("no checkpoint")
    done = invoke("hash", "runs", "net.pth")
    names = [line.split("  ")[1] for line in done.stdout.splitlines()]
    assert names == ["runs/a/net.pth", "runs/net.pth", "runs/w.safetensors", "net.pth"]
    digests = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert digests[0] == digests[1] == digests[3]
    piped = invoke("hash", stdin=(folder / "net.pth").read_bytes())
    assert piped.stdout == f"{digests[0]}  <stdin>\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-", "-"], "standard input is named twice"),
        (["empty"], "there is no checkpoint in the directory 'empty'"),
        (["--check", "net.pth", "net.pth"], "'--check' takes files and state dicts from the list"),
        (["--check", "net.pth", "--at", "x"], "'--check' takes files"),
        (["--files", "--per-tensor", "net.pth"], "'--files' goes with neither"),
        (["net.pth", "--at", "nowhere"], "no state dict there"),
        (["--check", "big.pth"], "'--check' needs a text file"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, invoke, args, message):
    (folder / "empty").mkdir()
    done = invoke("hash", *args)
    assert done.exit_code == 2
    assert message in done.stderr
