"""Moving averages of a model's weights (EMA, SWA): finding them, and putting them in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict
from ckpt_surgery.edits.plan import (
    DropStateDict,
    Edit,
    Plan,
    TakeWeights,
)
from ckpt_surgery.errors import LimitExceededError, LossyEditError, PlanError, UsageError
from ckpt_surgery.pickles import walk
from ckpt_surgery.torch_objects.kinds import COUNT
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.training.optimizers.correspond import bare_name

_MOST_PAIRS: Final = 4096


def find_averages(checkpoint: Checkpoint) -> list[tuple[StateDict, StateDict]]:
    """Pairs of a model and an average of it: the same names and shapes, wrappers aside.

    An average may lack buffers. Raises LimitExceededError if there are thousands to compare.
    """
    averages = [s for s in checkpoint.state_dicts if s.kind == "ema"]
    models = [s for s in checkpoint.state_dicts if s.kind == "model"]
    if len(averages) * len(models) > _MOST_PAIRS:
        raise LimitExceededError(
            f"there are {len(averages)} moving averages for {len(models)} models"
        )
    return [(m, average) for average in averages for m in models if _is_average_of(average, m)]


def take_weights(checkpoint: Checkpoint, path: str, average_path: str) -> Checkpoint:
    """The state dict at `path` with the values of the one at `average_path`, under its own names.

    Buffers that the average lacks stay. Raises PlanError if it is no average of that model.
    """
    known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    model, average = known.get(path), known.get(average_path)
    if model is None or average is None or not _is_average_of(average, model):
        raise PlanError(
            f"'{average_path}' is no average of the weights in '{path}'", path=checkpoint.file.name
        )
    values = _by_bare_name(average)
    entries = tuple(
        replace(entry, tensor=value.tensor, node=value.node)
        if (value := values.get(bare_name(entry.name))) is not None
        else entry
        for entry in model.entries
    )
    return _with_state_dicts(checkpoint, {path: replace(model, entries=entries)})


def drop_state_dict(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """`checkpoint` without the state dict at `path`.

    Raises LossyEditError if it is not an item of a dictionary.
    """
    gone = next(s for s in checkpoint.state_dicts if s.path == path)
    for node in walk(checkpoint.root):
        for key, value in mapping_pairs(node) or ():
            if value is gone.node:
                other = Other(path, "", node=value, parent=node, key_node=key)
                kept = _with_state_dicts(checkpoint, {path: None})
                return replace(kept, dropped=(*checkpoint.dropped, other))
    raise LossyEditError("only an entry of a dictionary can be dropped", entry=path or None)


def _with_state_dicts(
    checkpoint: Checkpoint, changed: Mapping[str, StateDict | None]
) -> Checkpoint:
    new = (changed.get(s.path, s) for s in checkpoint.state_dicts)
    return replace(checkpoint, state_dicts=tuple(s for s in new if s is not None))


def _by_bare_name(state_dict: StateDict) -> dict[str, Entry]:
    return {bare_name(e.name): e for e in state_dict.entries if e.name != COUNT}


def _is_average_of(average: StateDict, model: StateDict) -> bool:
    own, averaged = _by_bare_name(model), _by_bare_name(average)
    if not averaged or not averaged.keys() <= own.keys():
        return False
    shapes_agree = all(_shape(entry) == _shape(own[name]) for name, entry in averaged.items())
    return shapes_agree and all(
        name in averaged or entry.role == "buffer" or entry.tensor is None
        for name, entry in own.items()
    )


def _shape(entry: Entry) -> tuple[int, ...] | None:
    return None if entry.tensor is None else entry.tensor.shape


def plan_averages(checkpoint: Checkpoint, *, publish: bool) -> Plan:
    """Leave out the moving averages of models that are there too; `publish` them in their place.

    Raises UsageError if there is none to publish, or if one model has several.
    """
    from ckpt_surgery.edits.averages import find_averages

    pairs = find_averages(checkpoint)
    edits: list[Edit] = []
    if publish:
        if not pairs:
            raise UsageError(
                "'--ema': there is no moving average of a model's weights",
                path=checkpoint.file.name,
                hint="'ckpt inspect' shows the state dicts of a file and their kinds",
            )
        models = [model.path for model, _ in pairs]
        twice = next((path for path in models if models.count(path) > 1), None)
        if twice is not None:
            averages = ", ".join(f"'{a.path}'" for m, a in pairs if m.path == twice)
            raise UsageError(
                f"'--ema': the model in '{twice}' has several averages: {averages}",
                path=checkpoint.file.name,
                hint="ckpt convert --at PATH writes one of them alone",
            )
        edits += (TakeWeights(model.path, average.path) for model, average in pairs)
    edits += (DropStateDict(path) for path in dict.fromkeys(a.path for _, a in pairs))
    return Plan(tuple(edits))
