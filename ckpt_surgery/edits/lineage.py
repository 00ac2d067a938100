"""Where entries come from that edits made of others, so that an optimizer's state can follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.folds import FoldBranches, FoldSpectralNorm, FoldWeightNorm
from ckpt_surgery.edits.layers import Layers
from ckpt_surgery.edits.moments import EditMoment, MadeMoment
from ckpt_surgery.edits.parts import Concat, Split
from ckpt_surgery.edits.rename import Rename
from ckpt_surgery.edits.share import Copy, Tie, Untie
from ckpt_surgery.edits.values import ValueEdit
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.parameters import Inventory


@dataclass(frozen=True, slots=True)
class _Ancestry:
    """The old names that an entry is made of, and the steps that made it, by their numbers.

    `anew`: its numbers are others by now, which no state follows. `tied`: it is one with its
    source, whose state goes on for both.
    """

    sources: tuple[str, ...]
    steps: tuple[int, ...] = ()
    anew: bool = False
    tied: bool = False


class Lineage:
    """What was done to the entries of one state dict, by the names that they have by now."""

    def __init__(self, state_dict: StateDict) -> None:
        self._shapes = {name: tensor.shape for name, tensor in state_dict.tensors}
        self._now = {name: _Ancestry((name,)) for name in self._shapes}
        self._firsts = {
            name: parameter.name
            for parameter in Inventory.of_state_dict(state_dict).parameters
            for name in parameter.names
        }
        self._untied: set[str] = set()
        self._steps: list[Edit] = []

    def note(self, edit: Edit) -> None:
        """Take an edit of this state dict into account."""
        now = self._now
        match edit:
            case ValueEdit(name=name) if edit.moments == "move":
                now[name] = self._after([name], edit)
            case ValueEdit(name=name) if edit.moments == "anew":
                now[name] = replace(now[name], anew=True, tied=False)
            case Split(name=name, names=names):
                made = self._after([name], edit)
                del now[name]
                now.update(dict.fromkeys(names, made))
            case Concat(names=names, name=new):
                made = self._after(names, edit)
                for name in names:
                    del now[name]
                now[new] = made
            case Rename(old=old, new=new):
                if old in now:  # else it is no tensor
                    now[new] = replace(self._after([old], edit), tied=now[old].tied)
                    del now[old]
            case Copy(old=old, new=new):
                now[new] = self._after([old], edit)
            case Tie(name=name, to=to):
                tied = now[to].tied or not now[to].steps
                now[name] = replace(self._after([to], edit), tied=tied)
            case Untie(name=name):
                self._untied.add(name)
                now[name] = replace(now[name], tied=False)
            case Layers():
                self._stack(edit)
            case FoldBranches() | FoldWeightNorm() | FoldSpectralNorm():
                now.update(dict.fromkeys(edit.results, _Ancestry((), anew=True)))

    def _after(self, names: Sequence[str], edit: Edit) -> _Ancestry:
        """Return what comes of entries by an edit."""
        found = [self._now[name] for name in names]
        self._steps.append(edit)
        steps = {step for each in found for step in each.steps}
        return _Ancestry(
            tuple(dict.fromkeys(source for each in found for source in each.sources)),
            (*sorted(steps), len(self._steps) - 1),
            any(each.anew for each in found),
        )

    def _stack(self, edit: Layers) -> None:
        before = dict(self._now)
        for name in before:
            if edit.number_of(name) is not None:
                del self._now[name]
        made = {
            new: before[old] if old == new else self._copied(before[old], edit, old, new)
            for old, new in edit.pairs(before)
        }
        self._now.update(made)

    def _copied(self, ancestry: _Ancestry, edit: Layers, old: str, new: str) -> _Ancestry:
        self._steps.append(Copy(edit.state_dict, old, new))
        return replace(ancestry, steps=(*ancestry.steps, len(self._steps) - 1), tied=False)

    @property
    def anew(self) -> list[str]:
        """The names of entries whose numbers are others by now."""
        return [name for name, each in self._now.items() if each.anew]

    @property
    def sources(self) -> dict[str, str | None]:
        """Old names by the new ones, where one goes on as the other; None where one begins anew."""
        found: dict[str, str | None] = {}
        uses = self._uses()
        for name, each in self._now.items():
            if each.anew:
                found[name] = None
            elif each.steps and not each.tied and self._goes_on(name, each, uses):
                found[name] = each.sources[0]
        return found

    @property
    def moments(self) -> Mapping[str, Any]:
        """What is done to the moments of each entry, by its new name, where anything is."""
        found: dict[str, Any] = {}
        uses = self._uses()
        shared = Counter(self._firsts.values())
        for name, each in self._now.items():
            if each.anew or each.tied or not (each.steps or name in self._untied):
                continue
            if self._goes_on(name, each, uses):
                edits = tuple(e for e in self._of(each) if isinstance(e, ValueEdit))
                if edits:
                    found[name] = EditMoment.of(edits, self._shapes[each.sources[0]])
            elif each.steps or shared[self._firsts.get(name, "")] > 1:
                found[name] = self._made(name, each)
        return found

    def _goes_on(self, name: str, ancestry: _Ancestry, uses: Counter[str]) -> bool:
        """Return whether it is one old entry that only moved, and nothing else is made of that."""
        alone = len(ancestry.sources) == 1 and uses[ancestry.sources[0]] == 1
        whole = all(isinstance(edit, ValueEdit | Rename) for edit in self._of(ancestry))
        return alone and whole and name not in self._untied

    def _uses(self) -> Counter[str]:
        own = (each for each in self._now.values() if not each.tied)
        return Counter(source for each in own for source in each.sources)

    def _of(self, ancestry: _Ancestry) -> Iterator[Edit]:
        return (self._steps[number] for number in ancestry.steps)

    def _made(self, name: str, ancestry: _Ancestry) -> MadeMoment:
        edits = tuple({**edit.to_dict(), "state_dict": ""} for edit in self._of(ancestry))
        shapes = tuple(self._shapes[source] for source in ancestry.sources)
        return MadeMoment(edits, ancestry.sources, shapes, name)
