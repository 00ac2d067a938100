"""Keeping the optimizers of a checkpoint in step with what an edit did to its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from operator import is_
from typing import Final, Literal, TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict, Tensor
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Node, PersistentId
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.tensor_calls import build
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.documents import Action, OptimizerChange
from ckpt_surgery.training.optimizers.differences import (
    ChosenGroups,
    Difference,
    Differences,
    MomentChanges,
    Parameters,
    Sources,
)
from ckpt_surgery.training.optimizers.edit import align, remove, rename
from ckpt_surgery.training.optimizers.made import made_moments
from ckpt_surgery.training.optimizers.members import (
    HINT,
    Edited,
    Groups,
    MomentChange,
    MomentMaker,
    Target,
)
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState, read_optimizer
from ckpt_surgery.training.optimizers.survey import (
    FoundOptimizer,
    find,
    is_called_optimizer,
    unknown_optimizers,
)

_MOST_NAMED: Final = 4  # state dicts in a message

OptimizerChoice: TypeAlias = Literal["auto", "keep", "drop"]
"""Keep optimizers in step or refuse; leave them as they are; leave them out."""


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
    differences = Differences(after, sources or {}, parameters or {}, moments or {}, homes)
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
    optimizer: FoundOptimizer, known: Differences, choice: OptimizerChoice
) -> Difference | None:
    """Return what happened to the model of an optimizer; None if nothing that concerns it."""
    possible: list[tuple[StateDict, ...]] = [(rival,) for rival in optimizer.rivals]
    if optimizer.model is not None:
        possible.insert(0, optimizer.model.state_dicts)
    differences = [known.of(models) for models in possible]
    if optimizer.model is not None and optimizer.model.every:
        differences[0] = known.of(optimizer.model.state_dicts, every=True)
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


def _stays_in_step(optimizer: FoundOptimizer, known: Differences) -> bool:
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


def _update(optimizer: FoundOptimizer, difference: Difference) -> tuple[Edited, OptimizerChange]:
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
    optimizer: FoundOptimizer, difference: Difference, reader: TensorReader
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
    optimizer: FoundOptimizer, difference: Difference, reader: TensorReader
) -> tuple[list[Target], list[str]]:
    """Return the targets, those of a new shape with moments that
    have it too, as far as that goes.
    """
    targets: list[Target] = []
    resized: list[str] = []
    for target in difference.targets:
        change = difference.moments.get(target.name)
        if isinstance(change, MomentMaker):
            targets.append(_with_made(optimizer, target, change, reader))
            resized += [target.name] if targets[-1].moments else []
            continue
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


def _with_made(
    optimizer: FoundOptimizer, target: Target, change: MomentMaker, reader: TensorReader
) -> Target:
    """Return a target that is made of others with its moments, as far as they can be made."""
    owners = optimizer.correspondence
    keys = [key for name in target.made_of if (key := owners.key_of(name)) is not None]
    if len(keys) < len(target.made_of):
        return target
    moments = made_moments(optimizer.state, keys, change, reader)
    return replace(target, moments=moments or {}, change=change, reset=moments is None)


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
