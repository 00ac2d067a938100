"""Write a checkpoint that loads strictly into a target, from as much of another as fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.compute.casts import Cast
from ckpt_surgery.compute.elements import can_load
from ckpt_surgery.edits.averages_plan import averages_in_new_order, averages_left_behind
from ckpt_surgery.edits.convert import conversion
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.follow import following
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.names_elsewhere import names_left_behind_by
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.narrow_plan import the_one
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.views import View, views
from ckpt_surgery.errors import CkptError, LossyEditError, PathLike, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.fileio.unchanged import write_unless_same
from ckpt_surgery.fit.checks import check_adaptations
from ckpt_surgery.fit.decided import Decided
from ckpt_surgery.fit.edit import Fit, FitTarget, keep_aim
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.fit.plan import plan_fit
from ckpt_surgery.fit.request import FitRequest
from ckpt_surgery.formats import read
from ckpt_surgery.formats.traits import computed_anew
from ckpt_surgery.matching.correspondence import Correspondence, correspond
from ckpt_surgery.matching.maps import check_map, format_proposal
from ckpt_surgery.matching.target_source import Aim, describe, opened
from ckpt_surgery.models.target import Target
from ckpt_surgery.names import Selection
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.ops.fit_layouts import Arranged, arrange
from ckpt_surgery.ops.fit_optimizers import optimizers_in_step
from ckpt_surgery.reports.fitting import FitReport, Fitted
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.averages import find_averages
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import left_out, write

_SAME_NUMBERS: Final = ("squeeze", "reshape")
"""Adaptations that do what a layout would have done."""


def fit(
    source: PathLike | Source,
    output: Output | PathLike,
    request: FitRequest | None = None,
    *,
    review: Callable[[Arranged], object] | None = None,
    **choices: Any,
) -> FitReport:
    """Fit the state dicts of `source` to one target, as `request` says; see `match`.

    ``fit(file, output, like="other.pth", adapt=["rows"])`` is short for
    ``fit(file, output, FitRequest(like="other.pth", adapt=["rows"]))``. What lies beside the state
    dicts is carried over. `review` is called with what is to be put into another layout before
    anything is written.

    Raises `PlanError` if nothing fits, a tensor may not be initial, or it is not certain which of
    an optimizer's state belongs to which parameter, `AmbiguousMatchError` for
    names with two equally good partners, `WriteError` for a bad output, and what `match` raises.
    Nothing is then written.
    """
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    if request is not None and choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    asked = FitRequest(**choices) if request is None else request
    if asked.emit_map is not None:
        target = replace(target, beside=(*target.beside, Role("'--emit-map'", asked.emit_map)))
    with read(source) as checkpoint, opened(asked) as aim:
        target.refuse_inputs([*checkpoint.sources, *aim.sources], aim.code)
        inputs = Inputs([] if aim.checkpoint is None else [aim.checkpoint])
        fitting = prepare(asked, checkpoint, aim, inputs, output=target)
        if asked.emit_map is not None:
            _write_map(asked.emit_map, fitting.fitted, target)
        if review is not None:
            review(fitting.arranged)
        done = fitting.planned.plan.edits
        fitted, last = finishing(fitting.result, target, "fit", done, aim.sources)
        written = write(fitted, target, inputs=aim.sources)
        result = written.checkpoint
        edits = (*fitting.planned.plan.edits, *last, *conversion(checkpoint.format, written))
        return FitReport(
            inputs=(checkpoint.file.name, *aim.inputs),
            output=written.output,
            format=written.format,
            target=aim.target.title,
            plan=tuple(Plan(edits).to_dict()),
            fitted=fitting.fitted,
            carried=tuple(other.path for other in result.others),
            dropped_others=(*left_out(checkpoint, result), *fitting.left_out),
            optimizers=fitting.planned.optimizers,
            casts=tuple(_named_as(fitting.fitted, written.casts)),
            warnings=(
                *checkpoint.notes,
                *fitting.planned.warnings,
                *_made_anew(fitting),
                *written.warnings,
            ),
            seed=asked.seed,
            nbytes_before=checkpoint.size,
            nbytes_after=written.nbytes,
        )


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A fit that is planned: what it makes of the checkpoint, and what the report says.

    `left_out` are entries of state dicts that are no tensors, and not in the result.
    """

    arranged: Arranged
    planned: Planned
    result: Checkpoint
    fitted: tuple[Fitted, ...]
    left_out: tuple[str, ...]


def _made_anew(fitting: _Fitting) -> Iterator[str]:
    """Yield what to say of tensors that are computed from those of the checkpoint."""
    before = _by_path(fitting.arranged.checkpoint)
    after = _by_path(fitting.result)
    names = [
        (join_path(each.path, item.name), join_path(each.path, item.source))
        for each in fitting.fitted
        for item in each.plan.items
        if item.source is not None
    ]
    pairs = [(new, before[old]) for new, old in names if old in before and new in after]
    return computed_anew(pairs, after)


def _by_path(checkpoint: Checkpoint) -> dict[str, Entry]:
    return {join_path(s.path, e.name): e for s in checkpoint.state_dicts for e in s.entries}


def prepare(
    asked: FitRequest,
    checkpoint: Checkpoint,
    aim: Aim,
    inputs: Inputs,
    like: str | None = None,
    *,
    output: Output | None = None,
) -> _Fitting:
    """Plan a fit and apply the plan; values are computed when they are written.

    `like` is what plans call the file of the target, by default its name. Raises as `fit` does.
    """
    arranged = arrange(asked, checkpoint, aim)
    asked = arranged.asked
    checkpoint = for_output(arranged.checkpoint, output or Output(dry_run=True))
    options = asked.options
    if asked.initial is not None:
        options = replace(options, may_be_initial=_permitted(asked.initial, aim))
    chosen = choose_state_dicts(checkpoint, asked.at)
    seen = views(checkpoint, asked.at)
    fitted, targets = _plan_all(checkpoint, seen, aim, options, arranged)
    with _naming(checkpoint, chosen[0], several=False):
        check_adaptations([i for each in fitted for i in each.plan.items], options.rules)
    label = like or next(iter(aim.inputs), None)
    goal = FitTarget.of(asked.model, asked.model_args, asked.settings, label, asked.build)
    keep_aim(inputs, goal, aim)
    fits = Plan(
        tuple(
            Fit.of(view.path, f.plan.items, target, goal, asked.seed, view.prefix)
            for view, f, target in zip(seen, fitted, targets, strict=True)
        )
    )
    result = fits.apply(checkpoint, inputs)
    # what lies beside weights that are written alone need not follow them
    beside = replace(checkpoint, others=()) if asked.state_dict_only else checkpoint
    step = optimizers_in_step(beside, result, seen, fitted, aim.target, asked)
    averages = averages_in_new_order(beside, _tensors_by_now(seen, fitted)) if beside.others else []
    result = Plan((*following(step), *averages)).apply(result)
    left = tuple(_left_out(chosen, result))
    versions = tuple(_versions_left_out(chosen, result))
    alone = _alone(checkpoint, asked)
    result = Plan(alone).apply(result)
    said = [
        *_warnings(() if alone else result.state_dicts, chosen, fitted),
        *versions,
        *step.warnings,
    ]
    if beside.others:
        said += averages_left_behind(beside, result, {each.path for each in averages})
        said += names_left_behind_by(beside, result)
    planned = Planned(
        Plan((*arranged.edits, *fits.edits, *following(step), *averages, *alone)),
        warnings=(*arranged.warnings, *said),
        optimizers=(*arranged.optimizers, *step.changes),
    )
    return _Fitting(arranged, planned, result, tuple(fitted), left)


def _tensors_by_now(
    seen: Sequence[View], fitted: Sequence[Fitted]
) -> dict[str, list[tuple[str, str | None]]]:
    """Return the tensors of each fitted state dict: name, and the checkpoint's if it is that."""
    return {
        view.path: [(i.name, i.source if i.is_verbatim else None) for i in each.plan.items]
        for view, each in zip(seen, fitted, strict=True)
        if not view.prefix
    }


def _alone(checkpoint: Checkpoint, asked: FitRequest) -> tuple[OnlyStateDict, ...]:
    """Return the edit that writes the state dict alone, if that is asked for."""
    if not asked.state_dict_only:
        return ()
    return (OnlyStateDict(the_one(checkpoint, asked.at)[0].path),)


def _named_as(fitted: Sequence[Fitted], casts: Sequence[Cast]) -> Iterator[Cast]:
    """Call casts as the report does: of one state dict by their names alone."""
    path = join_path(fitted[0].path, "") if len(fitted) == 1 else ""
    for cast in casts:
        yield replace(cast, name=cast.name.removeprefix(path))


def _left_out(chosen: Sequence[StateDict], result: Checkpoint) -> Iterator[str]:
    """Yield what is among the weights without being a tensor, and not in the result."""
    fitted = {state_dict.path: state_dict for state_dict in result.state_dicts}
    for state_dict in chosen:
        kept = set(fitted[state_dict.path].names)
        for entry in state_dict.entries:
            if entry.tensor is None and entry.name not in kept:
                yield join_path(state_dict.path, entry.name)


def _permitted(initial: Selection, aim: Aim) -> Callable[[str], bool]:
    names = aim.target.names
    chosen = initial.choose(names)
    unmatched = (rule.text for rule, count in chosen.counts if not count)
    text = None if initial.allow_unmatched else next(unmatched, None)
    if text is not None:
        raise UsageError(
            f"'initial {text}' matches nothing in the target",
            hint=near_hint(text, names),
            fields=("initial",),
        )
    initial.require_matches(chosen.counts, names)
    return chosen.chosen.__contains__


@contextmanager
def _naming(checkpoint: Checkpoint, state_dict: StateDict, *, several: bool) -> Iterator[None]:
    """Say in an error which file and which of several state dicts it is about."""
    try:
        with about_file(checkpoint.file.name):
            yield
    except CkptError as error:
        if several and error.entry is None:
            error.entry = state_dict.path
            error.hint = error.hint or "--at chooses which state dicts to fit"
        raise


def _plan_all(
    checkpoint: Checkpoint,
    seen: Sequence[View],
    aim: Aim,
    options: FitOptions,
    arranged: Arranged,
) -> tuple[list[Fitted], list[Target]]:
    """Plan the fit of each view, and return what each is fitted to.

    That is the target, but an average that lacks what its model has goes on lacking it.
    """
    lacking = _lacking(checkpoint, seen)
    planned: dict[int, Fitted] = {}
    of_path: dict[str, Fitted] = {}
    targets = [aim.target] * len(seen)
    for index in sorted(range(len(seen)), key=lambda index: seen[index].path in lacking):
        view = seen[index]
        with _naming(checkpoint, view.state_dict, several=len(seen) > 1):
            if view.path in lacking:
                model, names = lacking[view.path]
                gone = {item.name for item in of_path[model].plan.items if item.source in names}
                targets[index] = aim.target.without(gone)
            its_aim = replace(aim, target=targets[index])
            decided = arranged.decided.get(view.path, ())
            planned[index] = _plan(view.state_dict, its_aim, options, arranged.asked, decided)
        of_path.setdefault(view.path, planned[index])
    return [planned[index] for index in range(len(seen))], targets


def _lacking(checkpoint: Checkpoint, seen: Sequence[View]) -> dict[str, tuple[str, set[str]]]:
    """Return, by the paths of averages, their model and what of it they have no average of.

    Averages of the parameters alone are such.
    """
    paths = [view.path for view in seen]
    if len(seen) < 2 or all(view.state_dict.kind == "model" for view in seen):
        return {}
    whole = {view.path: set(view.state_dict.names) for view in seen}
    found: dict[str, tuple[str, set[str]]] = {}
    for average in find_averages(checkpoint):
        model = average.model
        if average.place != "state dict" or average.swapped or model not in whole:
            continue
        names = whole[model] - set(average.names)
        if names and average.names and paths.count(average.path) == 1:
            found.setdefault(average.path, (model, names))
    return found


def _plan(
    state_dict: StateDict,
    aim: Aim,
    options: FitOptions,
    request: FitRequest,
    decided: Sequence[Decided],
) -> Fitted:
    source = describe(state_dict)
    renames = request.renames or {}
    fused = (name for each in decided for name in each.layout.sources)
    names = [spec.name for spec in source.specs]
    check_map(renames, names, [*aim.target.names, *(fused if renames else ())])
    found = correspond(
        source.specs,
        aim.target.tensors,
        level=request.level,
        upgraded=aim.upgraded(source),
        renames=renames,
    )
    plan = plan_fit(
        source.specs,
        aim.target,
        found,
        options,
        source_ties=source.ties,
        source_metadata=source.metadata,
    )
    tensors = dict(state_dict.tensors)
    for item in plan.items:
        computes = item.tie_of is None and not item.is_verbatim and item.status != "initial"
        if computes and item.source is not None and not can_load(tensors[item.source]):
            raise LossyEditError(
                f"'{item.source}' is no plain tensor, so it can only be copied as it is",
                hint=f"the target wants {item.dtype} {list(item.shape)}",
            )
    whole = {i.name for i in plan.items if i.adaptation and i.adaptation.kind in _SAME_NUMBERS}
    open_ones = (
        each
        for each in decided
        if each.is_applied or each.layout.how != "reshape" or {*each.layout.targets} - whole
    )
    return Fitted(state_dict.path, state_dict.kind, found, plan, tuple(open_ones))


def _write_map(path: PathLike, fitted: Sequence[Fitted], output: Output) -> None:
    found: list[Correspondence] = [each.found for each in fitted]
    if any(each.renames != found[0].renames for each in found):
        raise UsageError(
            "the state dicts differ in how their names are paired, so one map cannot say it",
            hint="--at chooses one of them",
        )
    form = "json" if Path(path).suffix.lower() == ".json" else "toml"
    text = format_proposal(found[0], "json" if form == "json" else "toml")
    write_unless_same(path, text.encode(), force=output.force, if_changed=output.if_changed)


def _versions_left_out(chosen: Sequence[StateDict], result: Checkpoint) -> Iterator[str]:
    """Yield what to say of ``_metadata`` where the target, a file, has none."""
    fitted = {state_dict.path: state_dict for state_dict in result.state_dicts}
    for each in chosen:
        if each.metadata and each.path in fitted and not fitted[each.path].metadata:
            what = join_path(each.path, "_metadata")
            yield f"'{what}' is left out: the target has no versions of modules"


def _warnings(
    result: Sequence[StateDict], chosen: Sequence[StateDict], fitted: Sequence[Fitted]
) -> Iterator[str]:
    for each in fitted:
        for note in each.plan.notes:
            yield join_path(each.path, note) if len(fitted) > 1 else note
    paths = {each.path for each in chosen}
    for state_dict in result:
        if state_dict.path not in paths:
            yield f"'{state_dict.path}' is carried over as it was, and may not load into the target"
