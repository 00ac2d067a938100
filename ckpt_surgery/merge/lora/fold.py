"""Carry out a fold of adapters into a base."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.compute.jobs import JobBytes
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.files import MergeFile, Sources
from ckpt_surgery.merge.lora.plan import Adapter, LoraPlanner
from ckpt_surgery.merge.request import MergeRequest
from ckpt_surgery.merge.result import Edited, Outcome, carry_out, report_of
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def fold(request: MergeRequest, sources: Sources, output: Output) -> MergeReport:
    """Write the base with the adapters folded into its weights; see `ops.merge`."""
    with ExitStack() as stack:
        base, adapters = sources.open(stack, request.scope.renames or {})
        inputs = Inputs(named={file.label: file.original for file in reversed(adapters)})
        edited, outcome = prepare(request, base, adapters, inputs, output)
        from ckpt_surgery.merge.jobs import running_nbytes
        from ckpt_surgery.merge.lora.job import LoraJob

        data = (t.storage.data for _, t in edited.after.tensors if t.storage is not None)
        found = [s.job for s in data if isinstance(s, JobBytes)]
        jobs = [job for job in dict.fromkeys(found) if isinstance(job, LoraJob)]
        for job in jobs:
            job.rounding.wanted = request.check_rounding
        written = write(edited.after, output, inputs=inputs.sources, computing=request.computing)
        peak = min(request.computing.room, sum(job.nbytes for job in jobs))
        peak += max((job.workspace for job in jobs), default=0)
        peak += running_nbytes(2, request.computing.workers) if jobs else 0
        counted = request.check_rounding and not output.dry_run
        rounding = tuple(job.rounding.result for job in jobs) if counted else ()
        return report_of(base, edited, replace(outcome, peak=peak, rounding=rounding), written)


def prepare(
    request: MergeRequest,
    base: MergeFile,
    adapters: Sequence[MergeFile],
    inputs: Inputs,
    output: Output,
) -> tuple[Edited, Outcome]:
    """Return the base after the fold, whose numbers are computed when it is written.

    Raises `UsageError` if there are not as many scales as adapters, or an adapter is none.
    """
    from ckpt_surgery.compute.elements import require_torch

    require_torch()
    scales = tuple(request.scales or (1.0,) * len(adapters))
    if len(scales) == 1:
        scales *= len(adapters)
    if len(scales) != len(adapters):
        raise UsageError(f"{len(scales)} scales for {len(adapters)} adapters", fields=("scales",))
    planner = LoraPlanner(
        base,
        [Adapter(file, scale) for file, scale in zip(adapters, scales, strict=True)],
        lenient=request.keys == "intersection",
        nonfinite=request.allow_nonfinite,
    )
    scope = request.scope
    planned = planner.plan(choose_state_dicts(base.checkpoint, scope.at), scope.selection)
    edited = carry_out(planned.edits, base, inputs, scope, output)
    outcome = Outcome(
        request.method,
        True,
        (
            MergeInput(base.label, None, base=True),
            *(MergeInput(file.label, scale) for file, scale in zip(adapters, scales, strict=True)),
        ),
        {"keys": request.keys, "allow_nonfinite": request.allow_nonfinite},
        tuple(planned.remarks),
        rules=planned.rules,
        taken=[(join_path(t.state_dict, t.name), t.file) for t in planned.takes],
        merged=[each.path for each in planned.folds],
        copied=planned.copied,
        skipped=planned.skipped,
    )
    return edited, outcome
