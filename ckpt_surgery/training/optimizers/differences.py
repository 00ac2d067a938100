"""Tell what an edit did to the parameters that an optimizer may hold: each new one's origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.optimizers.members import MomentChange, MomentMaker, Target
from ckpt_surgery.training.optimizers.survey import qualified
from ckpt_surgery.training.parameters import Inventory, Parameter

Sources: TypeAlias = Mapping[str, Mapping[str, str | None]]
"""By the path of a state dict, old names by new ones; None for a parameter that begins anew."""

Parameters: TypeAlias = Mapping[str, Sequence[Parameter]]
"""By the path of a state dict, the parameters of the model that is to load it, in its order."""

ChosenGroups: TypeAlias = Callable[[str], int | None]
"""By the name of a parameter, the position of the group that it joins if it is new."""

MomentChanges: TypeAlias = Mapping[str, Mapping[str, MomentChange | MomentMaker]]
"""By the path of a state dict and a parameter's new name there, what is done to its moments."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What an edit did to the parameters that an optimizer may hold: each new one's origin.

    `gone` are old names, `renamed` old to new ones. `moments` says by new names what is done to
    the moments of a parameter that is not the same as it was.
    """

    targets: tuple[Target, ...]
    gone: tuple[str, ...]
    renamed: Mapping[str, str]
    reordered: bool
    moments: Mapping[str, MomentChange | MomentMaker]

    @classmethod
    def of(
        cls,
        state_dicts: Sequence[StateDict],
        after: Checkpoint,
        sources: Sources,
        parameters: Parameters,
        moments: MomentChanges,
        homes: ChosenGroups | None,
        *,
        every: bool = False,
    ) -> Difference:
        """Compare the parameters of `state_dicts` with those that they have in `after`.

        With `every` each of their tensors is a parameter.
        """
        new = {s.path: s for s in after.state_dicts}
        targets: list[Target] = []
        old_names: list[str] = []
        changed: dict[str, MomentChange | MomentMaker] = {}
        for old_dict in state_dicts:
            old = Inventory.of_state_dict(old_dict, every=every).parameters
            old_names += (qualified(state_dicts, old_dict, p.name) for p in old)
            new_dict = new.get(old_dict.path)
            if new_dict is None:
                continue
            lineage = _Lineage(old_dict, old, new_dict, sources.get(old_dict.path, {}))
            own = parameters.get(old_dict.path)
            own = own or Inventory.of_state_dict(new_dict, every=every).parameters
            made = _made(moments.get(old_dict.path, {}), old)
            for parameter in own:
                name = qualified(state_dicts, old_dict, parameter.name)
                derived = next((made[n] for n in parameter.names if n in made), None)
                if derived is not None:
                    names = tuple(qualified(state_dicts, old_dict, n) for n in derived[0])
                    axes = len(parameter.shape)
                    targets.append(Target(name, None, ndim=axes, made_of=names))
                    changed[name] = derived[1]
                    continue
                source, anew = lineage.of(parameter)
                origin = None if source is None else qualified(state_dicts, old_dict, source.name)
                change = moments.get(old_dict.path, {}).get(parameter.name)
                change = None if isinstance(change, MomentMaker) else change
                reshaped = source is not None and source.shape != parameter.shape
                other = reshaped or (source is not None and change is not None)
                home = homes(parameter.name) if homes is not None and source is None else None
                axes = len((source or parameter).shape)
                targets.append(Target(name, origin, reset=anew or other, ndim=axes, home=home))
                if change is not None and other and not anew:
                    changed[name] = change
        kept = [target.source for target in targets if target.source is not None]
        known = {*kept, *(name for target in targets for name in target.made_of)}
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


def _made(
    moments: Mapping[str, MomentChange | MomentMaker], old: Sequence[Parameter]
) -> dict[str, tuple[tuple[str, ...], MomentMaker]]:
    """Return what is made of several old parameters, by its new name, with their first names."""
    firsts = {name: parameter.name for parameter in old for name in parameter.names}
    found: dict[str, tuple[tuple[str, ...], MomentMaker]] = {}
    for name, change in moments.items():
        if isinstance(change, MomentMaker) and all(source in firsts for source in change.names):
            found[name] = tuple(firsts[source] for source in change.names), change
    return found


class Differences:
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
        self._known: dict[tuple[int, ...], Difference] = {}

    def of(self, state_dicts: tuple[StateDict, ...], *, every: bool = False) -> Difference:
        """Return the difference of these state dicts, which must be those from before the edit."""
        key = (every, *map(id, state_dicts))
        if key not in self._known:
            given = self._given
            self._known[key] = Difference.of(state_dicts, self._after, *given, every=every)
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
            for entry in old_dict.entries
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
