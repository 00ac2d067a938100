"""Removing entries of state dicts, and entries beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, not_there, require_there
from ckpt_surgery.pickles import walk


@dataclass(frozen=True, slots=True)
class Drop(BatchEdit):
    """Remove an entry of a state dict."""

    kind: ClassVar[str] = "drop"
    state_dict: str
    name: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Drop],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint without these entries."""
        return edit_state_dicts(run, checkpoint, _without)


def _without(state_dict: StateDict, drops: Sequence[Drop]) -> StateDict:
    gone = Counter(drop.name for drop in drops)
    require_there(state_dict.path, gone, state_dict.names)
    twice = [name for name, count in gone.items() if count > 1]
    require_there(state_dict.path, twice, (n for n in state_dict.names if n not in gone))
    return replace(state_dict, entries=tuple(e for e in state_dict.entries if e.name not in gone))


@dataclass(frozen=True, slots=True)
class DropOther(BatchEdit):
    """Remove an entry beside the state dicts: an optimizer, a scheduler."""

    kind: ClassVar[str] = "drop-entry"
    path: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[DropOther],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint without these entries."""
        known = {other.path for other in checkpoint.others}
        gone = {edit.path for edit in run}
        for edit in run:
            if edit.path not in known:
                raise not_there(checkpoint, edit.path)
        return replace(
            checkpoint,
            others=_remaining(checkpoint.others, gone),
            dropped=(*checkpoint.dropped, *(o for o in checkpoint.others if o.path in gone)),
        )


def _remaining(others: Sequence[Other], dropped: Collection[str]) -> tuple[Other, ...]:
    """Return the entries that stay, with the tensors that they share with those that go."""
    kept = [other for other in others if other.path not in dropped]
    left = {id(t.node): t for o in others if o.path in dropped for t in o.tensors}
    if not left:
        return tuple(kept)
    index_of = {id(other.node): index for index, other in enumerate(kept)}
    index = 0
    for node in walk([other.node for other in kept]):
        index = index_of.get(id(node), index)
        if (tensor := left.pop(id(node), None)) is not None:
            kept[index] = replace(kept[index], tensors=(*kept[index].tensors, tensor))
    return tuple(kept)
