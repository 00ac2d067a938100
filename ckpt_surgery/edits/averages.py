"""Moving averages of a model's weights (EMA, SWA): finding them, and putting them in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict
from ckpt_surgery.edits.base import BatchEdit, Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import not_there, with_state_dicts
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import LimitExceededError, LossyEditError, PlanError, UsageError
from ckpt_surgery.pickles import walk
from ckpt_surgery.torch_objects.kinds import COUNT
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.training.optimizers.correspond import bare_name

_MOST_PAIRS: Final = 4096


def _find_averages(checkpoint: Checkpoint) -> list[tuple[StateDict, StateDict]]:
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


@dataclass(frozen=True, slots=True)
class TakeWeights(Edit):
    """Give the state dict `state_dict` the values that the state dict `old` has for its names."""

    kind: ClassVar[str] = "take-weights"
    state_dict: str
    old: str

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the average's values under the model's own names.

        Buffers that the average lacks stay. Raises `PlanError` if it is no average of that model.
        """
        known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
        model, average = known.get(self.state_dict), known.get(self.old)
        if model is None or average is None or not _is_average_of(average, model):
            raise PlanError(
                f"'{self.old}' is no average of the weights in '{self.state_dict}'",
                path=checkpoint.file.name,
            )
        values = _by_bare_name(average)
        entries = tuple(
            replace(entry, tensor=value.tensor, node=value.node)
            if (value := values.get(bare_name(entry.name))) is not None
            else entry
            for entry in model.entries
        )
        return with_state_dicts(checkpoint, {self.state_dict: replace(model, entries=entries)})


@dataclass(frozen=True, slots=True)
class DropStateDict(BatchEdit):
    """Remove a whole state dict: a moving average."""

    kind: ClassVar[str] = "drop-state-dict"
    path: str

    def path_after(self, path: str) -> str | None:
        """Return None for that state dict."""
        return None if path == self.path else path

    @classmethod
    def apply_all(
        cls,
        run: Sequence[DropStateDict],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint without these state dicts.

        Raises `LossyEditError` for one that is not an item of a dictionary.
        """
        known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
        for edit in run:
            if edit.path not in known:
                raise not_there(checkpoint, edit.path)
        places = _places(checkpoint, [known[edit.path] for edit in run])
        for edit in run:
            if edit.path not in places:
                raise LossyEditError(
                    "only an entry of a dictionary can be dropped", entry=edit.path or None
                )
        kept = with_state_dicts(checkpoint, dict.fromkeys(places))
        return replace(kept, dropped=(*checkpoint.dropped, *places.values()))


def _places(checkpoint: Checkpoint, state_dicts: Sequence[StateDict]) -> dict[str, Other]:
    """Return, by their paths, where state dicts are items of a dictionary; found in one walk."""
    wanted = {id(state_dict.node): state_dict.path for state_dict in state_dicts}
    places: dict[str, Other] = {}
    for node in walk(checkpoint.root):
        for key, value in mapping_pairs(node) or ():
            path = wanted.pop(id(value), None)
            if path is not None:
                places[path] = Other(path, "", node=value, parent=node, key_node=key)
        if not wanted:
            break
    return places


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
    pairs = _find_averages(checkpoint)
    edits: list[Edit] = []
    if publish:
        if not pairs:
            raise UsageError(
                "'ema': there is no moving average of a model's weights",
                fields=("ema",),
                path=checkpoint.file.name,
                hint="'ckpt inspect' shows the state dicts of a file and their kinds",
            )
        models = [model.path for model, _ in pairs]
        twice = next((path for path in models if models.count(path) > 1), None)
        if twice is not None:
            averages = ", ".join(f"'{a.path}'" for m, a in pairs if m.path == twice)
            raise UsageError(
                f"'ema': the model in '{twice}' has several averages: {averages}",
                fields=("ema",),
                path=checkpoint.file.name,
                hint="ckpt convert --at PATH writes one of them alone",
            )
        edits += (TakeWeights(model.path, average.path) for model, average in pairs)
    edits += (DropStateDict(path) for path in dict.fromkeys(a.path for _, a in pairs))
    return Plan(tuple(edits))
