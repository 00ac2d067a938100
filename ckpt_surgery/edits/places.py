"""Where edits reach into a checkpoint: its state dicts by path, their entries by name."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.errors import NameCollisionError, PlanError
from ckpt_surgery.names.suggest import near_hint


class _OfStateDict(Protocol):
    @property
    def state_dict(self) -> str: ...


_E = TypeVar("_E", bound=_OfStateDict)


def edit_state_dicts(
    run: Iterable[_E], checkpoint: Checkpoint, change: Callable[[StateDict, list[_E]], StateDict]
) -> Checkpoint:
    """Return the checkpoint with each state dict changed by those edits of a run that name it."""
    by_path: dict[str, list[_E]] = {}
    for edit in run:
        by_path.setdefault(edit.state_dict, []).append(edit)
    known = {state_dict.path for state_dict in checkpoint.state_dicts}
    for path in by_path:
        if path not in known:
            raise not_there(checkpoint, path)
    return replace(
        checkpoint,
        state_dicts=tuple(
            change(s, by_path[s.path]) if s.path in by_path else s for s in checkpoint.state_dicts
        ),
    )


def with_state_dicts(checkpoint: Checkpoint, changed: Mapping[str, StateDict | None]) -> Checkpoint:
    """Return the checkpoint with other state dicts at some paths, or (None) without them."""
    new = (changed.get(s.path, s) for s in checkpoint.state_dicts)
    return replace(checkpoint, state_dicts=tuple(s for s in new if s is not None))


def state_dict_at(checkpoint: Checkpoint, path: str) -> StateDict:
    """Return the state dict at a path. Raises `PlanError` if there is none."""
    for state_dict in checkpoint.state_dicts:
        if state_dict.path == path:
            return state_dict
    raise not_there(checkpoint, path)


def not_there(checkpoint: Checkpoint, path: str) -> PlanError:
    """Return the error for a path that holds nothing that the plan could edit."""
    return PlanError(f"the plan edits '{path}', which is not there", path=checkpoint.file.name)


def require_there(path: str, wanted: Iterable[str], names: Iterable[str]) -> None:
    """Raise `PlanError` for the first of `wanted` that is none of the `names` at `path`."""
    existing = set(names)
    for name in wanted:
        if name not in existing:
            raise PlanError(
                f"the plan edits '{join_path(path, name)}', which is not there",
                hint=near_hint(name, existing),
            )


def require_distinct(path: str, names: Iterable[str]) -> None:
    """Raise `NameCollisionError` if a name occurs twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise NameCollisionError(
                f"the plan gives {count} entries the name '{name}'", entry=path or None
            )


def renamed(
    path: str, names: Sequence[str], pairs: Iterable[tuple[str, str | None]]
) -> list[str | None]:
    """Return the new names after each pair (old, new) in turn; a new name None removes.

    Where several have the old name by then, the pair means the one that has had it longest: so
    names can be exchanged, and those of a list moved up. Raises `PlanError` if none has it.
    """
    result: list[str | None] = list(names)
    holders: dict[str, deque[int]] = {name: deque((i,)) for i, name in enumerate(names)}
    for old, new in pairs:
        waiting = holders.get(old)
        if not waiting:
            require_there(path, [old], (name for name, held in holders.items() if held))
            raise AssertionError  # what is not among the names is not there
        index = waiting.popleft()
        result[index] = new
        if new is not None:
            holders.setdefault(new, deque()).append(index)
    return result
