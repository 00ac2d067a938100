"""Edits of what entries share: copies under other names, ties, and an end to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    StateDict,
    Storage,
    contiguous_strides,
    join_path,
)
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_distinct, require_there
from ckpt_surgery.edits.values import require_strided, tensor_of
from ckpt_surgery.errors import NameCollisionError, PlanError, ReadError
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.row_major import row_major


@dataclass(frozen=True, slots=True)
class Copy(BatchEdit):
    """Put the entry `old` a second time, as `new`, with bytes of its own, behind the first."""

    kind: ClassVar[str] = "copy"
    state_dict: str
    old: str
    new: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Copy],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with the copies. Raises `NameCollisionError` for a name twice."""
        return edit_state_dicts(run, checkpoint, _copied)


def _copied(state_dict: StateDict, edits: Sequence[Copy]) -> StateDict:
    require_there(state_dict.path, (edit.old for edit in edits), state_dict.names)
    wanted: dict[str, list[str]] = {}
    for edit in edits:
        wanted.setdefault(edit.old, []).append(edit.new)
    entries: list[Entry] = []
    for entry in state_dict.entries:
        entries.append(entry)
        entries += (own_entry(state_dict.path, entry, name) for name in wanted.get(entry.name, ()))
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries))


def own_entry(path: str, entry: Entry, name: str) -> Entry:
    """Return `entry` under a name, with a storage of its own that holds its elements alone."""
    tensor = tensor_of(path, entry)
    require_strided(path, entry.name, tensor)
    try:
        data = row_major(tensor)
    except ReadError as error:
        error.entry = join_path(path, entry.name)
        raise
    dtype = tensor.dtype
    untyped = dtype.storage_class is None
    storage = Storage(name, dtype, tensor.device, data, untyped=untyped)
    alone = replace(
        tensor,
        storage=storage,
        offset=0,
        stride=contiguous_strides(tensor.shape),
        node=None,
    )
    return Entry(name, alone, entry.role)


@dataclass(frozen=True, slots=True)
class Untie(BatchEdit):
    """Give an entry bytes of its own, which it shares with no other entry."""

    kind: ClassVar[str] = "untie"
    state_dict: str
    name: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Untie],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these entries alone in their storages."""
        return edit_state_dicts(run, checkpoint, _untied)


def _untied(state_dict: StateDict, edits: Sequence[Untie]) -> StateDict:
    names = {edit.name for edit in edits}
    require_there(state_dict.path, names, state_dict.names)
    entries = tuple(
        replace(own_entry(state_dict.path, e, e.name), key_node=e.key_node)
        if e.name in names
        else e
        for e in state_dict.entries
    )
    return replace(state_dict, entries=entries)


@dataclass(frozen=True, slots=True)
class Tie(BatchEdit):
    """Let the entry `name` be the tensor that the entry `to` is; one that is not there is added.

    Its own numbers go, and an entry of another shape or type is refused.
    """

    kind: ClassVar[str] = "tie"
    state_dict: str
    name: str
    to: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Tie],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these entries tied."""
        return edit_state_dicts(run, checkpoint, _tied)


def _tied(state_dict: StateDict, edits: Sequence[Tie]) -> StateDict:
    entries = {entry.name: entry for entry in state_dict.entries}
    for edit in edits:
        require_there(state_dict.path, [edit.to], entries)
        if edit.name == edit.to:
            raise NameCollisionError("an entry cannot be tied to itself", entry=edit.name)
        source, old = entries[edit.to], entries.get(edit.name)
        tensor = tensor_of(state_dict.path, source)
        if old is not None:
            own = tensor_of(state_dict.path, old)
            if (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
                raise PlanError(
                    f"{own.dtype.name} {list(own.shape)} cannot be tied to "
                    f"{tensor.dtype.name} {list(tensor.shape)}",
                    entry=join_path(state_dict.path, edit.name),
                )
        key_node = None if old is None else old.key_node
        entries[edit.name] = replace(source, name=edit.name, key_node=key_node)
    return replace(state_dict, entries=tuple(entries.values()))
