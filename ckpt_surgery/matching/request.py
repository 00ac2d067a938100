"""What a comparison is asked to be."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_surgery.matching.target_source import TargetRequest
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class MatchRequest(TargetRequest):
    """What to compare a checkpoint with; `at` narrows it to the state dicts at these paths."""

    at: Sequence[str] = ()
