"""Make an optimizer's nodes anew from the members of its groups; the old ones never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Node, own_text
from ckpt_surgery.torch_objects.mappings import mapping_pairs, with_items
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.training.optimizers.members import (
    HINT,
    Groups,
    Member,
    members_of,
    stored_names,
)
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState, state_key


def rebuild(optimizer: OptimizerState, groups: Groups) -> Node:
    """Return the optimizer with these members in its groups, in their order.

    It is the old node if they are the old ones. Raises PlanError if a member is none of its
    parameters, or there are other groups than it has.
    """
    _require_own(optimizer, groups)
    stored = stored_names(optimizer)
    full = [[_named(member, stored) for member in group] for group in groups]
    if full == [[_named(m, stored) for m in group] for group in members_of(optimizer)]:
        return optimizer.node
    keys = _new_keys(optimizer, full)
    fields = {
        "state": _rebuild_states(optimizer, full, keys),
        "param_groups": [
            _rebuild_group(group.node, members, own, named=group.names is not None)
            for group, members, own in zip(optimizer.groups, full, keys, strict=True)
        ],
    }
    return _with_fields(optimizer.node, fields)


def _require_own(optimizer: OptimizerState, groups: Groups) -> None:
    if len(groups) != len(optimizer.groups):
        raise PlanError(f"the plan has {len(groups)} groups, the optimizer {len(optimizer.groups)}")
    left = set(optimizer.keys)
    for key in (key for group in groups for member in group for key in member.made_of):
        if key not in left:
            raise PlanError(f"the plan speaks of a parameter {key!r}, which is not there")
    for member in (member for group in groups for member in group if member.key is not None):
        if member.key not in left:
            raise PlanError(f"the plan speaks of a parameter {member.key!r}, which is not there")
        left.remove(member.key)


def _named(member: Member, stored: Mapping[Key, str]) -> Member:
    """Return a member with the name to store: as it is stored, or a text of its own."""
    old = None if member.key is None else stored.get(member.key)
    if member.name is None or member.name == old:
        return replace(member, name=old)
    return replace(member, name=own_text(member.name))


def _new_keys(optimizer: OptimizerState, groups: Sequence[Sequence[Member]]) -> list[list[Key]]:
    """Return names where the keys are names, else numbers from 0 on
    where they were, else as they were.
    """
    if any(isinstance(key, str) for key in optimizer.keys):
        return [[member.name or "" for member in members] for members in groups]
    if optimizer.keys == tuple(range(len(optimizer.keys))):
        counter = iter(range(sum(map(len, groups))))
        return [[next(counter) for _ in members] for members in groups]
    fresh = iter(range(1 + max(key for key in optimizer.keys if isinstance(key, int)), 2**63))
    return [
        [next(fresh) if member.key is None else member.key for member in members]
        for members in groups
    ]


def _rebuild_states(
    optimizer: OptimizerState, groups: Sequence[Sequence[Member]], keys: Sequence[Sequence[Key]]
) -> Node:
    """Return the states under their new keys, in the order of the
    file, the orphans among them kept.
    """
    old = dict(_pairs_of(optimizer.node))["state"]
    heirs = _heirs(groups, keys)
    known = set(optimizer.keys)
    taken = {key for own in keys for key in own}
    numbered = any(isinstance(key, int) for key in known)
    items: list[Node] = []
    for key_node, value in mapping_pairs(old) or []:
        key = state_key(key_node, numbered=numbered)
        if key is None or key not in known:
            if key in taken:
                raise PlanError(f"the optimizer holds a state {key} of no parameter", hint=HINT)
            items += (key_node, value)
            continue
        for member, new_key in heirs.get(key, ()):
            spelled = key_node
            if new_key != key:  # a text of a number stays one
                spelled = new_key if isinstance(key_node, int) else str(new_key)
            items += (spelled, _with_fields(value, member.moments))
    return with_items(old, items)


def _heirs(
    groups: Sequence[Sequence[Member]], keys: Sequence[Sequence[Key]]
) -> dict[Key, list[tuple[Member, Key]]]:
    """Return, by its old key, who has what a state is by now: itself, or what is made of it."""
    found: dict[Key, list[tuple[Member, Key]]] = {}
    for members, own in zip(groups, keys, strict=True):
        for member, key in zip(members, own, strict=True):
            if member.key is not None and not member.reset:
                found.setdefault(member.key, []).append((member, key))
            elif member.made_of and member.moments:
                found.setdefault(member.made_of[0], []).append((member, key))
    return found


def _rebuild_group(
    node: Node, members: Sequence[Member], keys: Sequence[Key], *, named: bool
) -> Node:
    fields: dict[str, Node] = {"params": list(keys)}
    if named:
        fields["param_names"] = [member.name for member in members]
    return _with_fields(node, fields)


def _pairs_of(node: Node) -> list[tuple[str, Node]]:
    return [(name, v) for k, v in mapping_pairs(node) or [] if (name := text(k)) is not None]


def _with_fields(node: Node, fields: Mapping[str, Node]) -> Node:
    """Return the mapping with other values for some of its keys; the same object without any."""
    if not fields:
        return node
    items: list[Node] = []
    for key, value in mapping_pairs(node) or []:
        items += (key, fields.get(text(key) or "", value))
    return with_items(node, items)
