"""Merges that copy: entries of several files in one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.merge.copying import plan_structure
from ckpt_surgery.merge.files import MergeFile, Sources
from ckpt_surgery.merge.request import MergeRequest
from ckpt_surgery.merge.result import Edited, Outcome, carry_out, report_of
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def merge_structure(request: MergeRequest, sources: Sources, output: Output) -> MergeReport:
    """Lay files over the base, or under it with the method ``fill``; bytes are copied."""
    with ExitStack() as stack:
        base, files = sources.open(stack, request.scope.renames or {})
        others = [file for file in files if file is not base]
        inputs = Inputs(named={file.label: file.original for file in reversed(others)})
        edited, outcome = prepare(request, base, others, inputs, output)
        written = write(edited.after, output, inputs=inputs.sources)
        return report_of(base, edited, outcome, written)


def prepare(
    request: MergeRequest,
    base: MergeFile,
    others: Sequence[MergeFile],
    inputs: Inputs,
    output: Output,
) -> tuple[Edited, Outcome]:
    """Return the base after the merge, which is not written yet, and what was done to it."""
    scope = request.scope
    taking = plan_structure(
        choose_state_dicts(base.checkpoint, scope.at),
        others,
        fill=request.method == "fill",
        selection=scope.selection,
        only_existing=request.only_existing,
        same_shape=request.same_shape,
    )
    edited = carry_out(taking.edits, base, inputs, scope, output)
    named = [MergeInput(base.label, None, base=True)]
    named += (
        MergeInput(file.label, None, taken=taking.by_file[place])
        for place, file in enumerate(others)
    )
    outcome = Outcome(
        request.method,
        False,
        tuple(named),
        {},
        tuple(taking.warnings),
        rules=taking.rules,
        taken=taking.taken,
    )
    return edited, outcome
