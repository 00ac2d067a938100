"""Merges that copy: entries of several files in one."""

from __future__ import annotations

from contextlib import ExitStack

from ckpt_surgery.checkpoint.compact import compact, unused_nbytes
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.plan import Compact, Edit, Plan, apply
from ckpt_surgery.merge.copying import broken_ties, plan_structure
from ckpt_surgery.merge.files import Sources
from ckpt_surgery.merge.result import (
    MergeScope,
    Outcome,
    in_step,
    narrowed,
    optimizer_warnings,
    report_of,
)
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import write


def merge_structure(
    method: str,
    sources: Sources,
    output: Output,
    scope: MergeScope,
    only_existing: bool,
    same_shape: bool,
) -> MergeReport:
    """Lay files over the base, or under it with the method ``fill``; bytes are copied."""
    with ExitStack() as stack:
        base, files = sources.open(stack, scope.renames or {})
        others = [file for file in files if file is not base]
        taking = plan_structure(
            choose_state_dicts(base.checkpoint, scope.at),
            others,
            fill=method == "fill",
            selection=scope.selection,
            only_existing=only_existing,
            same_shape=same_shape,
        )
        edits: tuple[Edit, ...] = tuple(taking.edits)
        original, before = (for_output(c, output) for c in (base.original, base.checkpoint))
        edited = apply(Plan(edits), before, others=[file.original for file in others])
        edited, edits, changes = in_step(original, before, edited, edits, scope)
        if scope.compact:
            edits = (*edits, Compact(unused_nbytes(edited)))
            edited = compact(edited)
        ties = broken_ties(before, edited)
        edited = narrowed(edited, scope)
        written = write(
            edited, output, inputs=[source for file in others for source in file.sources]
        )
        inputs = [MergeInput(base.label, None, base=True)]
        inputs += (
            MergeInput(file.label, None, taken=taking.by_file[place])
            for place, file in enumerate(others)
        )
        warnings = (*taking.warnings, *ties, *optimizer_warnings(changes))
        outcome = Outcome(
            method,
            False,
            tuple(inputs),
            {},
            changes,
            warnings,
            rules=taking.rules,
            taken=taking.taken,
        )
        return report_of(base, before, edits, outcome, written)
