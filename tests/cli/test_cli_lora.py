"""``ckpt lora`` on the command line."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def pair(folder):
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(6, 5), "b.weight": torch.randn(4, 4), "b.bias": torch.zeros(4)}
    torch.save(base, "base.pth")
    torch.save({name: value + 1 for name, value in base.items()}, "tuned.pth")
    return folder


def test_an_adapter_is_extracted_and_folded_in_again(pair, invoke):
    result = invoke("lora", "extract", "base.pth", "tuned.pth", "--rank", "2", "-o", "adapter")
    assert result.exit_code == 0, result.output
    assert "not in the adapter, but different: 1 entry" in result.output
    assert "b.bias: by 100.00%" in result.output
    assert "written to adapter, 2 layers, float32" in result.output
    result = invoke("merge", "-m", "lora", "base.pth", "adapter", "-o", "again.pth")
    assert result.exit_code == 0, result.output
    found, expected = torch.load("again.pth"), torch.load("tuned.pth")
    torch.testing.assert_close(found["a.weight"], expected["a.weight"])


def test_adapters_are_merged_and_an_existing_one_is_kept(pair, invoke):
    invoke("lora", "extract", "base.pth", "tuned.pth", "--rank", "1", "-o", "one")
    line = ("lora", "merge", "one", "one", "--scale", "0.5,1", "-o", "both")
    assert invoke(*line).exit_code == 0
    result = invoke(*line)
    assert result.exit_code == 2
    result = invoke(*line, "--force", "--json")
    assert [layer["rank"] for layer in json.loads(result.stdout)["layers"]] == [2, 2]
    result = invoke("lora", "merge", "one", "one", "--rank", "1", "--dry-run")
    assert "dry run: nothing was written" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("extract", "base.pth", "tuned.pth", "-o", "x"), "needs '--rank N'"),
        (("extract", "base.pth", "--rank", "2", "-o", "x"), "takes two files"),
        (
            ("extract", "base.pth", "tuned.pth", "--rank", "2", "--scale", "1", "-o", "x"),
            "'--scale' is for 'merge'",
        ),
        (("merge", "base.pth", "base.pth", "--at", "m", "-o", "x"), "'--at' is for 'extract'"),
        (("base.pth", "tuned.pth", "--rank", "2", "-o", "x"), "say 'extract' or 'merge'"),
        (("merge", "base.pth", "base.pth", "--scale", "x", "-o", "x"), "is no number"),
        (("merge", "base.pth", "tuned.pth", "-o", "x"), "it is no adapter"),
        (
            ("extract", "base.pth", "tuned.pth", "--rank", "2", "-o", "x.safetensors"),
            "called like a file",
        ),
    ],
)
def test_lines_that_make_no_sense_are_refused(pair, invoke, words, message):
    result = invoke("lora", *words)
    assert result.exit_code == 2
    assert message in result.output
    assert not (pair / "x").exists()
