"""Rename the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.follow import with_optimizers
from ckpt_surgery.edits.narrow_plan import narrowed
from ckpt_surgery.edits.plan import Planned
from ckpt_surgery.edits.rename_plan import plan_rename
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.names.rewrite import RewriteRule
from ckpt_surgery.ops.run import edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import OptimizerChoice


@dataclass(frozen=True, slots=True)
class RenameRequest:
    """How entries are renamed: by `rules`, one after the other.

    Every state dict in the file is renamed, or those at the paths `at`; ``_metadata`` follows, and
    so do the names that an optimizer stores. `optimizer` and `state_dict_only` are as for `strip`.
    """

    rules: Sequence[RewriteRule]
    at: Sequence[str] = ()
    optimizer: OptimizerChoice = "auto"
    state_dict_only: bool = False

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it.

        Raises `UsageError` for a rule that changes nothing or makes an empty name, and
        `NameCollisionError` if two entries would get one name.
        """
        planned = plan_rename(checkpoint, self.rules, at=self.at)
        if not self.state_dict_only:
            return with_optimizers(checkpoint, planned, self.optimizer)
        return narrowed(checkpoint, planned, self.at, self.optimizer)


def rename(
    source: PathLike | Source,
    output: Output | PathLike,
    request: RenameRequest | Sequence[RewriteRule],
    **choices: Any,
) -> EditReport:
    """Write `source` with its entries renamed as `request` says.

    ``rename(file, output, [AddPrefix("net")], at=["model"])`` is short for
    ``rename(file, output, RenameRequest([AddPrefix("net")], at=["model"]))``.

    Raises `UsageError` for a rule that changes nothing or makes an empty name,
    `NameCollisionError` if two entries would get one name, and what `strip` raises.
    """
    if not isinstance(request, RenameRequest):
        request = RenameRequest(request, **choices)
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    return edit("rename", source, output, request.plan)
