"""The optimizers of a checkpoint, each with the model that it trains."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict, join_path
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import Node, Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import mapping_length
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.training_state import TrainingStates
from ckpt_surgery.training.optimizers.correspond import StateOwners, correspond
from ckpt_surgery.training.optimizers.items import Items
from ckpt_surgery.training.optimizers.recognise import (
    OptimizerState,
    find_optimizers,
    read_optimizer,
)
from ckpt_surgery.training.parameters import Inventory

_MOST_MODELS: Final = 32  # among which the one that an optimizer trains is looked for
_MOST_COMPARED: Final = 1_000_000  # parameters and states, over all comparisons
_OPTIMIZER_NAME: Final = re.compile(r"(^|_)(optim|optimizer|opt)(s|_|$)")


@dataclass(frozen=True)
class TrainedModel:
    """State dicts whose parameters an optimizer holds, mostly one.

    `parameters` are names and shapes in the order of ``parameters()``, each tied one once; of
    several state dicts the names are ``path/name``. With `every` all tensors are parameters.
    """

    state_dicts: tuple[StateDict, ...]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    every: bool = False

    @classmethod
    def of(cls, state_dicts: Sequence[StateDict], *, every: bool = False) -> TrainedModel:
        """Return the parameters of these state dicts, one after the other."""
        parameters = [
            (qualified(state_dicts, state_dict, parameter.name), parameter.shape)
            for state_dict in state_dicts
            for parameter in Inventory.of_state_dict(state_dict, every=every).parameters
        ]
        return cls(tuple(state_dicts), tuple(parameters), every)


@dataclass(frozen=True)
class FoundOptimizer:
    """An optimizer at `path` in the file, below the entry `other`.

    `source` is the node that the file has; `state` may be of one that replaces it. `model` is
    None if it cannot be told. `rivals` are the other state dicts that it may train.
    """

    path: str
    other: Other
    source: Node
    state: OptimizerState
    model: TrainedModel | None
    correspondence: StateOwners
    rivals: tuple[StateDict, ...] = ()


def find(checkpoint: Checkpoint, items: Items | None = None) -> list[FoundOptimizer]:
    """Return every optimizer beside the state dicts, in the order of the file; one that stands in
    two places is found in the first.
    """
    reader = TensorReader()
    items, seen = items or Items(), set[int]()
    models = _Models(checkpoint.state_dicts)
    found: list[FoundOptimizer] = []
    for other in checkpoint.others:
        for below, original in find_optimizers(other.node, reader.describe, items, seen):
            path = "/".join(part for part in (other.path, below) if part)
            state = original
            edited = checkpoint.replaced.get(id(original.node))
            if edited is not None:
                state = read_optimizer(edited, reader.describe) or original
            found.append(_placed(path, other, original.node, state, models))
    return found


def at_paths(checkpoint: Checkpoint, paths: Collection[str]) -> dict[str, FoundOptimizer]:
    """Return the optimizers at these paths, as far as there are any; their models are not sought.

    The paths are those of `find`. Only entries that they lead into are looked at.
    """
    reader, items, seen = TensorReader(), Items(), set[int]()
    above = {"", *paths}
    for path in paths:
        above.update(path[: match.start()] for match in re.finditer("/", path))
    nobody = StateOwners("none", "its model was not looked for", {})
    found: dict[str, FoundOptimizer] = {}
    for other in checkpoint.others:
        if other.path not in above:
            continue
        for below, state in find_optimizers(other.node, reader.describe, items, seen):
            path = "/".join(part for part in (other.path, below) if part)
            if path in paths and path not in found:
                edited = checkpoint.replaced.get(id(state.node))
                now = None if edited is None else read_optimizer(edited, reader.describe)
                found[path] = FoundOptimizer(path, other, state.node, now or state, None, nobody)
    return found


def unknown_optimizers(checkpoint: Checkpoint, found: Sequence[FoundOptimizer]) -> list[str]:
    """Return paths of entries that are optimizers, by their name or form, but hold none that can
    be edited.
    """
    known = {optimizer.other.path for optimizer in found}
    states = TrainingStates()
    return [
        other.path
        for other in checkpoint.others
        if other.path not in known
        and (is_called_optimizer(other.path) or states.holds_optimizers(other.node))
        and (
            mapping_length(other.node) or (isinstance(other.node, list | Object) and other.tensors)
        )
    ]


def is_called_optimizer(path: str) -> bool:
    """Return whether an entry is called as one calls optimizers, whatever its form."""
    return _OPTIMIZER_NAME.search(path.rpartition("/")[2].lower()) is not None


def qualified(state_dicts: Sequence[StateDict], state_dict: StateDict, name: str) -> str:
    """`name`, with the path of its state dict where an optimizer holds those of several."""
    return name if len(state_dicts) == 1 else join_path(state_dict.path, name)


class _Models:
    """The models of a file, each described once, and a bound on comparing them."""

    def __init__(self, state_dicts: Sequence[StateDict]) -> None:
        self._candidates = [s for s in state_dicts if s.kind == "model" and s.entries]
        self._candidates = self._candidates or list(state_dicts)
        self._known: dict[tuple[int, ...], TrainedModel] = {}
        self._left = _MOST_COMPARED

    def nearest(self, path: str) -> list[StateDict]:
        """Return the state dicts that lie closest to an entry; averages
        only if there is nothing else.
        """
        if len(self._candidates) > _MOST_MODELS:
            return self._candidates
        depth = [_common(s.path, path) for s in self._candidates]
        return [s for s, d in zip(self._candidates, depth, strict=True) if d == max(depth)]

    def compare(
        self, state: OptimizerState, state_dicts: Sequence[StateDict]
    ) -> tuple[TrainedModel, StateOwners]:
        """Return an optimizer matched with the parameters of these state dicts."""
        key = tuple(map(id, state_dicts))
        if key not in self._known:
            self._known[key] = TrainedModel.of(state_dicts)
        model = self._known[key]
        tensors = sum(entry.tensor is not None for s in state_dicts for entry in s.entries)
        if len(model.parameters) < len(state.keys) == tensors:
            model = TrainedModel.of(state_dicts, every=True)  # integers are parameters, too
        self._left -= len(model.parameters) + len(state.keys)
        if self._left < 0:
            return model, StateOwners("none", "there are too many optimizers", {})
        return model, correspond(state, model.parameters)


def _placed(
    path: str, other: Other, source: Node, state: OptimizerState, models: _Models
) -> FoundOptimizer:
    """Return the optimizer with the state dict that it fits best."""
    near = models.nearest(path)

    def unplaced(reason: str) -> FoundOptimizer:
        nothing = StateOwners("none", reason, {})
        return FoundOptimizer(path, other, source, state, None, nothing, tuple(near))

    if not near:
        return unplaced("there is no state dict that it could belong to")
    if len(near) > _MOST_MODELS:
        return unplaced(f"there are {len(near)} models that it may belong to")
    try:
        tried = [models.compare(state, [state_dict]) for state_dict in near]
        if len(near) > 1 and not any(_fits(each) for _, each in tried):
            tried.append(models.compare(state, near))
    except LimitExceededError as error:
        return unplaced(error.message)
    tried.sort(key=lambda item: _rank(item[1]))
    model, best = tried[0]
    # whatever fits as well is a rival; if nothing fits, everything is
    alike = [m for m, each in tried[1:] if _rank(each) == _rank(best) or not _fits(best)]
    rivals = tuple(m.state_dicts[0] for m in alike if len(m.state_dicts) == 1)
    return FoundOptimizer(path, other, source, state, model, best, rivals)


def _fits(correspondence: StateOwners) -> bool:
    return correspondence.certain and len(correspondence.foreign) < len(correspondence.names)


def _rank(correspondence: StateOwners) -> tuple[bool, int, int]:
    """Lower is better: certain, then fewer names of nobody, then more that are known."""
    certain = {"stored": 0, "order": 0, "partial": 1, "none": 2}[correspondence.certainty]
    return not _fits(correspondence), certain, len(correspondence.foreign)


def _common(one: str, other: str) -> int:
    """Return how many leading keys the places of two entries share."""
    count = 0
    for a, b in zip(one.split("/")[:-1], other.split("/")[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count
