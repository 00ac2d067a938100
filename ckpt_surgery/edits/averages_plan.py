"""Planning what becomes of moving averages: published, left out, or kept in step."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict, join_path
from ckpt_surgery.edits.averages import DropStateDict, TakeWeights, UpdateAverage
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.compact import Compact
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.entries import RenameEntry
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.metadata import strip_metadata
from ckpt_surgery.training.averages import Average, find_averages

_PLACES: Final = ("model", "state_dict", "model_state_dict")


def plan_averages(checkpoint: Checkpoint, *, publish: bool) -> Planned:
    """Leave out the moving averages of models that are there too; `publish` them in their place.

    Where saving has swapped the two, the model's place holds the average already, and the weights
    in training go: they are what only resuming needs. Raises `UsageError` if there is none to
    publish, or if one model has several.
    """
    every = find_averages(checkpoint)
    found = [average for average in every if average.model is not None]
    if publish and not any(average.names for average in found):
        vacant = [(a, place) for a in every if (place := _vacant_place(checkpoint, a)) is not None]
        if len(vacant) == 1:
            return Planned(Plan(_moved_to(checkpoint, *vacant[0])))
    if publish:
        _require_one_each(checkpoint, found)
    edits: list[Edit] = [
        TakeWeights(average.model, average.path)
        for average in found
        if publish and average.model is not None and not (average.swapped or average.copy_of)
    ]
    warnings: list[str] = []
    known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    dropped = dict.fromkeys(
        average.model if average.swapped else average.path
        for average in found
        if average.place == "state dict"
    )
    for average in found:
        if average.place == "inside":
            edits += _drop_inside(known[average.path], average)
        if average.swapped and not publish:
            warnings.append(
                f"the weights in '{average.path}' are the average, as {average.title} saves it; "
                f"those in training, '{average.model}', go"
            )
    edits += (DropStateDict(path) for path in dropped if path is not None)
    others = {other.path for other in checkpoint.others}
    beside = dict.fromkeys(path for average in found for path in _beside(average))
    edits += (DropOther(path) for path in beside if path in others)
    return Planned(Plan(tuple(edits)), warnings=tuple(warnings))


def _vacant_place(checkpoint: Checkpoint, average: Average) -> Other | None:
    """Return the model's place beside an average that was saved alone: ultralytics writes None
    there.
    """
    if average.place != "state dict" or average.model is not None:
        return None
    holder = average.path.rpartition("/")[0]
    beside = (o for o in checkpoint.others if o.path in {join_path(holder, n) for n in _PLACES})
    places = [other for other in beside if other.node is None and other.parent is not None]
    return places[0] if len(places) == 1 else None


def _moved_to(checkpoint: Checkpoint, average: Average, place: Other) -> tuple[Edit, ...]:
    """Return the edits that put an average which was saved alone into the model's place."""
    known = {other.path for other in checkpoint.others}
    counters = (DropOther(path) for path in average.beside if path in known)
    key = place.path.rpartition("/")[2]
    return (DropOther(place.path), *counters, RenameEntry(average.path, key))


def _require_one_each(checkpoint: Checkpoint, found: Sequence[Average]) -> None:
    usable = [average for average in found if average.names and not average.copy_of]
    if not usable:
        reason = next((average.reason for average in found), "")
        raise UsageError(
            "'ema': there is no moving average of a model's weights"
            + (f" of which it is certain which is which: {reason}" if reason else ""),
            fields=("ema",),
            path=checkpoint.file.name,
            hint="'ckpt inspect' shows the state dicts of a file and their kinds",
        )
    models = [average.model for average in usable]
    twice = next((path for path in models if models.count(path) > 1), None)
    if twice is not None:
        averages = ", ".join(f"'{a.path}'" for a in usable if a.model == twice)
        raise UsageError(
            f"'ema': the model in '{twice}' has several averages: {averages}",
            fields=("ema",),
            path=checkpoint.file.name,
            hint="ckpt convert --state-dict-only --at PATH writes one of them alone",
        )


def _drop_inside(state_dict: StateDict, average: Average) -> list[Edit]:
    """Edits that leave an average out which lies among the weights of its model."""
    prefixes = (average.wrapper,)
    gone = [
        name for name in state_dict.names if name.startswith(prefixes) or name in average.counters
    ]
    left = [name for name in state_dict.names if name not in set(gone)]
    modules = list(state_dict.metadata or ())
    kept = set(strip_metadata(modules, state_dict.names, left))
    path = state_dict.path
    return [
        *(Drop(path, name) for name in gone),
        *(RenameModule(path, module, None) for module in modules if module not in kept),
    ]


def _beside(average: Average) -> tuple[str, ...]:
    """Return the paths of what goes with an average: its counters elsewhere, the entry that is
    one.
    """
    return (*average.beside, average.path) if average.place == "list" else average.beside


def with_averages(checkpoint: Checkpoint, planned: Planned) -> Planned:
    """Return the plan, extended so that averages which are no state dicts stay in step.

    Of one that cannot a warning says so.
    """
    edits: list[Edit] = []
    warnings: list[str] = []
    after = None
    dropped = {edit.path for edit in planned.plan.edits if isinstance(edit, DropOther)}
    for average in find_averages(checkpoint):
        if average.place not in {"list", "entry"} or average.model is None:
            continue
        if any(average.path == path or average.path.startswith(f"{path}/") for path in dropped):
            continue
        if after is None:
            after = {s.path: s for s in planned.plan.apply(checkpoint).state_dicts}
        before = next(s for s in checkpoint.state_dicts if s.path == average.model)
        names = _new_names(planned.plan, average.model)
        change = _followed(average, before, after.get(average.model), names)
        if change is not None and average.names:
            edits.append(UpdateAverage(average.path, change))
        elif change is not None:
            warnings.append(
                f"the average in '{average.path}' stays as it is, out of step with its model: "
                f"{average.reason}"
            )
    last = [edit for edit in planned.plan.edits if isinstance(edit, Compact)]
    first = [edit for edit in planned.plan.edits if not isinstance(edit, Compact)]
    return replace(
        planned,
        plan=Plan((*first, *edits, *last)),
        warnings=(*planned.warnings, *warnings),
    )


def averages_in_new_order(
    checkpoint: Checkpoint, tensors: Mapping[str, Sequence[tuple[str, str | None]]]
) -> list[UpdateAverage]:
    """Return the edits that let averages which are no state dicts follow models made anew.

    `tensors` are those of each model by now, by its path: the name, and what the tensor was called
    before, None if it is not one of the checkpoint's as it was. Of that there is no average, and
    one that would need it does not follow.
    """
    edits = []
    for average in find_averages(checkpoint):
        found = tensors.get(average.model or "") if average.model is not None else None
        if average.place not in {"list", "entry"} or not average.names or found is None:
            continue
        whole = [(new, old) for new, old in found if old is not None]
        if len(whole) < len(found):
            continue
        pairs = [(new, average.names[old]) for new, old in whole if old in average.names]
        named = average.place == "entry"
        change = {new if named else str(place): old for place, (new, old) in enumerate(pairs)}
        if change and list(change.items()) != [(old, old) for old in average.names.values()]:
            edits.append(UpdateAverage(average.path, change))
    return edits


def averages_left_behind(
    before: Checkpoint, after: Checkpoint, followed: Container[str] = ()
) -> Iterator[str]:
    """Yield a sentence for each average that is no state dict and whose model is another now.

    Those at the paths `followed` are, too.
    """
    if not before.others:
        return
    known = {other.path for other in after.others}
    old = {state_dict.path: state_dict for state_dict in before.state_dicts}
    new = {state_dict.path: state_dict for state_dict in after.state_dicts}
    for average in find_averages(before):
        if average.place not in {"list", "entry"} or average.model not in new:
            continue
        if average.path in followed:
            continue
        if not any(average.path == path or average.path.startswith(f"{path}/") for path in known):
            continue
        own, now = old[average.model], new[average.model]
        named = average.place == "entry"
        if _parameters_of(own, named=named) != _parameters_of(now, named=named):
            yield (
                f"the average in '{average.path}' is carried over as it was, out of step with its "
                "model"
            )


def _parameters_of(state_dict: StateDict, *, named: bool) -> list[object]:
    """Return what tells parameters apart: their names, where they lie, in their order."""
    return [
        (name if named else None, id(tensor.storage), tensor.offset, tensor.shape)
        for name, tensor in state_dict.tensors
    ]


def _new_names(plan: Plan, path: str) -> dict[str, str]:
    renames = (edit for edit in plan.edits if isinstance(edit, Rename) and edit.state_dict == path)
    return {edit.old: edit.new for edit in renames}


def _followed(
    average: Average, before: StateDict, after: StateDict | None, names: dict[str, str]
) -> dict[str, str] | None:
    """Return what is left of an average, by new names; None if nothing of it changes."""
    gone = set(before.names) if after is None else set()
    if after is not None:
        left = set(after.names)
        gone = {name for name in before.names if names.get(name, name) not in left}
    change: dict[str, str] = {}
    for name in average.names:
        if name not in gone:
            old = average.names[name]
            new = names.get(name, name) if average.place == "entry" else str(len(change))
            change[new] = old
    same = all(new == old for new, old in change.items()) and len(change) == len(average.names)
    if average.names:
        return None if same else change
    touched = bool(gone) or (bool(names) and average.place == "entry")
    return {} if touched else None
