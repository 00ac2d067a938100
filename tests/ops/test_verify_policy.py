"""Policies: every rule can be broken, and everything that is not understood is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch_checks import save

from ckpt_surgery import Checks, UsageError, parse_policy, verify


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    value = {
        "state_dict": {"conv.weight": torch.ones(3), "count": torch.arange(2)},
        "args": argparse.Namespace(lr=1),
    }
    return save(value, tmp_path / "w.pth")


def broken(path: Path, text: str) -> list[tuple[str | None, str | None]]:
    """The entries that break a policy, and the rule that each breaks."""
    report = verify([path], Checks(policy=parse_policy(text, "p.toml")))
    found = [f for f in report.verdicts[0].findings if f.rule == "policy"]
    assert report.exit_code == (1 if found else 0)
    return [(f.entry, f.hint) for f in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("[file]\nformats = ['torch-zip']\nmax_size = '1 MB'\nchecksums = true", []),
        ("[file]\nformats = ['safetensors']", [(None, "file.formats")]),
        ("[file]\nmax_size = 100", [(None, "file.max_size")]),
        ("[file]\nmax_size = '0.1 kB'", [(None, "file.max_size")]),
        ("[file]\nmax_size = '1 KiB'", [(None, "file.max_size")]),
        ("[file]\nmax_size = '4 KiB'", []),
        ("[file]\nweights_only = true", [(None, "file.weights_only")]),
        ("[globals]\nallow = ['torch.*', 'collections.*', 'argparse.Namespace']", []),
        ("[globals]\nallow = ['torch.*', 'collections.*']", [
            ("argparse.Namespace", "globals.allow")]),
        ("[globals]\ndeny = ['argparse.*']", [("argparse.Namespace", "globals.deny")]),
        ("[tensors]\ndtypes = ['float', 'int64']", []),
        ("[tensors]\ndtypes = ['float32']", [("count", "tensors.dtypes")]),
        ("[tensors]\nnames = ['conv\\..*', 'count']", []),
        ("[tensors]\nnames = ['conv']", [
            ("conv.weight", "tensors.names"), ("count", "tensors.names")]),
        ("[tensors]\ndeny_names = ['.*weight']", [("conv.weight", "tensors.deny_names")]),
        ("[tensors]\nmax_count = 1", [(None, "tensors.max_count")]),
        ("[tensors]\nmax_elements = 2", [("conv.weight", "tensors.max_elements")]),
        ("[entries]\nallow = ['arg*']", []),
        ("[entries]\nallow = ['epoch']", [("args", "entries.allow")]),
    ],
)  # fmt: skip
def test_rules(text: str, expected: object, trained: Path) -> None:
    assert broken(trained, text) == expected


def test_checksums_that_are_required(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    policy = parse_policy("[file]\nchecksums = true", "p.toml")
    assert verify([path]).exit_code == 0
    assert verify([path], Checks(policy=policy)).exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[file", "is not TOML"),
        ("[fyle]\n", "unknown section 'fyle'"),
        ("file = 3", "unknown section 'file'"),
        ("[file]\nformat = []", "unknown key 'file.format'"),
        ("[tensors]\ndtypes = 'float32'", "tensors.dtypes is not a list of texts"),
        ("[tensors]\ndtypes = ['float33']", "'float33' in tensors.dtypes is no element type"),
        ("[tensors]\nnames = ['(']", "unterminated subpattern"),
        ("[file]\nformats = ['torch-zap']", "'torch-zap' in file.formats is no format"),
        ("[tensors]\nmax_count = -1", "tensors.max_count is not a number"),
        ("[tensors]\nmax_count = true", "tensors.max_count is not a number"),
        ("[file]\nchecksums = 1", "file.checksums is neither true nor false"),
        ("[file]\nmax_size = 'much'", "file.max_size is not a size"),
        ("[file]\nmax_size = true", "file.max_size is not a size"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"--policy p\.toml") as caught:
        parse_policy(text, "p.toml")
    assert message in str(caught.value)


def test_near_names_are_hinted_at() -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy("[file]\nformat = []", "p.toml")
    assert caught.value.hint == "did you mean 'formats'?"
