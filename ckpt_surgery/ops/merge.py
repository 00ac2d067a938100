"""Merge checkpoints: entries of several files in one, or numbers computed from all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.arithmetic.method import Method, catalogue, find
from ckpt_surgery.arithmetic.parameters import near_names
from ckpt_surgery.arithmetic.policies import IntegerPolicy, ShapePolicy
from ckpt_surgery.arithmetic.recipe import WEIGHT, Override, Recipe, RecipeInput, read_recipe
from ckpt_surgery.checkpoint import Checkpoint, join_path
from ckpt_surgery.choosing import RuleCount, choose_state_dicts
from ckpt_surgery.compaction import compact, unused_nbytes
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.ops.convert import alone, the_state_dict
from ckpt_surgery.ops.editing import (
    OUTPUT_FORMAT,
    Output,
    as_archive,
    conversion,
    destination,
    write,
)
from ckpt_surgery.ops.merge_files import MergeFile, open_file
from ckpt_surgery.ops.merge_numbers import (
    KeyPolicy,
    NumberPlanner,
    Numbers,
    Policies,
    rounding_warnings,
)
from ckpt_surgery.ops.merge_structure import broken_ties, plan_structure
from ckpt_surgery.ops.training import follow_base
from ckpt_surgery.plan import Compact, Drop, Edit, Plan, Rename, apply
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.rules import Selection
from ckpt_surgery.rules.rewriting import RewriteRule

if TYPE_CHECKING:
    from ckpt_surgery.optimizers import OptimizerChoice
    from ckpt_surgery.reports.training import OptimizerChange

STRUCTURAL: Final = ("overlay", "fill")
"""Methods that compute nothing: later files win, and earlier files win."""

Source = PathLike | SourceFile
_MOST_THREADS: Final = 8


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


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return (*STRUCTURAL, *catalogue())


def merge(
    sources: Sequence[Source],
    output: Output | PathLike,
    method: str = "overlay",
    *,
    base: Source | None = None,
    scope: MergeScope | None = None,
    only_existing: bool = False,
    same_shape: bool = False,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, object] | None = None,
    overrides: Sequence[Override] = (),
    seed: int = 0,
    dtype: str | None = None,
    integers: IntegerPolicy = "auto",
    keys: KeyPolicy = "strict",
    on_shape: ShapePolicy = "error",
    allow_nonfinite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> MergeReport:
    """Write one checkpoint made from all `sources`.

    Everything that is not merged comes from the base: the file `base`, by default the first.
    ``overlay`` puts the entries of later files over it, ``fill`` adds those that are missing; both
    copy bytes and import no torch. `only_existing` and `same_shape` narrow what they take to names
    that the base has, and tensors of its shape. Every other method computes each tensor from the
    tensors of its name: with `weights` and `parameters` for all of them, `overrides` for some,
    `dtype` for the result, `integers`, `keys` and `on_shape` where files differ. With a method that
    needs a base, the base is not among the files that are merged into it.

    Numbers are computed while they are written, in `threads` (default: one a processor, at most 8),
    with at most `memory` bytes of results waiting.

    Raises `UsageError` for choices that do not fit, `MismatchError` and `NonFiniteError` for
    numbers that do not, `ReadError` for a bad input and `WriteError` for a bad output.
    """
    scope = scope or MergeScope()
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    chosen = None if method in STRUCTURAL else _find(method)
    _require_several(len(sources) + (base is not None and base not in sources), chosen)
    if chosen is None:
        _require_unused(
            method,
            {
                "--weight": weights,
                "--weight-for": overrides,
                "--set": parameters,
                "--seed": seed,
                "--dtype": dtype,
                "--int": integers != "auto",
                "--keys": keys != "strict",
                "--on-shape": on_shape != "error",
                "--allow-nonfinite": allow_nonfinite,
                "--threads": threads,
                "--memory": memory,
            },
        )
        files = _Sources(sources, base)
        return _merge_structure(method, files, target, scope, only_existing, same_shape)
    structural = {
        "--only-existing": only_existing,
        "--same-shape": same_shape,
        "--compact": scope.compact,
    }
    _require_unused(method, structural)
    files = _Sources(sources, base, base_apart=chosen.needs_base)
    labels = [_label(source) for source in files.inputs]
    own: Sequence[Mapping[str, object]] = [{}] * len(labels)
    if weights is not None:
        chosen.bind(len(labels), has_base=chosen.needs_base, weights=weights, values=parameters)
        own = [{WEIGHT: weight} for weight in weights]
    recipe = Recipe(
        method=chosen,
        inputs=tuple(RecipeInput(f, v) for f, v in zip(labels, own, strict=True)),
        base=_label(files.base),
        values=parameters or {},
        overrides=tuple(overrides),
        dtype=dtype,
        seed=seed,
        integers=integers,
    )
    policies = Policies(keys, on_shape, allow_nonfinite)
    return _merge_numbers(recipe, files, target, scope, policies, threads, memory)


def merge_recipe(
    recipe: Recipe | PathLike,
    output: Output | PathLike,
    *,
    scope: MergeScope | None = None,
    keys: KeyPolicy = "strict",
    on_shape: ShapePolicy = "error",
    allow_nonfinite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> MergeReport:
    """Carry out a recipe: a file in TOML, mergekit's YAML, or a `Recipe`. Otherwise as `merge`."""
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    inputs = [entry.file for entry in read.inputs]
    _require_several(len(inputs) + (read.base is not None and read.base not in inputs), read.method)
    files = _Sources(inputs, read.base, base_apart=read.method.needs_base)
    policies = Policies(keys, on_shape, allow_nonfinite)
    return _merge_numbers(read, files, target, scope or MergeScope(), policies, threads, memory)


class _Sources:
    """Which files there are. `inputs` have numbers from 1; the base may be one of them or not."""

    def __init__(
        self, sources: Sequence[Source], base: Source | None, *, base_apart: bool = False
    ) -> None:
        self.inputs = list(sources)
        self.first_number = 1
        self.base_place: int | None = None
        if base is None:
            self.base = self.inputs[0]
            if base_apart:
                self.inputs, self.first_number = self.inputs[1:], 2
            else:
                self.base_place = 0
        else:
            self.base = base
            if not base_apart:
                same = [i for i, source in enumerate(self.inputs) if _is_same(source, base)]
                self.base_place = same[0] if same else None

    def open(
        self, stack: ExitStack, renames: Mapping[int, Sequence[RewriteRule]]
    ) -> tuple[MergeFile, list[MergeFile]]:
        """The base, and all inputs. Raises `UsageError` if a rename names no file."""
        last = self.first_number + len(self.inputs) - 1
        for number in renames:
            if not 1 <= number <= last:
                raise UsageError(f"there is no file {number} to rename: they are 1 to {last}")
        opened = []
        for number, source in enumerate(self.inputs, self.first_number):
            opened.append(open_file(source, renames.get(number, ())))
            stack.callback(opened[-1].original.close)
        if self.base_place is not None:
            return opened[self.base_place], opened
        rules = renames.get(1, ()) if self.first_number == 2 else ()
        base = open_file(self.base, rules)
        stack.callback(base.original.close)
        return base, opened


def _is_same(one: Source, other: Source) -> bool:
    if isinstance(one, SourceFile) or isinstance(other, SourceFile):
        return one is other
    return os.path.realpath(one) == os.path.realpath(other)


def _label(source: Source) -> str:
    return source.name if isinstance(source, SourceFile) else os.fspath(source)


def _find(method: str) -> Method:
    if method.replace("_", "-") not in catalogue():
        hint = near_names(method, methods()) or "the methods are " + ", ".join(methods())
        raise UsageError(f"unknown method '{method}'", hint=hint)
    return find(method)


def _require_several(count: int, method: Method | None) -> None:
    """Refuse what is no merge, unless the method is about one file."""
    if count < (1 if method is not None and method.max_inputs == 1 else 2):
        what = "one file" if count else "no file"
        raise UsageError(
            f"{what} is nothing to merge", hint="name at least two checkpoints, the base first"
        )


def _require_unused(method: str, given: Mapping[str, object]) -> None:
    """Refuse what another kind of method would use, instead of ignoring it."""
    for option, value in given.items():
        if value:
            raise UsageError(f"'{option}' has no meaning with method '{method}'")


def _merge_structure(
    method: str,
    sources: _Sources,
    output: Output,
    scope: MergeScope,
    only_existing: bool,
    same_shape: bool,
) -> MergeReport:
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
        numbers = Numbers(taking=taking, rules=taking.rules)
        edits: tuple[Edit, ...] = tuple(taking.edits)
        before = as_archive(base.checkpoint)
        edited = apply(Plan(edits), before, others=[file.original for file in others])
        edited, edits, changes = _in_step(base, edited, edits, scope)
        if scope.compact:
            edits = (*edits, Compact(unused_nbytes(edited)))
            edited = compact(edited)
        ties = broken_ties(before, edited)
        edited = _narrowed(edited, scope)
        nbytes = write(edited, output, inputs=[file.file for file in others])
        inputs = [MergeInput(base.label, None, base=True)]
        inputs += (
            MergeInput(file.label, None, taken=taking.by_file[place])
            for place, file in enumerate(others)
        )
        warnings = (*taking.warnings, *ties, *_out_of_step(changes))
        facts = _Facts(method, False, tuple(inputs), {}, changes, warnings, nbytes, 0)
        return _report(base, before, edited, edits, numbers, facts, output)


def _merge_numbers(
    recipe: Recipe,
    sources: _Sources,
    output: Output,
    scope: MergeScope,
    policies: Policies,
    threads: int | None,
    memory: int | None,
) -> MergeReport:
    workers = _threads(threads)
    with ExitStack() as stack:
        base, files = sources.open(stack, scope.renames or {})
        chosen = choose_state_dicts(base.checkpoint, scope.at)
        from ckpt_surgery.arithmetic.elements import require_torch

        require_torch()
        from ckpt_surgery.arithmetic.jobs import running_nbytes
        from ckpt_surgery.arithmetic.merging import Tally
        from ckpt_surgery.arithmetic.streaming import DEFAULT_MEMORY, Stream

        room, tally = memory or DEFAULT_MEMORY, Tally()
        stream = Stream(threads=workers, memory=room)
        planner = NumberPlanner(recipe, policies, base, files, stream, tally)
        numbers = planner.plan(chosen, scope.selection)
        edits: tuple[Edit, ...] = (*numbers.edits, *numbers.taking.edits)
        before = as_archive(base.checkpoint)
        edited = apply(
            Plan(edits), before, others=[f.original for f in files], merged=numbers.entries
        )
        edited = replace(edited, moved={**edited.moved, **numbers.moved})
        edited, edits, changes = _in_step(base, edited, edits, scope)
        ties = broken_ties(before, edited)
        edited = _narrowed(edited, scope)
        if not output.dry_run:
            stack.enter_context(stream)
        inputs = [file.file for file in files]
        nbytes = write(edited, output, inputs=inputs, prepare=stream.schedule)
        peak = min(room, numbers.computed_nbytes) + numbers.workspace
        peak += running_nbytes(len(files) + 1, workers) if numbers.computed_nbytes else 0
        facts = _Facts(
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
                *_out_of_step(changes),
            ),
            nbytes,
            peak,
        )
        return _report(base, before, edited, edits, numbers, facts, output)


def _threads(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise UsageError(f"'--threads {wanted}' is no number of threads")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return wanted or min(_MOST_THREADS, available or 1)


def _in_step(
    base: MergeFile, edited: Checkpoint, edits: tuple[Edit, ...], scope: MergeScope
) -> tuple[Checkpoint, tuple[Edit, ...], tuple[OptimizerChange, ...]]:
    """The result with the base's optimizers following its model, and what that took."""
    merged = replace(edited, others=()) if scope.state_dict_only else edited
    followed, more, changes = follow_base(base.original, base.checkpoint, merged, scope.optimizer)
    if scope.state_dict_only:
        followed = replace(followed, others=edited.others)
    return followed, (*edits, *more), changes


def _out_of_step(changes: Sequence[OptimizerChange]) -> Iterator[str]:
    for change in changes:
        yield from change.warnings


def _narrowed(checkpoint: Checkpoint, scope: MergeScope) -> Checkpoint:
    if not scope.state_dict_only:
        return checkpoint
    return alone(checkpoint, the_state_dict(checkpoint, scope.at))


def _inputs(
    recipe: Recipe, base: MergeFile, files: Sequence[MergeFile], numbers: Numbers
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
    recipe: Recipe, policies: Policies, scope: MergeScope, base: MergeFile
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


def _remarks(recipe: Recipe, numbers: Numbers) -> list[str]:
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


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a report says that the plan does not."""

    method: str
    arithmetic: bool
    inputs: tuple[MergeInput, ...]
    policies: Mapping[str, Any]
    optimizers: tuple[OptimizerChange, ...]
    warnings: tuple[str, ...]
    nbytes: int
    peak: int


def _report(
    base: MergeFile,
    before: Checkpoint,
    after: Checkpoint,
    edits: tuple[Edit, ...],
    numbers: Numbers,
    facts: _Facts,
    output: Output,
) -> MergeReport:
    rules: tuple[RuleCount, ...] = (*base.rules, *numbers.rules)
    renames = [edit for edit in base.renaming.edits if isinstance(edit, Rename)]
    changed = {name for name, _ in numbers.taking.taken} | set(numbers.merged)
    removed = tuple(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop))
    gone = set(removed)
    left = {other.path for other in after.others}
    dropped = tuple(o.path for o in base.original.others if o.path not in left)
    return MergeReport(
        method=facts.method,
        arithmetic=facts.arithmetic,
        inputs=facts.inputs,
        output=destination(base.original, output),
        format=OUTPUT_FORMAT,
        plan=(*Plan((*base.renaming.edits, *edits)).to_dict(), *conversion(base.original)),
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
        taken=tuple(numbers.taking.taken),
        merged=tuple(numbers.merged),
        copied=tuple(numbers.copied),
        skipped=tuple(numbers.skipped),
        carried=tuple(other.path for other in after.others),
        dropped=dropped,
        policies=facts.policies,
        optimizers=facts.optimizers,
        warnings=(*base.original.notes, *facts.warnings),
        nbytes_before=base.original.file.size,
        nbytes_after=facts.nbytes,
        peak_bytes=facts.peak,
    )
