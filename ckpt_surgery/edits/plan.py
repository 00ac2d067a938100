"""Plans: the edits of a checkpoint as plain data, applied and saved.

Building a plan (`stripping`, `renaming`) finds everything that is wrong with it; applying one only
carries it out, on the description, and returns a new description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.compact import compact
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, join_path
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.base import (
    EDITS,
    JSON_NAMES,
    Compact,
    Drop,
    DropOther,
    DropStateDict,
    Edit,
    Merge,
    Rename,
    RenameModule,
    Take,
    TakeModule,
    TakeWeights,
    UpdateOptimizer,
)
from ckpt_surgery.errors import NameCollisionError, PlanError
from ckpt_surgery.names import near
from ckpt_surgery.pickles import walk

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange

__all__ = [
    "Compact", "Drop", "DropOther", "DropStateDict", "Edit", "Merge", "Plan", "Planned", "Rename",
    "RenameModule", "Take", "TakeModule", "TakeWeights", "UpdateOptimizer",
    "apply",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """Edits in the order in which they are applied."""

    edits: tuple[Edit, ...] = ()

    def to_dict(self) -> list[dict[str, Any]]:
        """The edits as JSON has them: ``{"edit": "rename", "from": …, "to": …}``."""
        return [
            {"edit": edit.edit, **{JSON_NAMES.get(k, k): getattr(edit, k) for k in edit.__slots__}}
            for edit in self.edits
        ]

    @classmethod
    def from_dict(cls, edits: Sequence[Mapping[str, Any]]) -> Plan:
        """The plan that `to_dict` wrote. Raises `PlanError` for anything else."""
        try:
            return cls(tuple(_edit_from_dict(edit) for edit in edits))
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"not a list of edits: {error}") from error


def _edit_from_dict(edit: Mapping[str, Any]) -> Edit:
    python_names = {json: name for name, json in JSON_NAMES.items()}
    fields = {python_names.get(k, k): value for k, value in edit.items() if k != "edit"}
    for value in fields.values():
        if not isinstance(value, str | int | None):
            raise TypeError(f"'{value}' is neither a text nor a number")
    return EDITS[str(edit["edit"])](**fields)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, what its rules matched, and what the user should know about it."""

    plan: Plan
    rules: tuple[RuleCount, ...] = ()
    warnings: tuple[str, ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()


def apply(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    others: Sequence[Checkpoint] = (),
    merged: Mapping[tuple[str, str], Entry] | None = None,
) -> Checkpoint:
    """`checkpoint` after the edits; the one given stays as it is.

    What a plan takes comes from `others`, what it merges from `merged`: entries by state dict and
    name. Names are dropped first, then changed, then merged and taken. Raises `PlanError` if the
    plan speaks of something that is not there, and `NameCollisionError` if two entries would get
    one name.
    """
    sorted_edits: dict[str, _Edits] = {}
    dropped: set[str] = set()
    optimizers: set[str] = set()
    original = checkpoint
    for edit in plan.edits:
        if isinstance(edit, TakeWeights):
            from ckpt_surgery.edits.averages import take_weights

            checkpoint = take_weights(checkpoint, edit.state_dict, edit.old)
        elif isinstance(edit, DropStateDict):
            _require_known(checkpoint, [edit.path], [])
            from ckpt_surgery.edits.averages import drop_state_dict

            checkpoint = drop_state_dict(checkpoint, edit.path)
        elif isinstance(edit, UpdateOptimizer):
            optimizers.add(edit.path)
        elif isinstance(edit, DropOther):
            dropped.add(edit.path)
        elif not isinstance(edit, Compact):
            sorted_edits.setdefault(edit.state_dict, _Edits()).add(edit)
    _require_known(checkpoint, sorted_edits, dropped)
    edited = replace(
        checkpoint,
        state_dicts=tuple(
            _edited(s, sorted_edits[s.path], others, merged or {}) if s.path in sorted_edits else s
            for s in checkpoint.state_dicts
        ),
        others=_remaining(checkpoint.others, dropped),
        dropped=(*checkpoint.dropped, *(o for o in checkpoint.others if o.path in dropped)),
    )
    if optimizers:
        from ckpt_surgery.training.optimizers import keep_in_step

        edited = keep_in_step(original, edited, only=optimizers).checkpoint
    compacts = any(isinstance(edit, Compact) for edit in plan.edits)
    return compact(edited) if compacts else edited


@dataclass(frozen=True, slots=True)
class _Edits:
    """The edits of one state dict, by what they do."""

    dropped: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str | None] = field(default_factory=dict)
    taken: list[Take] = field(default_factory=list)
    taken_modules: list[TakeModule] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)

    def add(self, edit: Drop | Rename | RenameModule | Take | TakeModule | Merge) -> None:
        match edit:
            case Drop(name=name):
                self.dropped.add(name)
            case Rename(old=old, new=new):
                self.renamed[old] = new
            case RenameModule(old=old, new=moved):
                self.modules[old] = moved
            case Take():
                self.taken.append(edit)
            case TakeModule():
                self.taken_modules.append(edit)
            case Merge():
                self.merged.append(edit)


def _remaining(others: Sequence[Other], dropped: set[str]) -> tuple[Other, ...]:
    """The entries that stay, with the tensors that they share with those that go."""
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


def _require_known(
    checkpoint: Checkpoint, state_dicts: Iterable[str], others: Iterable[str]
) -> None:
    known = {state_dict.path for state_dict in checkpoint.state_dicts}
    entries = {other.path for other in checkpoint.others}
    for path in [
        *(p for p in state_dicts if p not in known),
        *(p for p in others if p not in entries),
    ]:
        raise PlanError(f"the plan edits '{path}', which is not there", path=checkpoint.file.name)


def _edited(
    state_dict: StateDict,
    edits: _Edits,
    others: Sequence[Checkpoint],
    merged: Mapping[tuple[str, str], Entry],
) -> StateDict:
    path, renamed = state_dict.path, edits.renamed
    _require_there(path, (*edits.dropped, *renamed), state_dict.names)
    kept = [entry for entry in state_dict.entries if entry.name not in edits.dropped]
    entries = [replace(e, name=renamed[e.name]) if e.name in renamed else e for e in kept]
    _require_distinct(path, [entry.name for entry in entries])
    by_name = {entry.name: entry for entry in entries}
    for merge in edits.merged:
        if merge.name not in by_name:
            _require_there(path, [merge.name], by_name)
        if (path, merge.name) not in merged:
            raise PlanError(f"nothing is computed for '{join_path(path, merge.name)}'")
        by_name[merge.name] = merged[path, merge.name]
    sources: dict[tuple[str, str], dict[str, Entry]] = {}
    for take in edits.taken:
        entries_there = sources.get((take.file, take.source))
        if entries_there is None:
            entries_there = {entry.name: entry for entry in _source(take, others).entries}
            sources[take.file, take.source] = entries_there
        if take.entry not in entries_there:
            _require_there(take.source, [take.entry], entries_there)
        old = by_name.get(take.name)
        entry = replace(entries_there[take.entry], name=take.name)
        by_name[take.name] = replace(entry, key_node=old.key_node) if old is not None else entry
    metadata = _edited_metadata(state_dict, edits, others)
    return replace(state_dict, entries=tuple(by_name.values()), metadata=metadata)


def _edited_metadata(
    state_dict: StateDict, edits: _Edits, others: Sequence[Checkpoint]
) -> Mapping[str, object] | None:
    metadata = state_dict.metadata
    path = join_path(state_dict.path, "_metadata")
    if edits.modules:
        _require_there(path, edits.modules, metadata or ())
        moved = [(edits.modules.get(module, module), v) for module, v in (metadata or {}).items()]
        kept = [(module, value) for module, value in moved if module is not None]
        _require_distinct(path, [module for module, _ in kept])
        metadata = dict(kept)
    for take in edits.taken_modules:
        known = _source(take, others).metadata or {}
        _require_there(join_path(take.source, "_metadata"), [take.entry], known)
        metadata = {**(metadata or {}), take.name: known[take.entry]}
    return metadata


def _source(take: Take | TakeModule, others: Sequence[Checkpoint]) -> StateDict:
    for other in others:
        if other.file.name == take.file:
            for state_dict in other.state_dicts:
                if state_dict.path == take.source:
                    return state_dict
    raise PlanError(f"the plan takes from '{take.source}', which is not there", path=take.file)


def _require_there(path: str, wanted: Iterable[str], names: Iterable[str]) -> None:
    existing = set(names)
    for name in wanted:
        if name not in existing:
            near_names = ", ".join(f"'{found}'" for found in near(name, existing))
            raise PlanError(
                f"the plan edits '{join_path(path, name)}', which is not there",
                hint=f"near it: {near_names}" if near_names else None,
            )


def _require_distinct(path: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise NameCollisionError(
                f"the plan gives {count} entries the name '{name}'", entry=path or None
            )
