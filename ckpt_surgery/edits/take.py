"""Entries of other files, and their modules' records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, join_path
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_there
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Take(BatchEdit):
    """Put an entry of another file in the place of an entry, or after the last one.

    It is called `entry` in the state dict `source` of the file whose name is `file`.
    """

    kind: ClassVar[str] = "take"
    state_dict: str
    name: str
    file: str
    source: str
    entry: str

    @classmethod
    def apply_all(cls, run: Sequence[Take], checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint with the entries of other files."""
        return edit_state_dicts(run, checkpoint, lambda s, takes: _taking(s, takes, inputs))


def _taking(state_dict: StateDict, takes: Sequence[Take], inputs: Inputs) -> StateDict:
    by_name = {entry.name: entry for entry in state_dict.entries}
    tables: dict[tuple[str, str], dict[str, Entry]] = {}
    for take in takes:
        place = take.file, take.source
        if place not in tables:
            found = source_state_dict(inputs, *place)
            tables[place] = {entry.name: entry for entry in found.entries}
        if take.entry not in tables[place]:
            require_there(take.source, [take.entry], tables[place])
        old = by_name.get(take.name)
        entry = replace(tables[place][take.entry], name=take.name)
        by_name[take.name] = replace(entry, key_node=old.key_node) if old is not None else entry
    return replace(state_dict, entries=tuple(by_name.values()))


@dataclass(frozen=True, slots=True)
class TakeModule(BatchEdit):
    """Put another file's record of a module in ``_metadata``; the fields are those of `Take`."""

    kind: ClassVar[str] = "take-module"
    state_dict: str
    name: str
    file: str
    source: str
    entry: str

    @classmethod
    def apply_all(
        cls, run: Sequence[TakeModule], checkpoint: Checkpoint, inputs: Inputs
    ) -> Checkpoint:
        """Return the checkpoint with the records of other files."""
        return edit_state_dicts(run, checkpoint, lambda s, takes: _taking_modules(s, takes, inputs))


def _taking_modules(
    state_dict: StateDict, takes: Sequence[TakeModule], inputs: Inputs
) -> StateDict:
    records = dict(state_dict.metadata or {})
    for take in takes:
        known = source_state_dict(inputs, take.file, take.source).metadata or {}
        if take.entry not in known:
            require_there(join_path(take.source, "_metadata"), [take.entry], known)
        records[take.name] = known[take.entry]
    return replace(state_dict, metadata=records)


def source_state_dict(inputs: Inputs, file: str, path: str) -> StateDict:
    """Return the state dict at `path` of another file. Raises `PlanError` if there is none."""
    for state_dict in inputs[file].state_dicts:
        if state_dict.path == path:
            return state_dict
    raise PlanError(f"the plan takes from '{path}', which is not there", path=file)
