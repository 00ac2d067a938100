"""Stack the numbered layers of a model anew: left out, in another order, several times over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, join_path
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_distinct
from ckpt_surgery.edits.share import own_entry
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Dict, Node
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Layers(BatchEdit):
    """Make the layers below `prefix` (``model.layers``) those that have the numbers of `order`.

    They are numbered from 0 on; one that comes again gets bytes of its own. Layers that are not
    in `order` go.
    """

    kind: ClassVar[str] = "layers"
    state_dict: str
    prefix: str
    order: tuple[int, ...]

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Layers],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these stacks.

        Raises `PlanError` for a number that no layer has.
        """
        return edit_state_dicts(run, checkpoint, _stacked)

    def number_of(self, name: str) -> int | None:
        """Return the number of the layer that a name, or a module, is in; None if in none."""
        head, dot, rest = name.partition(f"{self.prefix}.")
        number = rest.partition(".")[0]
        plain = not head and dot and number.isascii() and number.isdecimal()
        return int(number) if plain and str(int(number)) == number else None

    def pairs(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield each old name in a layer with the new one, in the order of the new layers."""
        layers: dict[int, list[str]] = {}
        for name in names:
            number = self.number_of(name)
            if number is not None:
                layers.setdefault(number, []).append(name)
        for new, old in enumerate(self.order):
            skipped = len(f"{self.prefix}.{old}")
            for name in layers.get(old, ()):
                yield name, f"{self.prefix}.{new}{name[skipped:]}"


def _stacked(state_dict: StateDict, edits: Sequence[Layers]) -> StateDict:
    for edit in edits:
        state_dict = _stack(state_dict, edit)
    return state_dict


def _stack(state_dict: StateDict, edit: Layers) -> StateDict:
    numbers = {edit.number_of(name) for name in state_dict.names} - {None}
    for number in edit.order:
        if number not in numbers:
            last = max((each for each in numbers if each is not None), default=-1)
            where = f"{edit.prefix}.{number}"
            raise PlanError(
                "there is no such layer",
                entry=join_path(state_dict.path, where),
                hint=f"the last one is '{edit.prefix}.{last}'" if numbers else None,
            )
    by_name = {entry.name: entry for entry in state_dict.entries}
    taken: set[str] = set()
    layers: list[Entry] = []
    for old, new in edit.pairs(by_name):
        entry = by_name[old]
        if old in taken and entry.tensor is not None:
            layers.append(own_entry(state_dict.path, entry, new))
        else:
            layers.append(entry if old == new else replace(entry, name=new, key_node=None))
        taken.add(old)
    entries: list[Entry] = []
    placed = False
    for entry in state_dict.entries:
        if edit.number_of(entry.name) is None:
            entries.append(entry)
        elif not placed:
            entries += layers
            placed = True
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries), metadata=_modules(state_dict, edit))


def _modules(state_dict: StateDict, edit: Layers) -> dict[str, Node] | None:
    """Return ``_metadata`` for the new layers, in the place of the old ones."""
    old = state_dict.metadata
    if old is None:
        return None
    layers: dict[str, Node] = {}
    taken: set[str] = set()
    for module, new in edit.pairs(old):
        node = old[module]
        again = module in taken and isinstance(node, Dict)
        layers[new] = Dict(list(node.items)) if again and isinstance(node, Dict) else node
        taken.add(module)
    found: dict[str, Node] = {}
    for module, node in old.items():
        if edit.number_of(module) is None:
            found[module] = node
        elif layers:
            found |= layers
            layers = {}
    return found
