"""What is known of the training state in a file, and what became of it, as data for reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A parameter group: how many parameters it has, and its options (``lr``, …)."""

    parameters: int
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "options": dict(self.options)}


@dataclass(frozen=True, slots=True)
class StateFacts:
    """One parameter of an optimizer.

    `name` is None if it is not certain; it is then one of `candidates`, if there are any. `group`
    is a position, `step` how many steps it has taken, `tensors` the names of its state tensors of
    the parameter's shape, `nbytes` the bytes of all its state.
    """

    key: int | str
    name: str | None
    candidates: tuple[str, ...]
    group: int
    step: int | float | None
    tensors: tuple[str, ...]
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "key": self.key,
            "name": self.name,
            "group": self.group,
            "step": self.step,
            "tensors": list(self.tensors),
            "nbytes": self.nbytes,
        }
        if self.candidates:
            found["candidates"] = list(self.candidates)
        return found


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """An optimizer's state dict, and the parameters that it belongs to.

    `layout` names the optimizer of torch that leaves such a state. `certainty` says how its
    parameters are known: ``stored`` names, ``order`` (and shapes), ``partial`` or ``none``.
    """

    path: str
    layout: str
    state_dicts: tuple[str, ...]
    certainty: str
    reason: str
    groups: tuple[GroupFacts, ...]
    parameters: tuple[StateFacts, ...]
    states: int
    nbytes: int

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates of its groups, each once."""
        rates = (group.options.get("lr") for group in self.groups)
        return tuple(dict.fromkeys(rate for rate in rates if isinstance(rate, int | float)))

    @property
    def steps(self) -> tuple[float, ...]:
        """The smallest and the largest step count, once if they are the same."""
        steps = [state.step for state in self.parameters if state.step is not None]
        return tuple(dict.fromkeys((min(steps), max(steps)))) if steps else ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "layout": self.layout,
            "state_dicts": list(self.state_dicts),
            "certainty": self.certainty,
            "reason": self.reason,
            "nbytes": self.nbytes,
            "groups": [group.to_dict() for group in self.groups],
            "parameters": [state.to_dict() for state in self.parameters],
        }


@dataclass(frozen=True, slots=True)
class SchedulerFacts:
    """A learning rate scheduler; `inner` counts those that it runs one after another."""

    last_epoch: int | float | None
    last_lr: tuple[float, ...] = ()
    inner: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "last_lr": list(self.last_lr), "inner": self.inner}


@dataclass(frozen=True, slots=True)
class ScalerFacts:
    """The gradient scaler of mixed precision; None for what could not be read."""

    scale: int | float | None
    growth_tracker: int | float | None

    def to_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "growth_tracker": self.growth_tracker}


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What an entry beside the state dicts says about the training."""

    kind: str
    optimizers: tuple[OptimizerFacts, ...] = ()
    schedulers: tuple[SchedulerFacts, ...] = ()
    scaler: ScalerFacts | None = None
    callbacks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"kind": self.kind}
        if self.optimizers:
            document["optimizers"] = [each.to_dict() for each in self.optimizers]
        if self.schedulers:
            document["schedulers"] = [each.to_dict() for each in self.schedulers]
        if self.scaler is not None:
            document["scaler"] = self.scaler.to_dict()
        if self.callbacks:
            document["callbacks"] = list(self.callbacks)
        return document


@dataclass(frozen=True, slots=True)
class AverageFacts:
    """A moving average: who writes one so, where it lies, and what it averages.

    `counters` are its own numbers by their name, None for one that is not a plain number.
    `follows`: whether edits of the model can keep it in step; otherwise `reason` says why not.
    """

    title: str
    path: str
    place: str
    model: str | None
    wrapper: str
    swapped: bool
    counters: Mapping[str, int | float | bool | None]
    follows: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "layout": self.title,
            "path": self.path,
            "place": self.place,
            "model": self.model,
            "wrapper": self.wrapper,
            "swapped": self.swapped,
            "counters": dict(self.counters),
            "follows": self.follows,
            "reason": self.reason,
        }


Action: TypeAlias = Literal["updated", "kept", "dropped", "unknown"]


@dataclass(frozen=True, slots=True)
class OptimizerChange:
    """What became of one optimizer whose model was edited.

    `action`: ``updated``, ``kept`` (as it is, out of step), ``dropped``, ``unknown`` (a layout
    that cannot be told: carried over as it is). Names are the parameters': those `removed` with
    their state, `added` without any, to the groups at the positions `added_groups`, `reset` and
    `resized`; `renamed` counts stored names. `emptied` are positions of groups that have no
    parameter left.
    """

    path: str
    action: Action
    certainty: str = "none"
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    added_groups: tuple[int, ...] = ()
    reset: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    renamed: int = 0
    emptied: tuple[int, ...] = ()

    @property
    def any(self) -> bool:
        """Whether a parameter's state, or its name, is another than before."""
        return bool(self.removed or self.added or self.reset or self.resized or self.renamed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as one would expect, in sentences."""
        found = [
            f"group {position} of the optimizer in '{self.path}' has no parameter left"
            for position in self.emptied
        ]
        if self.action == "kept":
            found.append(
                f"the optimizer in '{self.path}' stays as it is, out of step with its model"
            )
        elif self.action == "unknown":
            found.append(
                f"the optimizer in '{self.path}' has a layout that ckpt does not know; it is "
                "carried over untouched"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"path": self.path, "action": self.action}
        if self.action == "updated":
            document |= {
                "certainty": self.certainty,
                "removed": list(self.removed),
                "added": list(self.added),
                "added_groups": list(self.added_groups),
                "reset": list(self.reset),
                "resized": list(self.resized),
                "renamed": self.renamed,
                "emptied": list(self.emptied),
            }
        return document
