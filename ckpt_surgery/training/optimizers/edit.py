"""Keeping an optimizer in step with its model: new nodes, the old ones are never changed.

`Optimizer.load_state_dict` matches by position: group by group the saved number of parameters must
be the optimizer's own. So what leaves the model leaves its group, what comes takes its place
there, and the indices of all others follow. A group that becomes empty stays, because the number
of groups must agree too, and a scheduler keeps one learning rate for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NoReturn

from ckpt_surgery.errors import PlanError
from ckpt_surgery.training.optimizers.correspond import StateOwners
from ckpt_surgery.training.optimizers.homes import UNCERTAIN, Homes
from ckpt_surgery.training.optimizers.members import (
    HINT,
    Edited,
    Groups,
    Member,
    Target,
    members_of,
    stored_names,
)
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState
from ckpt_surgery.training.optimizers.regroup import rebuild


def remove(optimizer: OptimizerState, correspondence: StateOwners, gone: Collection[str]) -> Edited:
    """Take the parameters named `gone` out, with their state; renumber the rest.

    Raises PlanError if it is not certain of some parameter whether it is one of them.
    """
    names = frozenset(gone)
    if not names:
        return Edited(optimizer.node, members_of(optimizer))
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
        for group in members_of(optimizer)
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
    stored = stored_names(optimizer)
    if stored and correspondence.certainty == "none":
        _refuse_claim(correspondence)

    def renamed(member: Member) -> Member:
        in_model = correspondence.names.get(member.key) if member.key in stored else None
        if in_model is None or new_names.get(in_model, in_model) == in_model:
            return member
        return replace(member, name=new_names[in_model])

    given = members_of(optimizer) if groups is None else groups
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
        self.used = {name for target in targets for name in target.made_of}
        self.stored = stored_names(optimizer)
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
        if len(candidates) == 1 and not places and candidates[0] in self.used:
            return None
        if candidates and not places:
            self.removed.append(" or ".join(candidates))
            return None
        changed = any(self.targets[i].reset or self.targets[i].moments for i in places)
        changed = changed or not self.used.isdisjoint(candidates)
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
            [target.source is None and not target.made_of for target in self.targets],
            [target.ndim for target in self.targets],
            len(self._members),
            [target.name for target in self.targets],
        )
        new: list[list[tuple[int, Member]]] = [[] for _ in self._members]
        added: dict[str, int] = {}
        for position, target in enumerate(self.targets):
            home = self._home(target, homes, position) if target.source is None else None
            if home is not None:
                name = target.name if self.stored else None
                member = Member(None, name)
                if target.moments:
                    keys = tuple(key for key, _ in self._owners(target))
                    member = Member(None, name, False, target.moments, target.change, keys)
                elif target.reset:
                    self.reset.append(target.name)
                elif not target.made_of:
                    added[target.name] = home
                new[home].append((position, member))
        for i, (members, spans) in enumerate(zip(self._members, self._spans, strict=True)):
            # neighbours are certain, so what is in doubt stands before or after them
            certain = accumulate((-1 if first < last else first for first, last in spans), max)
            placed = [*zip(certain, members, strict=True), *new[i]]
            self._members[i] = [member for _, member in sorted(placed, key=lambda pair: pair[0])]
        return added

    def _home(self, target: Target, homes: Homes, position: int) -> int | None:
        if target.made_of:
            return self._home_of_parts(target)
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

    def _owners(self, target: Target) -> list[tuple[Key, int]]:
        """Return the parameters that a target is made of, each with its group."""
        groups = {key: i for i, group in enumerate(self.optimizer.groups) for key in group.keys}
        for key in self.optimizer.keys:
            candidates = self.correspondence.candidates(key)
            if len(candidates) > 1 and not set(candidates).isdisjoint(target.made_of):
                _refuse_doubt(self.correspondence, key)
        keys = [self.correspondence.key_of(name) for name in target.made_of]
        return [(key, groups[key]) for key in keys if key is not None]

    def _home_of_parts(self, target: Target) -> int | None:
        """Return the group of what a target is made of; None if the optimizer has none of it."""
        owners = self._owners(target)
        homes = {home for _, home in owners}
        if len(homes) > 1 or 0 < len(owners) < len(target.made_of):
            names = ", ".join(f"'{name}'" for name in target.made_of)
            raise PlanError(f"{names} are not in one group, and become '{target.name}'", hint=HINT)
        return homes.pop() if homes else None

    def _homes(self) -> list[int | None]:
        """Return the group of each target, None of what is in none, or `UNCERTAIN`."""
        homes: list[int | None] = [None] * len(self.targets)
        for i, spans in enumerate(self._spans):
            for first, last in spans:
                if first == last:
                    homes[first] = i
        for i, target in enumerate(self.targets):
            if target.made_of:
                homes[i] = self._home_of_parts(target)
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


def _emptied(optimizer: OptimizerState, groups: Groups) -> tuple[int, ...]:
    return tuple(
        i
        for i, (old, new) in enumerate(zip(optimizer.groups, groups, strict=True))
        if old.keys and not new
    )
