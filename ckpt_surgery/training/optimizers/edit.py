"""Keeping an optimizer in step with its model: new nodes, the old ones are never changed.

`Optimizer.load_state_dict` matches by position: group by group the saved number of parameters must
be the optimizer's own. So what leaves the model leaves its group, what comes takes its place
there, and the indices of all others follow. A group that becomes empty stays, because the number
of groups must agree too, and a scheduler keeps one learning rate for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final, NoReturn, Protocol, TypeAlias

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Node, own_text
from ckpt_surgery.torch_objects.mappings import mapping_pairs, with_items
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.training.optimizers.correspond import StateOwners
from ckpt_surgery.training.optimizers.homes import UNCERTAIN, Homes
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState, state_key

HINT: Final = "'--optimizer drop' leaves the optimizer out, '--optimizer keep' leaves it as it is"


class MomentChange(Protocol):
    """What is done to the moments of a parameter, as it was done to the parameter itself."""

    def apply(self, moment: Tensor, beginning: float) -> Tensor | None:
        """Return the changed moment; None if it cannot be changed, and has to begin anew.

        New elements are what they would be before the first step: `beginning`.
        """


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the model that the optimizer is to fit, in the order of `parameters()`.

    `source` is its name in the checkpoint, None if it is new. Its state is carried over, or with
    `reset` left out (an optimizer begins anew with such a parameter), or has the tensors of
    `moments` put in, by their name (``exp_avg``), which `change` made. `ndim` counts its axes; a
    new one joins the group `home`, if that is said.
    """

    name: str
    source: str | None
    reset: bool = False
    moments: Mapping[str, Node] = field(default_factory=dict)
    change: MomentChange | None = None
    ndim: int = 1
    home: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter in its group: its old key (None: new), what name is stored, what state it gets.

    `name` None leaves the name that is stored, if any. With `reset` it begins anew; `moments` are
    tensors to put in, by their name, and `change` is what makes them.
    """

    key: Key | None
    name: str | None = None
    reset: bool = False
    moments: Mapping[str, Node] = field(default_factory=dict)
    change: MomentChange | None = None


Groups: TypeAlias = tuple[tuple[Member, ...], ...]


@dataclass(frozen=True, slots=True)
class Edited:
    """An edited optimizer. `node` is the old one, the same object, if nothing changed.

    `groups`: its parameters by now, group by group, from which `rebuild` makes the node.
    `removed`: names of parameters that left; `added`: names that came, without state, into the
    groups at the positions `homes`; `reset`: names whose state was left out; `emptied`: positions
    of groups that lost their last parameter.
    """

    node: Node
    groups: Groups
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    homes: tuple[int, ...] = ()
    reset: tuple[str, ...] = ()
    emptied: tuple[int, ...] = ()


def remove(optimizer: OptimizerState, correspondence: StateOwners, gone: Collection[str]) -> Edited:
    """Take the parameters named `gone` out, with their state; renumber the rest.

    Raises PlanError if it is not certain of some parameter whether it is one of them.
    """
    names = frozenset(gone)
    if not names:
        return Edited(optimizer.node, _members_of(optimizer))
    _require_claim(optimizer, correspondence)
    leaving: dict[Key, str] = {}
    for key in optimizer.keys:
        inside = correspondence.holds(key, names)
        if inside is None:
            _refuse_doubt(correspondence, key)
        if inside:
            leaving[key] = " or ".join(f"{name}" for name in correspondence.candidates(key))
    groups = tuple(
        tuple(member for member in group if member.key not in leaving)
        for group in _members_of(optimizer)
    )
    return Edited(
        rebuild(optimizer, groups),
        groups,
        removed=tuple(leaving.values()),
        emptied=_emptied(optimizer, groups),
    )


def rename(
    optimizer: OptimizerState,
    correspondence: StateOwners,
    new_names: Mapping[str, str],
    groups: Groups | None = None,
) -> Edited:
    """Let stored names follow a renaming of the model's parameters, given as old = new.

    `groups` are those that stay, all by default. An optimizer without stored names does not
    change: it knows its parameters by position. Raises PlanError if it stores names, and none is
    of the model.
    """
    stored = _stored(optimizer)
    if stored and correspondence.certainty == "none":
        _refuse_claim(correspondence)

    def renamed(member: Member) -> Member:
        in_model = correspondence.names.get(member.key) if member.key in stored else None
        if in_model is None or new_names.get(in_model, in_model) == in_model:
            return member
        return replace(member, name=new_names[in_model])

    given = _members_of(optimizer) if groups is None else groups
    new = tuple(tuple(map(renamed, group)) for group in given)
    return Edited(rebuild(optimizer, new), new)


def align(
    optimizer: OptimizerState,
    correspondence: StateOwners,
    targets: Sequence[Target],
    order: Sequence[str] | None = None,
) -> Edited:
    """Make the optimizer fit a model with these parameters.

    What no target has for a source leaves; a new parameter takes its place in the group of its
    neighbours; parameters that the optimizer never had (frozen ones) stay out. Groups follow the
    order of the targets if they did that of the model, which is `order` (default: that of the
    targets). Raises PlanError if they did not, or if it is not certain which parameters leave,
    change or move, or which group a new one belongs to.
    """
    _require_claim(optimizer, correspondence)
    if correspondence.foreign:
        raise PlanError(
            f"the optimizer also holds '{correspondence.foreign[0]}', which the model has not",
            hint=HINT,
        )
    alignment = _Alignment(optimizer, correspondence, targets)
    if order is None:
        order = [target.source for target in targets if target.source is not None]
    alignment.follow(order)
    added = alignment.add()
    groups = alignment.groups
    return Edited(
        rebuild(optimizer, groups),
        groups,
        removed=tuple(alignment.removed),
        added=tuple(added),
        homes=tuple(added.values()),
        reset=tuple(alignment.reset),
        emptied=_emptied(optimizer, groups),
    )


class _Alignment:
    """The members of each group, and the target that each is, by its position.

    A key that may be one of several parameters stays where it is if nothing happens to any of
    them; its positions are then those of all.
    """

    def __init__(
        self,
        optimizer: OptimizerState,
        correspondence: StateOwners,
        targets: Sequence[Target],
    ) -> None:
        self.optimizer, self.correspondence, self.targets = optimizer, correspondence, targets
        self.place = {t.source: i for i, t in enumerate(targets) if t.source is not None}
        self.stored = _stored(optimizer)
        self.removed: list[str] = []
        self.reset: list[str] = []
        self._spans: list[list[tuple[int, int]]] = []
        self._members: list[list[Member]] = []
        for group in optimizer.groups:
            kept = [(key, span) for key in group.keys if (span := self._span(key)) is not None]
            self._members.append([self._member(key, *span) for key, span in kept])
            self._spans.append([span for _, span in kept])
        places = {target.name: i for i, target in enumerate(targets)}
        self.reset.sort(key=places.__getitem__)

    @property
    def groups(self) -> Groups:
        """The members of each group, in their order."""
        return tuple(map(tuple, self._members))

    def _span(self, key: Key) -> tuple[int, int] | None:
        """Return the first and the last target that a key may be; None if it leaves."""
        candidates = self.correspondence.candidates(key)
        places = [self.place[name] for name in candidates if name in self.place]
        if candidates and not places:
            self.removed.append(" or ".join(candidates))
            return None
        changed = any(self.targets[i].reset or self.targets[i].moments for i in places)
        if len(places) < len(candidates) or not places or (len(places) > 1 and changed):
            _refuse_doubt(self.correspondence, key)
        return min(places), max(places)

    def _member(self, key: Key, first: int, last: int) -> Member:
        if first < last:
            return Member(key)
        target = self.targets[first]
        # if it keeps its name, as the optimizer spells it, perhaps without a wrapper
        name = target.name if self.stored and target.name != target.source else None
        if target.reset and key in self.optimizer.states:
            self.reset.append(target.name)
        return Member(key, name, target.reset, target.moments, target.change)

    def follow(self, order: Sequence[str]) -> None:
        """Bring every group in the order of the targets, if it has the model's, `order`."""
        _require_model_order(self.optimizer, self.correspondence, order)
        places = [self.place[name] for name in order if name in self.place]
        if places == sorted(places):
            return
        for key in self.optimizer.keys:
            if len(self.correspondence.candidates(key)) > 1:
                _refuse_doubt(self.correspondence, key)
        for i, (members, spans) in enumerate(zip(self._members, self._spans, strict=True)):
            pairs = sorted(zip(spans, members, strict=True), key=lambda pair: pair[0])
            self._spans[i] = [span for span, _ in pairs]
            self._members[i] = [member for _, member in pairs]

    def add(self) -> dict[str, int]:
        """Put the new parameters into the groups where they belong; these by their names."""
        if all(target.source is not None for target in self.targets):
            return {}
        homes = Homes(
            self._homes(),
            [target.source is None for target in self.targets],
            [target.ndim for target in self.targets],
            len(self._members),
        )
        new: list[list[tuple[int, Member]]] = [[] for _ in self._members]
        added: dict[str, int] = {}
        for position, target in enumerate(self.targets):
            home = self._home(target, homes, position) if target.source is None else None
            if home is not None:
                member = Member(None, target.name if self.stored else None)
                new[home].append((position, member))
                added[target.name] = home
        for i, (members, spans) in enumerate(zip(self._members, self._spans, strict=True)):
            # neighbours are certain, so what is in doubt stands before or after them
            certain = accumulate((-1 if first < last else first for first, last in spans), max)
            placed = [*zip(certain, members, strict=True), *new[i]]
            self._members[i] = [member for _, member in sorted(placed, key=lambda pair: pair[0])]
        return added

    def _home(self, target: Target, homes: Homes, position: int) -> int | None:
        home = homes.of(position) if target.home is None else target.home
        if home == UNCERTAIN:
            _refuse_home(target.name)
        if home is not None and home >= len(self._members):
            groups = len(self._members)
            raise PlanError(
                f"there is no group {home} for '{target.name}': the optimizer has {groups}",
                hint=f"its groups are 0 to {groups - 1}",
            )
        return home

    def _homes(self) -> list[int | None]:
        """Return the group of each target, None of what is in none, or `UNCERTAIN`."""
        homes: list[int | None] = [None] * len(self.targets)
        for i, spans in enumerate(self._spans):
            for first, last in spans:
                if first == last:
                    homes[first] = i
        for key in self.optimizer.keys:
            candidates = self.correspondence.candidates(key)
            for name in candidates if len(candidates) > 1 else ():
                if name in self.place:
                    homes[self.place[name]] = UNCERTAIN
        return homes


def _refuse_home(name: str) -> NoReturn:
    raise PlanError(
        f"which group the new parameter '{name}' belongs to is not certain",
        hint=f"'--optimizer-group {name}=K' of 'ckpt fit' says it; {HINT}",
    )


def _require_model_order(
    optimizer: OptimizerState, correspondence: StateOwners, order: Sequence[str]
) -> None:
    place = {name: i for i, name in enumerate(order)}
    for group in optimizer.groups:
        names = (correspondence.names.get(key) for key in group.keys)
        places = [place[name] for name in names if name in place]
        if places != sorted(places):
            raise PlanError(
                "the optimizer lists its parameters in another order than the model", hint=HINT
            )


def _require_claim(optimizer: OptimizerState, correspondence: StateOwners) -> None:
    if optimizer.shared:
        raise PlanError("its state is one of all parameters together", hint=HINT)
    if correspondence.certainty == "none":
        _refuse_claim(correspondence)


def _refuse_claim(correspondence: StateOwners) -> NoReturn:
    raise PlanError(
        "which state of the optimizer belongs to which parameter cannot be told:"
        f" {correspondence.reason}",
        hint=HINT,
    )


def _refuse_doubt(correspondence: StateOwners, key: Key) -> NoReturn:
    candidates = correspondence.candidates(key)
    shown = ", ".join(f"'{name}'" for name in candidates[:3])
    more = ", …" if len(candidates) > 3 else ""
    raise PlanError(
        f"parameter {key} of the optimizer may be any of {shown}{more}"
        if candidates
        else f"parameter {key} of the optimizer is none of the model's",
        hint=HINT,
    )


def _stored(optimizer: OptimizerState) -> dict[Key, str]:
    """Return the names that the optimizer itself has, as it spells them."""
    names: dict[Key, str] = {key: key for key in optimizer.keys if isinstance(key, str)}
    for group in optimizer.groups:
        names.update(zip(group.keys, group.names or (), strict=False))
    return names


def _emptied(optimizer: OptimizerState, groups: Groups) -> tuple[int, ...]:
    return tuple(
        i
        for i, (old, new) in enumerate(zip(optimizer.groups, groups, strict=True))
        if old.keys and not new
    )


def _members_of(optimizer: OptimizerState) -> Groups:
    """Return the groups of an optimizer as they are."""
    return tuple(tuple(Member(key) for key in group.keys) for group in optimizer.groups)


def rebuild(optimizer: OptimizerState, groups: Groups) -> Node:
    """Return the optimizer with these members in its groups, in their order.

    It is the old node if they are the old ones. Raises PlanError if a member is none of its
    parameters, or there are other groups than it has.
    """
    _require_own(optimizer, groups)
    stored = _stored(optimizer)
    full = [[_named(member, stored) for member in group] for group in groups]
    if full == [[_named(m, stored) for m in group] for group in _members_of(optimizer)]:
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
    place = {
        member.key: (member, key)
        for members, own in zip(groups, keys, strict=True)
        for member, key in zip(members, own, strict=True)
        if member.key is not None
    }
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
        elif key in place and not place[key][0].reset:
            member, new_key = place[key]
            if new_key != key:  # a text of a number stays one
                key_node = new_key if isinstance(key_node, int) else str(new_key)  # noqa: PLW2901
            items += (key_node, _with_fields(value, member.moments))
    return with_items(old, items)


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
