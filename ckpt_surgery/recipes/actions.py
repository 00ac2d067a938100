"""What a step of a recipe may do: what the verbs do, or edits as a plan has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.errors import UsageError
from ckpt_surgery.recipes.work import Work
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.fit.request import FitRequest
    from ckpt_surgery.merge.request import MergeRequest


class _OneFile(Protocol):
    """The request of a verb about one file: `StripRequest`, `RenameRequest`, …"""

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Return the edits that it takes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a verb does with one checkpoint, as its `request` says."""

    verb: str
    request: _OneFile

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:  # noqa: ARG002 - its own
        """Plan it. Raises what the verb raises."""
        return self.request.plan(checkpoint)


@dataclass(frozen=True, slots=True)
class Apply:
    """Edits as they are: those of a report, or written by hand."""

    edits: Plan
    verb: str = "edits"

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:  # noqa: ARG002 - all is said
        """Return the edits."""
        return Planned(self.edits)


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge of the step's checkpoint, which is the base, with those called `names`."""

    request: MergeRequest
    names: Sequence[str]
    verb: str = "merge"

    def __post_init__(self) -> None:
        if self.request.base is not None:
            raise UsageError("'base' is the checkpoint that a step is on", fields=("base",))

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:
        """Plan it. Raises what `merge` raises."""
        from ckpt_surgery.merge.files import merge_file

        request, rules = self.request, self.request.scope.renames or {}
        sources = request.sources([checkpoint.file.name, *self.names])
        sources.require_numbers(rules)
        base = merge_file(checkpoint, checkpoint.file.name, rules.get(1, ()))
        others = [
            merge_file(work[name], name, rules.get(number, ()))
            for number, name in enumerate(self.names, 2)
        ]
        inputs, output = work.inputs, Output(dry_run=True)
        if request.is_structural:
            from ckpt_surgery.merge import overlay

            edited, outcome = overlay.prepare(request, base, others, inputs, output)
        elif request.is_fold:
            from ckpt_surgery.merge.lora import fold

            edited, outcome = fold.prepare(request, base, others, inputs, output)
        else:
            from ckpt_surgery.merge import arithmetic
            from ckpt_surgery.merge.planner import Policies

            edited, outcome = arithmetic.prepare(
                request.recipe(sources),
                request.scope,
                Policies(request.keys, request.on_shape, request.allow_nonfinite),
                base,
                others if sources.base_place is None else [base, *others],
                inputs,
                output,
            )
        edits: tuple[Edit, ...] = (*base.renaming.edits, *edited.edits)
        followed = (text for change in edited.changes for text in change.warnings)
        return Planned(
            Plan(edits),
            (*base.rules, *outcome.rules),
            (*outcome.warnings, *edited.out_of_step, *followed),
            edited.changes,
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """A fit of the step's checkpoint; what it is to be like may be another of the recipe's."""

    request: FitRequest
    verb: str = "fit"

    def __post_init__(self) -> None:
        if self.request.emit_map is not None:
            raise UsageError(
                "'emit_map' is for review, and a step has nobody to review it",
                fields=("emit_map",),
            )

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:
        """Plan it. Raises what `fit` raises."""
        from ckpt_surgery.matching.target_source import find_target
        from ckpt_surgery.ops.fit import prepare

        request = self.request
        name = None if request.like is None else str(request.like)
        aim = find_target(request, work.__getitem__)
        work.code += aim.code
        return prepare(request, checkpoint, aim, work.inputs, name).planned
