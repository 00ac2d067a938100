"""Merges that compute: each tensor from those of its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.plan import Edit, Plan, apply
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.copying import broken_ties
from ckpt_surgery.merge.files import MergeFile, Sources
from ckpt_surgery.merge.planner import NumberPlanner, Numbers, Policies, rounding_warnings
from ckpt_surgery.merge.recipe import MergeRecipe
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

_MOST_THREADS: Final = 8


def merge_numbers(
    recipe: MergeRecipe,
    sources: Sources,
    output: Output,
    scope: MergeScope,
    policies: Policies,
    threads: int | None,
    memory: int | None,
) -> MergeReport:
    """Compute what the recipe says while it is written; see `merge.merge`."""
    workers = _threads(threads)
    with ExitStack() as stack:
        base, files = sources.open(stack, scope.renames or {})
        chosen = choose_state_dicts(base.checkpoint, scope.at)
        from ckpt_surgery.compute.elements import require_torch

        require_torch()
        from ckpt_surgery.compute.scheduler import DEFAULT_MEMORY, Stream
        from ckpt_surgery.merge.jobs import running_nbytes
        from ckpt_surgery.merge.pieces import Tally

        room, tally = memory or DEFAULT_MEMORY, Tally()
        stream = Stream(threads=workers, memory=room)
        planner = NumberPlanner(recipe, policies, base, files, stream, tally)
        numbers = planner.plan(chosen, scope.selection)
        edits: tuple[Edit, ...] = (*numbers.edits, *numbers.taking.edits)
        original, before = (for_output(c, output) for c in (base.original, base.checkpoint))
        edited = apply(
            Plan(edits), before, others=[f.original for f in files], merged=numbers.entries
        )
        edited = replace(edited, moved={**edited.moved, **numbers.moved})
        edited, edits, changes = in_step(original, before, edited, edits, scope)
        ties = broken_ties(before, edited)
        edited = narrowed(edited, scope)
        if not output.dry_run:
            stack.enter_context(stream)
        inputs = [source for file in files for source in file.sources]
        written = write(edited, output, inputs=inputs, prepare=stream.schedule)
        peak = min(room, numbers.computed_nbytes) + numbers.workspace
        peak += running_nbytes(len(files) + 1, workers) if numbers.computed_nbytes else 0
        outcome = Outcome(
            recipe.method.name,
            True,
            _inputs(recipe, base, files, numbers),
            _policies(recipe, policies, scope, base),
            changes,
            (
                *_remarks(recipe, numbers),
                *numbers.taking.warnings,
                *rounding_warnings(tally),
                *ties,
                *optimizer_warnings(changes),
            ),
            rules=numbers.rules,
            taken=numbers.taking.taken,
            merged=numbers.merged,
            copied=numbers.copied,
            skipped=numbers.skipped,
            peak=peak,
        )
        return report_of(base, before, edits, outcome, written)


def _threads(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise UsageError(f"'--threads {wanted}' is no number of threads")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return wanted or min(_MOST_THREADS, available or 1)


def _inputs(
    recipe: MergeRecipe, base: MergeFile, files: Sequence[MergeFile], numbers: Numbers
) -> tuple[MergeInput, ...]:
    weights: Sequence[float | None] = recipe.general.weights
    if not recipe.method.weighted:
        weights = [None] * len(files)
    inputs = [
        MergeInput(file.label, weight, file is base, numbers.taking.by_file[place])
        for place, (file, weight) in enumerate(zip(files, weights, strict=True))
    ]
    return tuple(inputs if base in files else [MergeInput(base.label, None, base=True), *inputs])


def _policies(
    recipe: MergeRecipe, policies: Policies, scope: MergeScope, base: MergeFile
) -> dict[str, Any]:
    return {
        "keys": policies.keys,
        "on_shape": policies.on_shape,
        "int": recipe.integers,
        "dtype": recipe.dtype or "of the base",
        "allow_nonfinite": policies.allow_nonfinite,
        "parameters": dict(recipe.general.values),
        "seed": recipe.seed if recipe.method.random else None,
        "other_state": "dropped" if scope.state_dict_only else f"from {Path(base.label)}",
    }


def _remarks(recipe: MergeRecipe, numbers: Numbers) -> list[str]:
    remarks = [*recipe.notes, *recipe.method.remarks(recipe.general)]
    if numbers.statistics:
        remarks.append(
            f"{numbers.statistics} running statistics of batch norm were merged like weights; "
            "estimate them again on training data (torch.optim.swa_utils.update_bn)"
        )
    if numbers.overlapping:
        remarks.append(
            "only where their shapes overlap were merged: " + ", ".join(numbers.overlapping)
        )
    if not numbers.merged:
        remarks.append("no tensor was merged")
    return remarks
