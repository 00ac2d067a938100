"""``ckpt verify`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_surgery.render.screen import Screen


def damaged(source, out):
    data = bytearray(source.read_bytes())
    data[data.index(b"\0\0\x80\x3f" * 4)] ^= 1
    out.write_bytes(data)


@pytest.fixture
def bad(folder):
    torch.save({"w": torch.ones(8), "v": torch.arange(3)}, "ones.pth")
    damaged(folder / "ones.pth", folder / "bad.pth")
    return "bad.pth"


def test_a_whole_file(folder, invoke):
    done = invoke("verify", "net.pth")
    assert (done.exit_code, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first.startswith("net.pth: OK, whole (torch-zip, ")
    assert rest[-1] == "  torch.load(weights_only=True) loads it"


def test_a_damaged_file(bad, invoke):
    done = invoke("verify", bad, "ones.pth")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bad.pth: 1 error (torch-zip")
    assert lines[1].startswith("  error: checksum: data/0: the checksum of its bytes is ")
    assert lines[1].endswith(": 'w'")
    assert lines[2] == "  hint: '--salvage OUT' writes the tensors that are whole"
    assert any(line.startswith("ones.pth: OK") for line in lines)
    assert invoke("verify", bad, "-q").stdout == ""


def test_json(bad, invoke):
    document = json.loads(invoke("verify", bad, "gone.pth", "--json").stdout)
    assert (document["command"], document["exit_code"]) == ("verify", 2)
    (file,) = document["files"]
    assert not file["ok"]
    (finding,) = file["findings"]
    assert (finding["rule"], finding["entry"]) == ("checksum", "data/0")
    assert [each["file"] for each in document["failures"]] == ["gone.pth"]


def test_sarif(bad, invoke):
    document = json.loads(invoke("verify", bad, "--sarif").stdout)
    assert document["version"] == "2.1.0"
    assert document["runs"][0]["results"][0]["ruleId"] == "checksum"


def test_salvage(bad, invoke):
    done = invoke("verify", bad, "--salvage", "rest.pth")
    assert done.exit_code == 1
    assert "salvaged 1 tensor\n" in done.stdout
    assert "  w: a part of its bytes is missing or wrong\n" in done.stdout
    assert done.stdout.endswith("written to rest.pth\n")
    assert list(torch.load("rest.pth")) == ["v"]
    assert invoke("verify", bad, "--salvage", "rest.pth").exit_code == 1  # the same again
    Path("rest.pth").write_text("mine")
    again = invoke("verify", bad, "--salvage", "rest.pth")
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)
    document = json.loads(
        invoke("verify", bad, "--salvage", "rest.pth", "--force", "--json").stdout
    )
    assert document["output"] == "rest.pth"
    assert document["salvaged"]["tensors"] == ["v"]
    assert document["salvaged"]["lost"][0]["path"] == "w"


def test_many_lost_tensors_are_counted_on_a_terminal_alone(folder, invoke, monkeypatch):
    torch.save({f"w{i}": torch.ones(64) * i for i in range(30)}, "many30.pth")
    data = (folder / "many30.pth").read_bytes()
    (folder / "cut30.pth").write_bytes(data[: len(data) // 5])
    done = invoke("verify", "cut30.pth", "--salvage", "rest.pth")
    assert "more (--json lists all)" not in done.stdout
    monkeypatch.setattr(Screen, "most", lambda _, number: number)
    done = invoke("verify", "cut30.pth", "--salvage", "rest2.pth")
    assert "more (--json lists all)" in done.stdout


def test_values_policy_and_digests(folder, invoke):
    torch.save({"w": torch.tensor([1.0, float("nan")])}, "nan.pth")
    done = invoke("verify", "nan.pth", "--values")
    assert done.exit_code == 1
    assert "error: not-finite: w: of 2 numbers 1 are NaN" in done.stdout
    assert "values looked at: 1 tensor" in done.stdout
    (folder / "p.toml").write_text("[tensors]\ndtypes = ['float16']\n")
    done = invoke("verify", "nan.pth", "--policy", "p.toml")
    assert "error: policy: w: the type is 'float32'" in done.stdout
    digest = invoke("hash", "nan.pth").stdout.split()[0]
    done = invoke("verify", "nan.pth", "--against-hash", digest)
    assert (done.exit_code, f"digest: {digest}" in done.stdout) == (0, True)
    done = invoke("verify", "nan.pth", "--against-hash", "0" * 64)
    assert done.exit_code == 1


def test_many_findings_of_one_kind_are_folded_on_a_terminal_alone(folder, invoke, monkeypatch):
    torch.save({f"w{i}": torch.tensor([float("nan")]) for i in range(50)}, "nans.pth")
    done = invoke("verify", "nans.pth", "--values")
    assert done.stdout.count("error: not-finite") == 50
    assert "more of" not in done.stdout
    monkeypatch.setattr(Screen, "most", lambda _, number: number)
    done = invoke("verify", "nans.pth", "--values")
    assert done.stdout.count("error: not-finite") == 20
    assert "… and 30 more of not-finite (--json lists all)" in done.stdout


def test_strict_makes_warnings_errors(folder, invoke):
    assert invoke("verify", "train.pth.tar").exit_code == 0
    assert invoke("verify", "train.pth.tar", "--strict").exit_code == 1


def test_names_from_the_file_do_not_speak_to_the_terminal(folder, invoke):
    done = invoke("verify", "rude.pth", "--values")
    assert done.exit_code == 0
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_standard_input(folder, invoke):
    done = invoke("verify", stdin=(folder / "net.pth").read_bytes())
    assert done.stdout.startswith("<stdin>: OK")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--json", "--sarif", "net.pth"], "'--json' and '--sarif' contradict each other"),
        (["--force", "net.pth"], "'--force' is about the output of '--salvage'"),
        (["--salvage", "o.pth", "net.pth", "big.pth"], "'--salvage' takes one FILE"),
        (["--salvage", "o.pth", "-"], "'--salvage' takes one FILE"),
        (["--salvage", "net.pth", "net.pth"], "net.pth"),
        (["--policy", "gone.toml", "net.pth"], "cannot be read"),
        (["gone.pth", "--salvage", "o.pth"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, invoke, args, message):
    done = invoke("verify", *args)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (folder / "o.pth").exists()


def test_lists_on_the_command_line(folder, invoke):
    save_file({"w": torch.ones(8)}, "w.safetensors")
    listed = invoke("hash", "--per-tensor", "w.safetensors").stdout
    Path("DIGESTS").write_text(listed, encoding="utf-8")
    assert invoke("verify", "w.safetensors", "--against-hash", "DIGESTS").exit_code == 0
    Path("DIGESTS").write_text(listed.replace("ckpt1:", "ckpt1:0")[:-1], encoding="utf-8")
    done = invoke("verify", "w.safetensors", "--against-hash", "DIGESTS")
    assert done.exit_code == 2
    assert "is no digest followed by a name" in done.stderr
    done = invoke("verify", "w.safetensors", "--against-hash", "nothing")
    assert done.exit_code == 2
    assert "neither a digest nor a file with a list of them" in done.stderr
