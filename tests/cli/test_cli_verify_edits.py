"""``--verify`` of the commands that write: nothing that is wrong is copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NUMBERS = torch.arange(5000.0)


@pytest.fixture(autouse=True)
def bad(folder):
    """A file of which one bit of `w` is wrong, whatever else is done with it."""
    whole = torch.arange(9000.0)
    tensors = {"w": NUMBERS, "part": whole[1000:2000], "fc.bias": torch.ones(4)}
    torch.save(tensors, "good.pth")
    data = bytearray(Path("good.pth").read_bytes())
    data[data.index(NUMBERS.numpy().tobytes()) + 4002] ^= 4
    Path("bad.pth").write_bytes(data)
    data = bytearray(Path("good.pth").read_bytes())
    data[data.index(whole.numpy().tobytes()) + 8000] ^= 4
    Path("bad_part.pth").write_bytes(data)
    torch.save({"fc.bias": torch.zeros(4)}, "head.pth")
    return folder


EDITS = {
    "strip": ["strip", "bad.pth", "fc.bias"],
    "rename": ["rename", "bad.pth", "--add-prefix", "x"],
    "convert": ["convert", "bad.pth", "--format", "torch-zip"],
    "to safetensors": ["convert", "bad.pth", "--format", "safetensors"],
    "a part of it": ["convert", "bad_part.pth", "--format", "safetensors"],
    "to shards": ["convert", "bad.pth", "--format", "safetensors-index"],
    "edit": ["edit", "bad.pth", "--scale", "fc.bias=2"],
    "merge": ["merge", "bad.pth", "head.pth"],
    "apply": ["apply", "strip.json"],
}


@pytest.mark.parametrize("name", EDITS)
def test_a_wrong_bit_is_copied_without_and_refused_with_it(name, invoke, folder):
    command = EDITS[name]
    if name == "apply":
        assert invoke(*EDITS["strip"], "-o", "s.pth", "--dry-run", "--json").exit_code == 0
        report = invoke(*EDITS["strip"], "-o", "s.pth", "--json").stdout
        Path("strip.json").write_text(report, encoding="utf-8")
        Path("s.pth").unlink()
    before = set(folder.iterdir())
    assert invoke(*command, "-o", "plain").exit_code == 0, invoke(*command, "-o", "p2").stderr
    done = invoke(*command, "-o", "out", "--verify")
    assert done.exit_code == 2, done.stderr
    assert "the checksum of the bytes is " in done.stderr
    assert "hint: some of its bytes were changed: 'ckpt verify' says which are" in done.stderr
    assert {each.name for each in set(folder.iterdir()) - before} == {"plain"}


def test_a_dry_run_with_it_reads_everything(invoke, folder):
    before = set(folder.iterdir())
    assert invoke(*EDITS["strip"], "-o", "out", "--dry-run").exit_code == 0
    done = invoke(*EDITS["strip"], "-o", "out", "--dry-run", "--verify")
    assert done.exit_code == 2
    assert "(data/0): the checksum of the bytes" in done.stderr
    assert invoke("strip", "bad.pth", "w", "-o", "out", "--dry-run", "--verify").exit_code == 0
    assert set(folder.iterdir()) == before


def test_what_is_not_copied_is_not_compared(invoke):
    assert invoke("strip", "bad.pth", "w", "-o", "out.pth", "--verify").exit_code == 0
    assert torch.load("out.pth")["fc.bias"].tolist() == [1, 1, 1, 1]


def test_an_edit_with_it_writes_the_same_bytes(invoke):
    for more in ([], ["--verify"], ["--record", "log.json"]):
        out = f"out{len(more)}{more[-1:] == ['log.json']}.pth"
        assert invoke("strip", "good.pth", "fc.bias", "-o", out, *more).exit_code == 0
    found = {path.read_bytes() for path in Path().glob("out*.pth")}
    assert len(found) == 1


@pytest.mark.parametrize("option", [["--record", "log.json"], ["--hash-name"]])
def test_where_a_digest_of_the_output_is_taken_it_is_the_default(option, invoke, folder):
    done = invoke(*EDITS["strip"], "-o", "out.pth", *option)
    assert done.exit_code == 2
    assert "the checksum of the bytes is " in done.stderr
    assert not [*folder.glob("out*"), *folder.glob("log*")]
    if option != ["--hash-name"]:
        assert invoke(*EDITS["strip"], "-o", "out.pth", *option, "--no-verify").exit_code == 0


def test_that_there_is_no_checksum_is_said_if_it_was_asked_for(invoke):
    save_file({"w": torch.ones(8), "v": torch.ones(3)}, "w.safetensors")
    said = "44 bytes were copied that have no checksum to compare with"
    done = invoke("rename", "w.safetensors", "--add-prefix", "x", "-o", "a.pth", "--verify")
    assert (done.exit_code, said in done.stdout) == (0, True)
    done = invoke(
        "rename", "w.safetensors", "--add-prefix", "x", "-o", "b.pth", "--record", "b.json"
    )
    assert (done.exit_code, said in done.stdout) == (0, False)
    assert json.loads(Path("b.json").read_text(encoding="utf-8"))["warnings"] == []
    done = invoke("convert", "w.safetensors", "-o", "c.safetensors", "--verify", "--json")
    (bytes_and_header,) = json.loads(done.stdout)["warnings"]
    assert bytes_and_header.endswith(said.partition(" ")[2])
    assert load_file("c.safetensors")["w"].tolist() == [1] * 8


def test_a_recipe_may_ask_for_it(invoke):
    text = (
        '[inputs]\na = "bad.pth"\n[[steps]]\nrename = {{ add-prefix = "x" }}\n'
        '[[outputs]]\nfile = "out.pth"\nverify = {}\n'
    )
    Path("r.toml").write_text(text.format("true"), encoding="utf-8")
    done = invoke("apply", "r.toml")
    assert "the checksum of the bytes is " in done.stderr, done.stderr
    assert invoke("apply", "r.toml", "--no-verify").exit_code == 0
    Path("r.toml").write_text(text.format("false"), encoding="utf-8")
    assert invoke("apply", "r.toml", "--force").exit_code == 0
