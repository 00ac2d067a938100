"""What of its files a merge concerns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Final

from ckpt_surgery.names import Selection
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.names.rewrite import RewriteRule
    from ckpt_surgery.training.optimizers import OptimizerChoice


OTHER_FILES: Final = 0
"""What stands for the number of a file where all are meant that have no rules of their own."""


@dataclass(frozen=True, slots=True)
class MergeScope:
    """What of the files is merged, and what else the result is to be.

    `renames` are rules for the files by their number from 1 (`OTHER_FILES`: for those without),
    `compact` removes bytes that no tensor uses, `state_dict_only` everything beside the state
    dict. The base's `optimizer` follows its model, is kept as it is, or dropped.
    """

    selection: Selection = field(default_factory=Selection)
    at: Sequence[str] = ()
    renames: Mapping[int, Sequence[RewriteRule]] | None = None
    state_dict_only: bool = False
    compact: bool = False
    optimizer: OptimizerChoice = "auto"
