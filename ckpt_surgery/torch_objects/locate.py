"""What lies at a path: beside the weights, or among them where it is no tensor."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, join_path
from ckpt_surgery.errors import PlanError
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.pickles import Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.entries import Entries, Place


@dataclass(frozen=True, slots=True)
class Located:
    """What lies at a path: `node`, as it is after edits.

    It is the entry of a state dict, or it stands at a place beside the weights or below such an
    entry.
    """

    node: Node
    place: Place | None = None
    entry: tuple[StateDict, Entry] | None = None


def locate(checkpoint: Checkpoint, path: str) -> Located | None:
    """Return what lies at a path; None if nothing does.

    Raises `PlanError` if the path leads to several things: keys may hold slashes.
    """
    entries = Entries(checkpoint)
    found = [
        Located(entry.node, None, (state_dict, entry))
        for state_dict in checkpoint.state_dicts
        for entry in state_dict.entries
        if join_path(state_dict.path, entry.name) == path
    ]
    places = {place.identity: place for place in _places(checkpoint, entries, path)}
    found += (Located(entries.now(place.node), place) for place in places.values())
    if len(found) > 1:
        raise PlanError(f"the path leads to {len(found)} things", path=checkpoint.file.name)
    return found[0] if found else None


def not_found(checkpoint: Checkpoint, path: str) -> PlanError:
    """Return the error for a path that leads to nothing, with what may be meant."""
    above = path.rpartition("/")[0]
    hint = near_hint(path, [place.path for place in _beside(checkpoint, above)])
    return PlanError(
        f"nothing lies at '{path}'",
        path=checkpoint.file.name,
        hint=hint or "'ckpt get FILE' lists the values",
    )


def near_values(checkpoint: Checkpoint, path: str) -> str | None:
    """Return a hint at what beside `path` may be meant; None if nothing is like it."""
    return near_hint(path, [p.path for p in _beside(checkpoint, path.rpartition("/")[0])])


def all_places(checkpoint: Checkpoint) -> Iterator[tuple[str, Node]]:
    """Yield everything that lies beside the weights, or among them where it is no tensor."""
    entries = Entries(checkpoint)
    waiting = [iter(list(_starts(checkpoint, entries)))]
    seen: set[int] = set()
    while waiting:
        place = next(waiting[-1], None)
        if place is None:
            waiting.pop()
            continue
        yield place.path, entries.now(place.node)
        if id(place.node) not in seen and not place.is_weights:
            seen.add(id(place.node))
            waiting.append(entries.below(place))


def _beside(checkpoint: Checkpoint, above: str) -> Iterator[Place]:
    entries = Entries(checkpoint)
    yield from _starts(checkpoint, entries)
    for place in _places(checkpoint, entries, above):
        yield from entries.below(place)


def _places(checkpoint: Checkpoint, entries: Entries, path: str) -> Iterator[Place]:
    """Yield every place at a path that is no entry of a state dict itself."""
    waiting = [_starts(checkpoint, entries)]
    seen: set[tuple[int, str]] = set()
    while waiting:
        for place in waiting.pop():
            if place.path == path and place.holder is not _AMONG_WEIGHTS:
                yield place
            if path.startswith(f"{place.path}/") and (id(place.node), place.path) not in seen:
                seen.add((id(place.node), place.path))
                waiting.append(entries.below(place))


_AMONG_WEIGHTS = object()


def _starts(checkpoint: Checkpoint, entries: Entries) -> Iterator[Place]:
    """Yield the entries of the root, and those of state dicts that are no tensors."""
    if not any(s.node is checkpoint.root for s in checkpoint.state_dicts):
        yield from entries.top()
    for state_dict in checkpoint.state_dicts:
        for entry in state_dict.entries:
            if entry.tensor is None:
                path = join_path(state_dict.path, entry.name)
                yield Place(path, entry.name, entry.node, entry.name, _AMONG_WEIGHTS, None)
