"""What putting the files of ranks together did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class JoinedTensor:
    """A whole tensor: from how many `parts`, and `how`.

    That is an axis, ``placement`` (the files say where each part lies), ``copies`` (every rank has
    all of it), ``first`` (the first rank's counts) or ``flat`` (it lies in vectors of parameters).
    """

    name: str
    how: int | str
    parts: int

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "how": self.how, "parts": self.parts}


@dataclass(frozen=True, slots=True)
class ConsolidateReport:
    """What `consolidate` did, or would do. Names are ``path/name``.

    `writer` says whose rules the files follow: ``ranks`` (those that say everything themselves, or
    by ``--axis``), ``llama``, ``deepspeed``, ``fairscale``, ``megatron`` or
    ``dcp``. `removed` are entries that
    the output's format cannot hold, `carried` and `dropped` paths of what lies beside the weights.
    `named` are the directory or files, and `axes` the rules, that were asked for; `edits` is what
    was done to what was put together, in the form of plans.
    """

    inputs: tuple[str, ...]
    output: str | None
    format: str
    writer: str
    joined: tuple[JoinedTensor, ...]
    removed: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    nbytes_before: int = 0
    nbytes_after: int = 0
    named: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    edits: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope(
                "consolidate",
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=self.output,
                warnings=self.warnings,
            ),
            "output_format": self.format,
            "writer": self.writer,
            "joined": [each.to_dict() for each in self.joined],
            "removed": list(self.removed),
            "carried": list(self.carried),
            "dropped_others": list(self.dropped),
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
            "plan": [
                {"edit": "consolidate", "files": list(self.named), "axes": list(self.axes)},
                *self.edits,
            ],
        }
