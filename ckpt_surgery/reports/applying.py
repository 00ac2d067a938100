"""What a recipe did, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ckpt_surgery.reports import envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step: what it was on, what its result is called, and the edits that it took, in order.

    `said` is what the recipe says of it.
    """

    verb: str
    on: str
    name: str
    plan: tuple[Mapping[str, Any], ...]
    rules: tuple[Mapping[str, Any], ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()
    warnings: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "verb": self.verb,
            "on": self.on,
            "as": self.name,
            "plan": [dict(edit) for edit in self.plan],
            "rules": [dict(rule) for rule in self.rules],
            "optimizers": [change.to_dict() for change in self.optimizers],
            "warnings": list(self.warnings),
        }
        return found | ({"said": dict(self.said)} if self.said else {})


@dataclass(frozen=True, slots=True)
class OutputReport:
    """A file that was written: the checkpoint called `name`. `output` is None of a dry run."""

    name: str
    output: str | None
    format: str
    nbytes: int
    plan: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "from": self.name,
            "output": self.output,
            "format": self.format,
            "plan": [dict(edit) for edit in self.plan],
            "warnings": list(self.warnings),
            "nbytes": self.nbytes,
        }


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What a recipe did, or would do.

    `named` are its input files by their names; files that steps name stand for themselves.
    """

    named: Mapping[str, str]
    steps: tuple[StepReport, ...]
    outputs: tuple[OutputReport, ...]
    warnings: tuple[str, ...] = ()
    nbytes_before: int = 0

    @property
    def exit_code(self) -> int:
        return 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input files."""
        return tuple(self.named.values())

    @property
    def output(self) -> str | None:
        """The name of the output, None of a dry run; with several outputs, that of the last."""
        return self.outputs[-1].output if self.outputs else None

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope(
                "apply",
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=self.output,
                warnings=self.warnings,
            ),
            "named": dict(self.named),
            "steps": [step.to_dict() for step in self.steps],
            "outputs": [output.to_dict() for output in self.outputs],
            "nbytes_before": self.nbytes_before,
            "nbytes_after": sum(output.nbytes for output in self.outputs),
        }
