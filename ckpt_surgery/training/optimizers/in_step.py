"""Keeping the optimizers of a checkpoint in step with what an edit did to its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Final, Literal, TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict, Tensor
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Node, PersistentId
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.tensor_calls import build
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.documents import Action, OptimizerChange
from ckpt_surgery.training.optimizers.edit import (
    HINT,
    Edited,
    Groups,
    MomentChange,
    Target,
    align,
    remove,
    rename,
)
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState, read_optimizer
from ckpt_surgery.training.optimizers.survey import (
    FoundOptimizer,
    find,
    is_called_optimizer,
    qualified,
    unknown_optimizers,
)
from ckpt_surgery.training.parameters import Inventory, Parameter

_MOST_NAMED: Final = 4  # state dicts in a message

OptimizerChoice: TypeAlias = Literal["auto", "keep", "drop"]
"""Keep optimizers in step or refuse; leave them as they are; leave them out."""

Sources: TypeAlias = Mapping[str, Mapping[str, str | None]]
"""By the path of a state dict, old names by new ones; None for a parameter that begins anew."""

Parameters: TypeAlias = Mapping[str, Sequence[Parameter]]
"""By the path of a state dict, the parameters of the model that is to load it, in its order."""

ChosenGroups: TypeAlias = Callable[[str], int | None]
"""By the name of a parameter, the position of the group that it joins if it is new."""

MomentChanges: TypeAlias = Mapping[str, Mapping[str, MomentChange]]
"""By the path of a state dict and a parameter's new name there, what is done to its moments."""


@dataclass(frozen=True, slots=True)
class InStep:
    """A checkpoint whose optimizers were seen to, what changed, and what the user should know.

    `updates` are the new groups of optimizers by their paths, `dropped` the paths of entries that
    were left out.
    """

    checkpoint: Checkpoint
    changes: tuple[OptimizerChange, ...] = ()
    updates: Mapping[str, Groups] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as one would expect, in sentences."""
        return tuple(text for change in self.changes for text in change.warnings)


def keep_in_step(
    before: Checkpoint,
    after: Checkpoint,
    choice: OptimizerChoice = "auto",
    *,
    sources: Sources | None = None,
    moments: MomentChanges | None = None,
    parameters: Parameters | None = None,
    homes: ChosenGroups | None = None,
) -> InStep:
    """`after` with its optimizers following what was done to the models of `before`.

    A parameter that an edit took over is known by its node, else by its name; `sources` says it
    where neither does. `parameters` are those of the edited models, where more is known than
    their entries show. State whose parameter changed its shape goes through what `moments` say of
    it, and is left out without. New parameters join the groups that `homes` say, or those of what
    they stand beside. An optimizer whose model did not change stays the same; one whose
    model only has other values by now is dropped if that is the choice.

    Raises PlanError, with a hint at the choices, if it is not certain which state belongs to
    which parameter.
    """
    if _same_entries(before, after):
        return InStep(after)
    found = find(before)
    present = {other.path for other in after.others}
    differences = _Differences(after, sources or {}, parameters or {}, moments or {}, homes)
    changes: list[OptimizerChange] = []
    edited: list[tuple[FoundOptimizer, Edited]] = []
    for optimizer in found:
        if optimizer.other.path not in present:
            continue
        difference = _difference(optimizer, differences, choice)
        if difference is None:
            if choice == "drop" and _is_touched(optimizer, before, after):
                changes.append(OptimizerChange(optimizer.path, "dropped"))
            continue
        if choice == "auto":
            result, change = _update(optimizer, difference)
            if result.node is not optimizer.state.node and (change.any or difference.reordered):
                edited.append((optimizer, result))
                changes.append(change)
        elif choice == "drop" or not _stays_in_step(optimizer, differences):
            action: Action = "kept" if choice == "keep" else "dropped"
            changes.append(OptimizerChange(optimizer.path, action))
    after = with_nodes(after, [(optimizer, result.node) for optimizer, result in edited])
    updates = {optimizer.path: result.groups for optimizer, result in edited}
    unknown = unknown_optimizers(before, found)
    if unknown and (choice == "drop" or any(differences.of((s,)).any for s in before.state_dicts)):
        action = "dropped" if choice == "drop" else "unknown"
        changes += (OptimizerChange(path, action) for path in unknown if path in present)
    dropped = _entries_of(found, changes) if choice == "drop" else set[str]()
    gone = [other for other in after.others if other.path in dropped]
    if gone:
        after = replace(
            after,
            others=tuple(other for other in after.others if other.path not in dropped),
            dropped=(*after.dropped, *gone),
        )
    return InStep(after, tuple(changes), updates, tuple(other.path for other in gone))


def _same_entries(before: Checkpoint, after: Checkpoint) -> bool:
    """Return whether no state dict changed, which is cheap to see."""
    return len(before.state_dicts) == len(after.state_dicts) and all(
        map(_is_untouched, before.state_dicts, after.state_dicts)
    )


def _is_untouched(old: StateDict, new: StateDict) -> bool:
    return len(old.entries) == len(new.entries) and all(map(is_, old.entries, new.entries))


def _is_touched(optimizer: FoundOptimizer, before: Checkpoint, after: Checkpoint) -> bool:
    """Return whether anything in a model that an optimizer may
    train is another tensor than before.
    """
    own = () if optimizer.model is None else optimizer.model.state_dicts
    paths = {model.path for model in (*own, *optimizer.rivals)}
    now = {state_dict.path: state_dict for state_dict in after.state_dicts}
    return any(
        old.path in now and not _is_untouched(old, now[old.path])
        for old in before.state_dicts
        if old.path in paths
    )


def _difference(
    optimizer: FoundOptimizer, known: _Differences, choice: OptimizerChoice
) -> _Difference | None:
    """Return what happened to the model of an optimizer; None if nothing that concerns it."""
    possible: list[tuple[StateDict, ...]] = [(rival,) for rival in optimizer.rivals]
    if optimizer.model is not None:
        possible.insert(0, optimizer.model.state_dicts)
    differences = [known.of(models) for models in possible]
    first = next((each for each in differences if each.any), None)
    if first is None or choice != "auto":
        return first
    if not (first.gone or first.is_deep or _stores_names(optimizer)):
        return None  # it knows its parameters by number
    if optimizer.model is None or any(each != first for each in differences):
        paths = ", ".join(f"'{models[0].path}'" for models in possible[:_MOST_NAMED])
        more = ", …" if len(possible) > _MOST_NAMED else ""
        raise PlanError(
            f"it is not certain which of {paths}{more} the optimizer in '{optimizer.path}' trains:"
            f" {optimizer.correspondence.reason}",
            hint=HINT,
        )
    return first


def _stays_in_step(optimizer: FoundOptimizer, known: _Differences) -> bool:
    """Return whether an optimizer that is left as it is is certainly in step nevertheless."""
    try:
        difference = _difference(optimizer, known, "auto")
        if difference is None:
            return True
        return _update(optimizer, difference)[0].node is optimizer.state.node
    except PlanError:
        return False


def _entries_of(found: Sequence[FoundOptimizer], changes: Sequence[OptimizerChange]) -> set[str]:
    """Return the entries to leave out for the optimizers that are dropped."""
    dropped = {change.path for change in changes if change.action == "dropped"}
    entries = dropped - {optimizer.path for optimizer in found}
    sources: dict[str, set[int]] = {}
    for optimizer in found:
        sources.setdefault(optimizer.other.path, set()).add(id(optimizer.source))
    for optimizer in found:
        if optimizer.path not in dropped:
            continue
        other, inside = optimizer.other, sources[optimizer.other.path]
        if other.path in entries or is_called_optimizer(other.path):
            entries.add(other.path)
            continue
        node = other.node
        held = node if isinstance(node, list) else [value for _, value in mapping_pairs(node) or ()]
        if optimizer.path != other.path and any(id(each) not in inside for each in held):
            raise PlanError(
                f"the optimizer in '{optimizer.path}' cannot be left out alone: '{other.path}'"
                " holds other things too",
                hint="'--optimizer keep' leaves it as it is",
            )
        entries.add(other.path)
    return entries


@dataclass(frozen=True, slots=True)
class _Difference:
    """What an edit did to the parameters that an optimizer may hold: each new one's origin.

    `gone` are old names, `renamed` old to new ones. `moments` says by new names what is done to
    the moments of a parameter that is not the same as it was.
    """

    targets: tuple[Target, ...]
    gone: tuple[str, ...]
    renamed: Mapping[str, str]
    reordered: bool
    moments: Mapping[str, MomentChange]

    @classmethod
    def of(
        cls,
        state_dicts: Sequence[StateDict],
        after: Checkpoint,
        sources: Sources,
        parameters: Parameters,
        moments: MomentChanges,
        homes: ChosenGroups | None,
    ) -> _Difference:
        new = {s.path: s for s in after.state_dicts}
        targets: list[Target] = []
        old_names: list[str] = []
        changed: dict[str, MomentChange] = {}
        for old_dict in state_dicts:
            old = Inventory.of_state_dict(old_dict).parameters
            old_names += (qualified(state_dicts, old_dict, p.name) for p in old)
            new_dict = new.get(old_dict.path)
            if new_dict is None:
                continue
            lineage = _Lineage(old_dict, old, new_dict, sources.get(old_dict.path, {}))
            own = parameters.get(old_dict.path) or Inventory.of_state_dict(new_dict).parameters
            for parameter in own:
                source, anew = lineage.of(parameter)
                name = qualified(state_dicts, old_dict, parameter.name)
                origin = None if source is None else qualified(state_dicts, old_dict, source.name)
                change = moments.get(old_dict.path, {}).get(parameter.name)
                reshaped = source is not None and source.shape != parameter.shape
                other = reshaped or (source is not None and change is not None)
                home = homes(parameter.name) if homes is not None and source is None else None
                axes = len((source or parameter).shape)
                targets.append(Target(name, origin, reset=anew or other, ndim=axes, home=home))
                if change is not None and other and not anew:
                    changed[name] = change
        kept = [target.source for target in targets if target.source is not None]
        known = set(kept)
        places = {name: i for i, name in enumerate(old_names)}
        order = [places[name] for name in kept]
        return cls(
            tuple(targets),
            tuple(name for name in old_names if name not in known),
            {t.source: t.name for t in targets if t.source not in (None, t.name) and t.source},
            order != sorted(order),
            changed,
        )

    @property
    def any(self) -> bool:
        return bool(self.gone or self.renamed or self.is_deep)

    @property
    def is_deep(self) -> bool:
        """Whether there is more to it than names that went or changed."""
        return self.reordered or any(t.source is None or t.reset for t in self.targets)


class _Differences:
    """What an edit did to each model, looked at once for all the optimizers that may train it."""

    def __init__(
        self,
        after: Checkpoint,
        sources: Sources,
        parameters: Parameters,
        moments: MomentChanges,
        homes: ChosenGroups | None,
    ) -> None:
        self._after, self._given = after, (sources, parameters, moments, homes)
        self._known: dict[tuple[int, ...], _Difference] = {}

    def of(self, state_dicts: tuple[StateDict, ...]) -> _Difference:
        """Return the difference of these state dicts, which must be those from before the edit."""
        key = tuple(map(id, state_dicts))
        if key not in self._known:
            self._known[key] = _Difference.of(state_dicts, self._after, *self._given)
        return self._known[key]


class _Lineage:
    """Which old parameter a new one continues; an old one is given away once."""

    def __init__(
        self,
        old_dict: StateDict,
        old: Sequence[Parameter],
        new_dict: StateDict,
        sources: Mapping[str, str | None],
    ) -> None:
        self._nodes = {entry.name: entry.node for entry in new_dict.entries}
        self._by_name = {name: p for p in old for name in p.names}
        self._by_node = {
            id(entry.node): self._by_name[entry.name]
            for entry in reversed(old_dict.entries)
            if entry.node is not None and entry.name in self._by_name
        }
        self._names_of_node = {(entry.name, id(entry.node)) for entry in old_dict.entries}
        self._sources = sources
        self._given: set[str] = set()

    def of(self, parameter: Parameter) -> tuple[Parameter | None, bool]:
        """Return the old parameter, and whether the new one begins anew nevertheless."""
        source, anew = self._find(parameter)
        if source is None or source.name in self._given:
            return None, False
        self._given.add(source.name)
        return source, anew

    def _find(self, parameter: Parameter) -> tuple[Parameter | None, bool]:
        nodes = self._nodes
        for name in parameter.names:
            if name in self._sources:
                origin = self._sources[name]
                if origin is not None:
                    return self._by_name.get(origin), False
                return self._by_name.get(name), True
        for name in parameter.names:
            if (name, id(nodes[name])) in self._names_of_node:
                return self._by_name[name], False
        for name in parameter.names:
            if nodes[name] is not None and id(nodes[name]) in self._by_node:
                return self._by_node[id(nodes[name])], False
        return next((self._by_name[n] for n in parameter.names if n in self._by_name), None), False


def _update(optimizer: FoundOptimizer, difference: _Difference) -> tuple[Edited, OptimizerChange]:
    """Return the edited optimizer, and what changed."""
    reader = TensorReader()
    try:
        edited, resized = _edit(optimizer, difference, reader)
    except PlanError as error:
        raise PlanError(
            f"the optimizer in '{optimizer.path}' cannot be kept in step: {error.message}",
            hint=error.hint,
        ) from error
    change = OptimizerChange(
        optimizer.path,
        "updated",
        optimizer.correspondence.certainty,
        removed=edited.removed,
        added=edited.added,
        reset=tuple(name for name in edited.reset if name not in resized),
        resized=tuple(resized),
        renamed=_count_renamed(optimizer, edited, reader) if _stores_names(optimizer) else 0,
        added_groups=edited.homes,
        emptied=edited.emptied,
    )
    return edited, change


def _edit(
    optimizer: FoundOptimizer, difference: _Difference, reader: TensorReader
) -> tuple[Edited, list[str]]:
    state, correspondence = optimizer.state, optimizer.correspondence
    if difference.is_deep:
        targets, resized = _with_moments(optimizer, difference, reader)
        order = [name for name, _ in optimizer.model.parameters] if optimizer.model else None
        return align(state, correspondence, targets, order), resized
    edited = remove(state, correspondence, difference.gone)
    if difference.renamed and _stores_names(optimizer):
        named = rename(state, correspondence, difference.renamed, edited.groups)
        edited = replace(edited, node=named.node, groups=named.groups)
    return edited, []


def _with_moments(
    optimizer: FoundOptimizer, difference: _Difference, reader: TensorReader
) -> tuple[list[Target], list[str]]:
    """Return the targets, those of a new shape with moments that
    have it too, as far as that goes.
    """
    targets: list[Target] = []
    resized: list[str] = []
    for target in difference.targets:
        change = difference.moments.get(target.name)
        key = None
        if target.source is not None:
            key = optimizer.correspondence.key_of(target.source)
        moments = None if change is None else changed_moments(optimizer.state, key, change, reader)
        if moments is None:
            targets.append(target)
        else:
            targets.append(replace(target, reset=False, moments=moments, change=change))
            resized += [target.name] if moments else []
    return targets, resized


def changed_moments(
    optimizer: OptimizerState, key: Key | None, change: MomentChange, reader: TensorReader
) -> dict[str, Node] | None:
    """Return new nodes for the moments of a parameter; None if it has to begin anew."""
    state = None if key is None else optimizer.states.get(key)
    if key is None or state is None:
        return {}
    if not state.understood:
        return None
    nodes: dict[str, Node] = {}
    for moment in state.moments:
        tensor = reader.describe(moment.node)
        beginning = optimizer.beginning(key, moment.name)
        if tensor is None or beginning is None:
            return None
        new = change.apply(tensor, beginning)
        if new is None or new.storage is None:
            return None
        nodes[moment.name] = build(PersistentId(None, new.storage), new)
    return nodes


def _stores_names(optimizer: FoundOptimizer) -> bool:
    state = optimizer.state
    return any(group.names is not None for group in state.groups) or any(
        isinstance(key, str) for key in state.keys
    )


def _count_renamed(optimizer: FoundOptimizer, edited: Edited, reader: TensorReader) -> int:
    """Return how many stored names are not those that were there before."""

    def names(node: Node) -> list[str]:
        state = read_optimizer(node, reader.describe)
        groups = () if state is None else state.groups
        return [
            str(name)
            for group in groups
            for name in (group.names or (key for key in group.keys if isinstance(key, str)))
        ]

    return len(set(names(edited.node)) - set(names(optimizer.state.node)) - set(edited.added))


def with_nodes(checkpoint: Checkpoint, nodes: Sequence[tuple[FoundOptimizer, Node]]) -> Checkpoint:
    """Return the checkpoint with other nodes for optimizers.

    The tensors below their entries are brought up to date.
    """
    reader = TensorReader()
    old: dict[str, set[int]] = {}
    new: dict[str, list[Tensor]] = {}
    for optimizer, node in nodes:
        below = reader.below(optimizer.state.node, set())
        old.setdefault(optimizer.other.path, set()).update(id(t.node) for t in below)
        new.setdefault(optimizer.other.path, []).extend(reader.below(node, set()))

    def renewed(other: Other) -> Other:
        if other.path not in new:
            return other
        kept = {id(t.node): t for t in other.tensors}
        rest = [t for t in other.tensors if id(t.node) not in old[other.path]]
        return replace(other, tensors=(*rest, *(kept.get(id(t.node), t) for t in new[other.path])))

    replaced = {id(optimizer.source): node for optimizer, node in nodes}
    return replace(
        checkpoint,
        others=tuple(map(renewed, checkpoint.others)),
        replaced={**checkpoint.replaced, **replaced},
    )
