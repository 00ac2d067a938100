"""Rename the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.ops.editing import Output, edit
from ckpt_surgery.plan import plan_rename
from ckpt_surgery.report import EditReport
from ckpt_surgery.rules import RewriteRule


def rename(
    source: PathLike | SourceFile,
    output: Output | PathLike,
    rules: Sequence[RewriteRule],
    *,
    at: Sequence[str] = (),
) -> EditReport:
    """Write `source` with its entries renamed by `rules`, one after the other.

    Every state dict in the file is renamed, or those at the paths `at`; ``_metadata`` follows.

    Raises `UsageError` for a rule that changes nothing or makes an empty name,
    `NameCollisionError` if two entries would get one name, and what `strip` raises.
    """
    return edit(
        "rename",
        source,
        output if isinstance(output, Output) else Output(output),
        lambda checkpoint: plan_rename(checkpoint, rules, at=at),
    )
