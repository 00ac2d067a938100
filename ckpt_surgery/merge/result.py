"""What every merge does around its entries: scope, optimizers, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, join_path
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.averages_plan import averages_left_behind
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.compact import plan_compact
from ckpt_surgery.edits.convert import conversion
from ckpt_surgery.edits.drop import Drop
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.follow import follow_base
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.names_elsewhere import names_left_behind_by
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.narrow_plan import the_one
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.rename import Rename
from ckpt_surgery.formats.traits import computed_anew
from ckpt_surgery.merge.copying import broken_ties
from ckpt_surgery.merge.files import MergeFile
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.reports.merging import MergeInput, MergeReport, Rounding
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import Written

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class Edited:
    """The base `before` and `after` all `edits`, and what became of optimizers and ties.

    `before` has the names of the result.
    """

    before: Checkpoint
    after: Checkpoint
    edits: tuple[Edit, ...]
    changes: tuple[OptimizerChange, ...]
    out_of_step: tuple[str, ...]


def carry_out(
    edits: tuple[Edit, ...], base: MergeFile, inputs: Inputs, scope: MergeScope, output: Output
) -> Edited:
    """Apply the edits of a merge, and those that let the rest of the base follow."""
    original, before = (for_output(c, output) for c in (base.original, base.checkpoint))
    merged = Plan(edits).apply(before, inputs)
    concerned = replace(merged, others=()) if scope.state_dict_only else merged
    more, changes = follow_base(original, before, concerned, scope.optimizer)
    after = Plan(tuple(more)).apply(merged, inputs)
    if scope.compact:
        more.append(plan_compact(after))
        after = more[-1].apply(after, inputs)
    apart = (*broken_ties(before, after), *averages_left_behind(before, after))
    if not scope.state_dict_only:
        apart += tuple(names_left_behind_by(original, after))
    if scope.state_dict_only:
        more.append(OnlyStateDict(the_one(after, scope.at)[0].path))
        after = more[-1].apply(after, inputs)
    after, last = finishing(after, output, "merge", (*edits, *more), inputs.sources)
    return Edited(before, after, (*edits, *more, *last), changes, apart)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report says that the plan does not.

    `taken` and `merged` are the entries that are no longer the base's, `copied` and `skipped` those
    that were not computed and why; `peak` is what the merge may need in memory, in bytes,
    `rounding` how much of what was added is left.
    """

    method: str
    arithmetic: bool
    inputs: tuple[MergeInput, ...]
    policies: Mapping[str, Any]
    warnings: tuple[str, ...]
    rules: tuple[RuleCount, ...]
    taken: Sequence[tuple[str, str]]
    merged: Sequence[str] = ()
    copied: Sequence[tuple[str, str]] = ()
    skipped: Sequence[tuple[str, str]] = ()
    peak: int = 0
    rounding: tuple[Rounding, ...] = ()


def report_of(base: MergeFile, edited: Edited, outcome: Outcome, written: Written) -> MergeReport:
    """Return the report of a merge into `base`."""
    before, after, edits = edited.before, written.checkpoint, edited.edits
    rules: tuple[RuleCount, ...] = (*base.rules, *outcome.rules)
    renames = [edit for edit in base.renaming.edits if isinstance(edit, Rename)]
    changed = {name for name, _ in outcome.taken} | set(outcome.merged)
    computed = {*outcome.merged}
    merged = [each for each in _entries(before) if each[0] in computed]
    removed = tuple(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop))
    removed += written.removed
    gone = set(removed)
    left = {other.path for other in after.others}
    dropped = tuple(o.path for o in base.original.others if o.path not in left)
    if any(isinstance(edit, OnlyStateDict) for edit in edits):
        paths = {edit.path for edit in edits if isinstance(edit, OnlyStateDict)}
        dropped += tuple(s.path for s in base.original.state_dicts if s.path not in paths)
    return MergeReport(
        method=outcome.method,
        arithmetic=outcome.arithmetic,
        inputs=outcome.inputs,
        output=written.output,
        format=written.format,
        plan=tuple(
            Plan(
                (*base.renaming.edits, *edits, *conversion(base.original.format, written))
            ).to_dict()
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
        casts=written.casts,
        carried=tuple(other.path for other in after.others),
        dropped=dropped,
        policies=outcome.policies,
        optimizers=edited.changes,
        warnings=(
            *base.original.notes,
            *outcome.warnings,
            *edited.out_of_step,
            *computed_anew(merged, dict(_entries(after))),
            *(text for change in edited.changes for text in change.warnings),
            *written.warnings,
        ),
        nbytes_before=base.original.size,
        nbytes_after=written.nbytes,
        peak_bytes=outcome.peak,
        rounding=outcome.rounding,
    )


def _entries(checkpoint: Checkpoint) -> Iterator[tuple[str, Entry]]:
    """Yield every entry of every state dict, as ``path/name``."""
    for state_dict in checkpoint.state_dicts:
        for entry in state_dict.entries:
            yield join_path(state_dict.path, entry.name), entry
