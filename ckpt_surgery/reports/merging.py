"""What a merge did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.compute.casts import Cast
    from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A file of a merge: its weight (None: the method has none), and whether it is the base.

    `taken` counts the entries that the result has from it as they are.
    """

    file: str
    weight: float | None = None
    base: bool = False
    taken: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "weight": self.weight,
            "is_base": self.base,
            "taken": self.taken,
        }


@dataclass(frozen=True, slots=True)
class Rounding:
    """How much of what was added to a tensor is left after rounding to its type.

    `error` is the length of what rounding did through that of the difference (1: as much as all of
    it), `changed` the elements that were to change, `lost` those of them that did not. `square` is
    the difference's squared length.
    """

    name: str
    error: float
    changed: int
    lost: int
    square: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "error": self.error,
            "changed": self.changed,
            "lost": self.lost,
        }


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did, or would do. Names are ``path/name`` in the result.

    `taken` says which file an entry comes from that the base did not give, `merged` which were
    computed, `copied` and `skipped` which were not and why: copied as they are, or left out.
    `casts` are those of the computed ones that change their element type.
    `kept` are the base's other entries, `carried` the paths beside its state dicts, `dropped` those
    that the result has no longer, `optimizers` what became of those whose model changed. `policies`
    are the choices that decided. `peak_bytes` is what the merge may need in memory beside Python
    and torch (0: it computes nothing). `rounding` is empty unless it was asked for.
    """

    method: str
    arithmetic: bool
    inputs: tuple[MergeInput, ...]
    output: str | None
    format: str
    plan: tuple[Mapping[str, Any], ...]
    rules: tuple[Mapping[str, Any], ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    taken: tuple[tuple[str, str], ...]
    merged: tuple[str, ...]
    copied: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    casts: tuple[Cast, ...]
    carried: tuple[str, ...]
    dropped: tuple[str, ...]
    policies: Mapping[str, Any]
    optimizers: tuple[OptimizerChange, ...]
    warnings: tuple[str, ...]
    nbytes_before: int
    nbytes_after: int
    peak_bytes: int
    rounding: tuple[Rounding, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        return 0

    @property
    def base(self) -> str:
        """The name of the file that everything not merged comes from."""
        return next(each.file for each in self.inputs if each.base)

    def to_dict(self) -> dict[str, Any]:
        """Return the document; that of an arithmetic merge also says what was computed."""
        found: dict[str, Any] = {
            **envelope(
                "merge",
                exit_code=self.exit_code,
                inputs=[each.file for each in self.inputs],
                output=self.output,
                warnings=self.warnings,
            ),
            "method": self.method,
            "files": [each.to_dict() for each in self.inputs],
            "base": self.base,
            "output_format": self.format,
            "plan": [dict(edit) for edit in self.plan],
            "rules": [dict(rule) for rule in self.rules],
            "kept": list(self.kept),
            "removed": list(self.removed),
            "renamed": [list(pair) for pair in self.renamed],
            "taken": [{"name": name, "file": file} for name, file in self.taken],
            "carried": list(self.carried),
            "dropped_others": list(self.dropped),
            "optimizers": [change.to_dict() for change in self.optimizers],
        }
        if self.arithmetic:
            found |= {
                "merged": list(self.merged),
                "copied": [name for name, _ in self.copied],
                "reasons": dict((*self.copied, *self.skipped)),
                "skipped": [name for name, _ in self.skipped],
                "casts": [cast.to_dict() for cast in self.casts],
                "policies": dict(self.policies),
                "peak_bytes": self.peak_bytes,
                "rounding": [each.to_dict() for each in self.rounding],
            }
        return found | {
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
        }
