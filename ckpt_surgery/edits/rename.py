"""Other names for entries of state dicts, and for the modules in ``_metadata``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, renamed, require_distinct
from ckpt_surgery.pickles import own_text
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Rename(BatchEdit):
    """Give an entry of a state dict another name.

    In a run `old` is the entry that has had the name longest, so that names can be exchanged;
    no two may have one name at its end.
    """

    kind: ClassVar[str] = "rename"
    state_dict: str
    old: str
    new: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Rename],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with other names.

        Raises `NameCollisionError` if two entries would get one name.
        """
        return edit_state_dicts(run, checkpoint, _with_names)


def _with_names(state_dict: StateDict, renames: Sequence[Rename]) -> StateDict:
    pairs = ((edit.old, edit.new) for edit in renames)
    names = [name or "" for name in renamed(state_dict.path, state_dict.names, pairs)]
    require_distinct(state_dict.path, names)
    return replace(
        state_dict,
        entries=tuple(
            entry if entry.name == name else replace(entry, name=name)
            for entry, name in zip(state_dict.entries, names, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True)
class RenameModule(BatchEdit):
    """Give a module's record in ``_metadata`` another path; `new` None removes it.

    A run is judged like one of `Rename`.
    """

    kind: ClassVar[str] = "rename-module"
    state_dict: str
    old: str
    new: str | None

    @classmethod
    def apply_all(
        cls,
        run: Sequence[RenameModule],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with other paths of modules.

        Raises `NameCollisionError` if two records would get one path.
        """
        return edit_state_dicts(run, checkpoint, _with_modules)


def _with_modules(state_dict: StateDict, renames: Sequence[RenameModule]) -> StateDict:
    path = join_path(state_dict.path, "_metadata")
    records = state_dict.metadata or {}
    paths = renamed(path, list(records), ((edit.old, edit.new) for edit in renames))
    require_distinct(path, (module for module in paths if module is not None))
    triples = zip(records, paths, records.values(), strict=True)
    return replace(
        state_dict,
        metadata={
            old if new == old else own_text(new): value
            for old, new, value in triples
            if new is not None
        },
    )
