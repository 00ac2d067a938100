"""Removing entries of state dicts, and entries beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, not_there, require_there
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Dict, walk
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.entries import (
    Entries,
    Place,
    with_counted_tensors,
    without_places,
)
from ckpt_surgery.torch_objects.mappings import mapping_pairs


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
    """Remove an entry beside the state dicts: an optimizer, one of its attributes, a container.

    A state dict, or a container that leads to one, goes with all that is below.
    """

    kind: ClassVar[str] = "drop-entry"
    path: str

    def path_after(self, path: str) -> str | None:
        """Return None for what is at or below the entry."""
        return None if path == self.path or path.startswith(f"{self.path}/") else path

    @classmethod
    def paths_after(cls, run: Sequence[DropOther], paths: Sequence[str | None]) -> list[str | None]:
        """Return the paths that no entry of the run is at or above, None for the others."""
        gone = {edit.path for edit in run}

        def left(path: str | None) -> str | None:
            above = path
            while above:
                if above in gone:
                    return None
                above = above.rpartition("/")[0]
            return None if path == "" and "" in gone else path

        return list(map(left, paths))

    @classmethod
    def apply_all(
        cls,
        run: Sequence[DropOther],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint without these entries.

        Raises `LossyEditError` for one that is no item of a dictionary and no attribute.
        """
        known = {other.path for other in checkpoint.others if _is_item(other)}
        gone = {edit.path for edit in run}
        deep = gone - known
        if deep:
            checkpoint = _without_deep(checkpoint, deep)
        if deep == gone:
            return checkpoint
        return replace(
            checkpoint,
            others=_remaining(checkpoint.others, gone),
            dropped=(*checkpoint.dropped, *(o for o in checkpoint.others if o.path in gone)),
        )


def _is_item(other: Other) -> bool:
    """Return whether an entry lies in a dictionary, or in no graph at all."""
    if other.parent is None or isinstance(other.parent, Dict):
        return bool(other.path)
    return any(key is other.key_node for key, _ in mapping_pairs(other.parent) or ())


def _without_deep(checkpoint: Checkpoint, paths: Collection[str]) -> Checkpoint:
    """Return the checkpoint without entries of other entries, or with state dicts in them."""
    entries = Entries(checkpoint)
    found = entries.find(paths)
    for path in paths:
        if path not in found:
            raise not_there(checkpoint, path)
    places = list(found.values())
    edited = replace(
        checkpoint, replaced={**checkpoint.replaced, **without_places(checkpoint, places)}
    )
    tops = [place for place in places if _is_top(checkpoint, place)]
    if tops:
        inside = {id(node) for place in tops for node in walk(place.node)}
        _require_nowhere_else(entries, checkpoint, tops, inside)
        edited = replace(
            edited,
            state_dicts=tuple(s for s in checkpoint.state_dicts if id(s.node) not in inside),
            others=tuple(
                o for o in checkpoint.others if o.path not in found and id(o.parent) not in inside
            ),
        )
    return with_counted_tensors(edited)


def _is_top(checkpoint: Checkpoint, place: Place) -> bool:
    """Return whether a place is no part of an entry that the checkpoint lists."""
    known = {(id(o.parent), id(o.key_node)) for o in checkpoint.others}
    above: Place | None = place
    while above is not None:
        if above is not place and (id(above.holder), id(above.key)) in known:
            return False
        above = above.above
    return True


def _require_nowhere_else(
    entries: Entries, checkpoint: Checkpoint, tops: Sequence[Place], inside: Collection[int]
) -> None:
    """Raise `PlanError` if a state dict that goes is at another place, too."""
    going = {id(s.node): s.path for s in checkpoint.state_dicts if id(s.node) in inside}
    paths = {place.path for place in tops}
    for place in entries.all() if going else ():
        if id(place.node) in going and not any(
            place.path == path or place.path.startswith(f"{path}/") for path in paths
        ):
            raise PlanError(
                f"'{going[id(place.node)]}' is also at '{place.path}', where it would stay",
                path=checkpoint.file.name,
                hint="drop both",
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
