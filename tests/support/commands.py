"""`ckpt` as a function, for tests whose files lie anywhere."""

from __future__ import annotations

import torch
from click.testing import CliRunner

from ckpt_surgery.cli.main import cli


def ckpt(*words: object, exit_code: int = 0) -> str:
    """Run a command line, which must end with `exit_code`, and return what it said."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == exit_code, result.output
    return result.output


def are_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Return whether two mappings hold the same tensors bit for bit, under the same names."""
    return list(found) == list(wanted) and all(
        value.dtype == wanted[name].dtype and torch.equal(value, wanted[name])
        for name, value in found.items()
    )
