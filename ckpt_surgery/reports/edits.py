"""What an edit of one file did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass

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
            **envelope(
                self.command,
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=self.output,
                warnings=self.warnings,
            ),
            "output_format": self.format,
            "plan": [dict(edit) for edit in self.plan],
            "rules": [dict(rule) for rule in self.rules],
            "kept": list(self.kept),
            "removed": list(self.removed),
            "renamed": [list(pair) for pair in self.renamed],
            "carried": list(self.carried),
            "dropped_others": list(self.dropped),
            "optimizers": [change.to_dict() for change in self.optimizers],
            "casts": [cast.to_dict() for cast in self.casts],
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
        }


@dataclass(frozen=True, slots=True)
class ValueChange:
    """What became of the value at a path; a type is None where there is nothing.

    A value that is not plain is said as its type.
    """

    path: str
    old: Any
    new: Any
    old_type: str | None
    new_type: str | None

    @property
    def change(self) -> str:
        """``added``, ``removed``, ``changed`` or ``same``."""
        if self.old_type is None:
            return "added"
        if self.new_type is None:
            return "removed"
        same = (self.old_type, repr(self.old)) == (self.new_type, repr(self.new))
        return "same" if same else "changed"

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON has it."""
        return {
            "path": self.path,
            "change": self.change,
            "old": self.old,
            "new": self.new,
            "old_type": self.old_type,
            "new_type": self.new_type,
        }


@dataclass(frozen=True, slots=True)
class SetReport(EditReport):
    """What `set_values` did: that of an edit, and each value before and after."""

    values: tuple[ValueChange, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of the report."""
        found = EditReport.to_dict(self)
        return {**found, "values": [change.to_dict() for change in self.values]}
