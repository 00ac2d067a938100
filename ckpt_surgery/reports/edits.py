"""What an edit of one file did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt_surgery.reports import SCHEMA, once

if TYPE_CHECKING:
    from ckpt_surgery.compute.casts import Cast
    from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class EditReport:
    """What an edit did, or would do. Names are ``path/name``.

    `plan` are the edits in order, `rules` each rule as a dictionary with its ``matched`` count,
    `kept`, `removed` and `renamed` entries of state dicts, `carried` and `dropped` the paths of
    the other entries, `optimizers` what became of those whose model changed, `casts` what
    a change of element type did. `output` is None if nothing was written.
    """

    command: str
    inputs: tuple[str, ...]
    output: str | None
    format: str
    plan: tuple[Mapping[str, Any], ...]
    rules: tuple[Mapping[str, Any], ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    carried: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()
    casts: tuple[Cast, ...] = ()
    warnings: tuple[str, ...] = ()
    nbytes_before: int = 0
    nbytes_after: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "command": self.command,
            "exit_code": self.exit_code,
            "inputs": list(self.inputs),
            "output": self.output,
            "format": self.format,
            "plan": [dict(edit) for edit in self.plan],
            "rules": [dict(rule) for rule in self.rules],
            "kept": list(self.kept),
            "removed": list(self.removed),
            "renamed": [list(pair) for pair in self.renamed],
            "carried": list(self.carried),
            "dropped": list(self.dropped),
            "optimizers": [change.to_dict() for change in self.optimizers],
            "casts": [cast.to_dict() for cast in self.casts],
            "warnings": list(self.warnings),
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
        }
