"""What every merge does around its entries: scope, optimizers, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import RuleCount, alone, the_state_dict
from ckpt_surgery.edits.optimizer import follow_base
from ckpt_surgery.edits.plan import Drop, Edit, Plan, Rename
from ckpt_surgery.merge.files import MergeFile
from ckpt_surgery.names import Selection
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.writing.target import conversion
from ckpt_surgery.writing.write import Written

if TYPE_CHECKING:
    from ckpt_surgery.names.rewrite import RewriteRule
    from ckpt_surgery.training.documents import OptimizerChange
    from ckpt_surgery.training.optimizers import OptimizerChoice


@dataclass(frozen=True, slots=True)
class MergeScope:
    """What of the files is merged, and what else the result is to be.

    `renames` are rules for the files by their number from 1, `compact` removes bytes that no tensor
    uses, `state_dict_only` everything beside the state dict. The base's `optimizer` follows its
    model, is kept as it is, or dropped.
    """

    selection: Selection = field(default_factory=Selection)
    at: Sequence[str] = ()
    renames: Mapping[int, Sequence[RewriteRule]] | None = None
    state_dict_only: bool = False
    compact: bool = False
    optimizer: OptimizerChoice = "auto"


def in_step(
    original: Checkpoint,
    renamed: Checkpoint,
    edited: Checkpoint,
    edits: tuple[Edit, ...],
    scope: MergeScope,
) -> tuple[Checkpoint, tuple[Edit, ...], tuple[OptimizerChange, ...]]:
    """The result with the base's optimizers following its model, and what that took.

    `original` is the base before any edit, `renamed` what the edits apply to.
    """
    merged = replace(edited, others=()) if scope.state_dict_only else edited
    followed, more, changes = follow_base(original, renamed, merged, scope.optimizer)
    if scope.state_dict_only:
        followed = replace(followed, others=edited.others)
    return followed, (*edits, *more), changes


def optimizer_warnings(changes: Sequence[OptimizerChange]) -> Iterator[str]:
    """Warnings about optimizers."""
    for change in changes:
        yield from change.warnings


def narrowed(checkpoint: Checkpoint, scope: MergeScope) -> Checkpoint:
    """The checkpoint, or its state dict alone if the scope says so."""
    if not scope.state_dict_only:
        return checkpoint
    return alone(checkpoint, the_state_dict(checkpoint, scope.at))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report says that the plan does not.

    `taken` and `merged` are the entries that are no longer the base's, `copied` and `skipped` those
    that were not computed and why; `peak` is what the merge may need in memory, in bytes.
    """

    method: str
    arithmetic: bool
    inputs: tuple[MergeInput, ...]
    policies: Mapping[str, Any]
    optimizers: tuple[OptimizerChange, ...]
    warnings: tuple[str, ...]
    rules: tuple[RuleCount, ...]
    taken: Sequence[tuple[str, str]]
    merged: Sequence[str] = ()
    copied: Sequence[tuple[str, str]] = ()
    skipped: Sequence[tuple[str, str]] = ()
    peak: int = 0


def report_of(
    base: MergeFile,
    before: Checkpoint,
    edits: tuple[Edit, ...],
    outcome: Outcome,
    written: Written,
) -> MergeReport:
    """The report of a merge into `base`, which was `before` what is written now."""
    after = written.checkpoint
    rules: tuple[RuleCount, ...] = (*base.rules, *outcome.rules)
    renames = [edit for edit in base.renaming.edits if isinstance(edit, Rename)]
    changed = {name for name, _ in outcome.taken} | set(outcome.merged)
    removed = tuple(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop))
    removed += written.removed
    gone = set(removed)
    left = {other.path for other in after.others}
    dropped = tuple(o.path for o in base.original.others if o.path not in left)
    return MergeReport(
        method=outcome.method,
        arithmetic=outcome.arithmetic,
        inputs=outcome.inputs,
        output=written.output,
        format=written.format,
        plan=(
            *Plan((*base.renaming.edits, *edits)).to_dict(),
            *conversion(base.original.format, written.format),
        ),
        rules=tuple(each.rule.to_dict() | {"matched": each.matched} for each in rules),
        kept=tuple(
            name
            for s in before.state_dicts
            for name in (join_path(s.path, entry.name) for entry in s.entries)
            if name not in changed and name not in gone
        ),
        removed=removed,
        renamed=tuple(
            (join_path(e.state_dict, e.old), join_path(e.state_dict, e.new)) for e in renames
        ),
        taken=tuple(outcome.taken),
        merged=tuple(outcome.merged),
        copied=tuple(outcome.copied),
        skipped=tuple(outcome.skipped),
        carried=tuple(other.path for other in after.others),
        dropped=dropped,
        policies=outcome.policies,
        optimizers=outcome.optimizers,
        warnings=(*base.original.notes, *outcome.warnings, *written.warnings),
        nbytes_before=base.original.size,
        nbytes_after=written.nbytes,
        peak_bytes=outcome.peak,
    )
