"""Optimizers among the weights of one flat dictionary, which no edit can keep in step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict
from ckpt_surgery.errors import PlanError
from ckpt_surgery.torch_objects.training_state import holds_optimizer

HINT: Final = "--optimizer drop leaves it out, --optimizer keep leaves it as it is"

_Inside: TypeAlias = tuple[StateDict, Entry]
"""An entry that holds an optimizer, and the state dict that it is in."""


def is_optimizer(entry: Entry) -> bool:
    """Return whether an entry of a state dict holds an optimizer, or several."""
    return entry.tensor is None and holds_optimizer(entry.node)


def inside(state_dicts: Iterable[StateDict]) -> list[_Inside]:
    """Return the optimizers among the weights of these state dicts."""
    return [(s, entry) for s in state_dicts for entry in s.entries if is_optimizer(entry)]


def out_of_step(before: Sequence[StateDict], after: Sequence[StateDict]) -> list[_Inside]:
    """Return the optimizers of `before` that are in `after` among
    other names or shapes of weights.
    """
    new = {state_dict.path: state_dict for state_dict in after}
    return [
        (state_dict, entry)
        for state_dict, entry in inside(before)
        if state_dict.path in new
        and any(each.node is entry.node for each in new[state_dict.path].entries)
        and _weights(state_dict) != _weights(new[state_dict.path])
    ]


def same(found: Sequence[_Inside], checkpoint: Checkpoint) -> list[_Inside]:
    """Return the same optimizers where they are in `checkpoint`, perhaps under other names."""
    nodes = {id(entry.node) for _, entry in found}
    return [each for each in inside(checkpoint.state_dicts) if id(each[1].node) in nodes]


def without(checkpoint: Checkpoint, found: Sequence[_Inside]) -> Checkpoint:
    """`checkpoint` without these optimizers."""
    if not found:
        return checkpoint
    gone = {id(entry) for _, entry in same(found, checkpoint)}
    return replace(
        checkpoint,
        state_dicts=tuple(
            replace(s, entries=tuple(e for e in s.entries if id(e) not in gone))
            for s in checkpoint.state_dicts
        ),
    )


def refusal(found: Sequence[_Inside], checkpoint: Checkpoint, hint: str) -> PlanError:
    """Return the error for an optimizer that would be left out of step."""
    state_dict, entry = found[0]
    return PlanError(
        f"the optimizer '{entry.name}' is among the weights and cannot follow them",
        path=checkpoint.file.name,
        entry=state_dict.path or None,
        hint=hint,
    )


def _weights(state_dict: StateDict) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tensor.shape) for name, tensor in state_dict.tensors]
