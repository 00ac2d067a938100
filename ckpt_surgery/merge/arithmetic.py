"""Merges that compute: each tensor from those of its name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.compute.jobs import Computing, Job, JobBytes
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.merge.files import MergeFile, Sources
from ckpt_surgery.merge.planner import NumberPlanner, Numbers, Policies, Vocabulary
from ckpt_surgery.merge.recipe import MergeRecipe
from ckpt_surgery.merge.result import Edited, Outcome, carry_out, report_of
from ckpt_surgery.merge.rows import require_indexed
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def merge_numbers(
    recipe: MergeRecipe,
    sources: Sources,
    output: Output,
    scope: MergeScope,
    policies: Policies,
    computing: Computing,
) -> MergeReport:
    """Compute what the recipe says while it is written; see `merge.merge`."""
    with ExitStack() as stack:
        base, files = sources.open(stack, scope.renames or {})
        others = [file for file in files if file is not base]
        inputs = Inputs(named={file.label: file.original for file in reversed(others)})
        edited, outcome = prepare(recipe, scope, policies, base, files, inputs, output)
        return written_report(base, files, edited, outcome, inputs, output, computing)


def written_report(
    base: MergeFile,
    files: Sequence[MergeFile],
    edited: Edited,
    outcome: Outcome,
    inputs: Inputs,
    output: Output,
    computing: Computing,
) -> MergeReport:
    """Write the base after a merge, and return the report of it."""
    written = write(edited.after, output, inputs=inputs.sources, computing=computing)
    from ckpt_surgery.merge.jobs import MergeJob, running_nbytes

    jobs = [job for job in _jobs(edited.after) if isinstance(job, MergeJob)]
    computed = sum(job.nbytes for job in jobs)
    peak = min(computing.room, computed) + max((job.workspace for job in jobs), default=0)
    peak += running_nbytes(len(files) + 1, computing.workers) if computed else 0
    return report_of(base, edited, replace(outcome, peak=peak), written)


def prepare(
    recipe: MergeRecipe,
    scope: MergeScope,
    policies: Policies,
    base: MergeFile,
    files: Sequence[MergeFile],
    inputs: Inputs,
    output: Output,
) -> tuple[Edited, Outcome]:
    """Return the base after the merge, whose numbers are computed when it is written."""
    chosen = choose_state_dicts(base.checkpoint, scope.at)
    from ckpt_surgery.compute.elements import require_torch

    require_torch()
    vocabulary = _vocabulary(recipe, base, files)
    planner = NumberPlanner(recipe, policies, base, files, vocabulary)
    numbers = planner.plan(chosen, scope.selection)
    edited = carry_out(numbers.edits, base, inputs, scope, output)
    outcome = Outcome(
        recipe.method.name,
        True,
        _inputs(recipe, base, files, numbers),
        _policies(recipe, policies, scope, base),
        (*_remarks(recipe, numbers), *numbers.taking.warnings),
        rules=numbers.rules,
        taken=numbers.taking.taken,
        merged=numbers.merged,
        copied=numbers.copied,
        skipped=numbers.skipped,
    )
    return edited, outcome


def _vocabulary(
    recipe: MergeRecipe, base: MergeFile, files: Sequence[MergeFile]
) -> Vocabulary | None:
    """Return which tokens the rows of the files are, if they are known."""
    known = recipe.vocabularies
    held = (name for each in base.checkpoint.state_dicts for name in each.names)
    require_indexed(known, held, base.label)
    if known is None:
        return None
    names = [entry.file for entry in recipe.inputs]
    labels = {file.label: name for file, name in zip(files, names, strict=True)}
    if recipe.base is not None:
        labels.setdefault(base.label, recipe.base)
    return Vocabulary(
        {label: known.files[name] for label, name in labels.items()},
        known.wanted,
        None if recipe.base is None else base.label,
    )


def _jobs(checkpoint: Checkpoint) -> list[Job]:
    """Return what is computed of a checkpoint's tensors, each once."""
    sources = (t.storage.data for _, t in checkpoint.tensors if t.storage is not None)
    return list(dict.fromkeys(s.job for s in sources if isinstance(s, JobBytes)))


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
    if numbers.statistics and len(recipe.inputs) > 1:
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
