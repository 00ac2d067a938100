"""Carrying out a recipe: every step on the description, then each output in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.edits.convert import conversion
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import CkptError, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.formats import read
from ckpt_surgery.recipes.recipe import Recipe, RecipeOutput, Step
from ckpt_surgery.recipes.work import Work
from ckpt_surgery.reports.applying import ApplyReport, OutputReport, StepReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import write

_STATE_DICTS: Final = frozenset({"convert", "merge", "fit"})
"""Verbs that make state dicts of pickled modules."""


def apply_recipe(recipe: Recipe, *, computing: Computing | None = None) -> ApplyReport:
    """Carry out the steps of a recipe and write its outputs.

    Each step works on what reading would give if the one before had been written; but bytes are
    copied, and numbers computed, once for each output. Nothing is written before every step has
    been planned and every assertion holds.

    Raises what the verbs raise; an error says which step it is about.
    """
    for each in recipe.outputs:
        each.output.check()
    with ExitStack() as stack:
        work = stack.enter_context(Work())
        named: dict[str, str] = {}
        notes: list[str] = []
        nbytes = 0
        for name, source in recipe.inputs.items():
            checkpoint = stack.enter_context(read(source))
            work.put_input(name, checkpoint)
            named[name] = checkpoint.file.name
            notes += checkpoint.notes
            nbytes += checkpoint.size
        last = next(iter(recipe.inputs))
        steps: list[StepReport] = []
        for number, step in enumerate(recipe.steps, 1):
            with _about_step(number, step):
                steps.append(_carry_out(step, step.on or last, work))
            last = steps[-1].name
        outputs = _distinct([replace(each, name=each.name or last) for each in recipe.outputs])
        for each in outputs:
            also_read = [*recipe.read, *work.code]
            each.output.refuse_inputs(work.sources, also_read, may_replace=False)
        written = [_write(each, work, steps, computing) for each in outputs]
        named |= {file: file for file in work.files}
        return ApplyReport(named, tuple(steps), tuple(written), tuple(notes), nbytes)


@contextmanager
def _about_step(number: int, step: Step) -> Iterator[None]:
    """Say in an error which step it is about."""
    try:
        yield
    except CkptError as error:
        error.message = f"step {number} ({step.action.verb}): {error.message}"
        raise


def _carry_out(step: Step, on: str, work: Work) -> StepReport:
    keeps = step.action.verb not in _STATE_DICTS
    before = for_output(work[on], Output(dry_run=True), keep_modules=keeps)
    name = step.name or on
    with about_file(before.file.name):
        planned = step.action.plan(before, work)
        if planned.plan.edits or name != on:
            work.put(name, planned.plan.apply(before, work.inputs))
    return StepReport(
        step.action.verb,
        on,
        name,
        tuple(planned.plan.to_dict()),
        tuple(each.rule.to_dict() | {"matched": each.matched} for each in planned.rules),
        planned.optimizers,
        planned.warnings,
        step.said,
    )


def _distinct(outputs: Sequence[RecipeOutput]) -> list[RecipeOutput]:
    """Return the outputs, each of which knows of the others, so that no two are one file."""
    if sum(each.output.stream is not None for each in outputs) > 1:
        raise UsageError("two outputs cannot both go to standard output")
    roles = [
        None if each.output.path is None else Role("another output", each.output.path)
        for each in outputs
    ]
    return [
        replace(
            each,
            output=replace(
                each.output,
                beside=(*each.output.beside, *(r for r in roles[:place] if r is not None)),
            ),
        )
        for place, each in enumerate(outputs)
    ]


def _write(
    each: RecipeOutput, work: Work, steps: Sequence[StepReport], computing: Computing | None
) -> OutputReport:
    assert each.name is not None  # noqa: S101  # `apply_recipe` gave it one
    checkpoint = work.edited(each.name)
    sources: list[Source] = [*work.sources]
    done = [edit for step in steps for edit in Plan.from_dict(step.plan).edits]
    before = for_output(checkpoint, each.output, keep_modules=True)
    finished, last = finishing(before, each.output, "apply", done, sources)
    written = write(finished, each.output, inputs=sources, computing=computing)
    return OutputReport(
        each.name,
        written.output,
        written.format,
        written.nbytes,
        tuple(Plan((*last, *conversion(checkpoint.format, written))).to_dict()),
        written.warnings,
    )
