"""Plain values beside the weights, or among them where they are no tensors."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any, ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import with_state_dicts
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import NO_STATE, Dict, List, Node, Object, own_text
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.entries import Entries, Place
from ckpt_surgery.torch_objects.kinds import plain_value, type_name
from ckpt_surgery.torch_objects.locate import locate, not_found
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of, with_items
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.values import NoValueError, node_like, node_of


@dataclass(frozen=True, slots=True)
class SetValue(Edit):
    """Put `value`, in TOML, where `path` leads; the last part of the path may be new.

    With `like_type` it becomes of the kind that the old value is.
    """

    kind: ClassVar[str] = "set-value"
    path: str
    value: str
    like_type: bool = False

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the value.

        Raises `PlanError` for a path that leads to nothing, or to tensors, and for a value that
        cannot be.
        """
        try:
            found = locate(checkpoint, self.path)
            if found is None:
                return _with_new(checkpoint, self.path, node_of(self.toml))
            _require_no_tensors(checkpoint, self.path, found.node, found.entry)
            new = node_like(found.node, self.toml) if self.like_type else node_of(self.toml)
            if found.entry is not None:
                return _with_entry(checkpoint, *found.entry, new)
            assert found.place is not None  # noqa: S101 - it is one or the other
            return _with_changed(checkpoint, found.place, new)
        except NoValueError as error:
            raise PlanError(str(error), path=checkpoint.file.name, entry=self.path) from error

    @property
    def toml(self) -> Any:
        """The value. Raises `PlanError` if the text is no value of TOML."""
        try:
            return tomllib.loads(f"value = {self.value}\n")["value"]
        except (ValueError, RecursionError) as error:
            raise PlanError(f"'{self.value}' is no value of TOML", entry=self.path) from error


def _require_no_tensors(
    checkpoint: Checkpoint, path: str, node: Node, entry: tuple[StateDict, Entry] | None
) -> None:
    """Raise `PlanError` for a tensor, and for what holds tensors, which a value would remove."""
    if entry is not None and entry[1].tensor is not None:
        raise PlanError(
            "it is a tensor",
            path=checkpoint.file.name,
            entry=path,
            hint="'ckpt edit' changes what tensors hold",
        )
    if next(iter(TensorReader().below(node, set())), None) is not None:
        others = [s for s in checkpoint.state_dicts if not f"{s.path}/".startswith(f"{path}/")]
        raise PlanError(
            "it holds tensors, which a plain value would remove",
            path=checkpoint.file.name,
            entry=path,
            hint="'--delete' removes it" if others else None,
        )


def _with_entry(
    checkpoint: Checkpoint, state_dict: StateDict, entry: Entry, new: Node
) -> Checkpoint:
    """Return the checkpoint with another value for an entry of a state dict that is no tensor."""
    entries = tuple(replace(e, node=new) if e is entry else e for e in state_dict.entries)
    return with_state_dicts(checkpoint, {state_dict.path: replace(state_dict, entries=entries)})


def _with_changed(checkpoint: Checkpoint, place: Place, new: Node) -> Checkpoint:
    """Return the checkpoint with another node at a place."""
    entries = Entries(checkpoint)
    replaced: dict[int, Node] = {}
    if place.holder is not None:
        items: list[Node] = []
        for key, value in entries.items(place.holder):
            items += (key, new if key is place.key else value)
        replaced[id(place.holder)] = with_items(entries.now(place.holder), items)
    else:
        holder = checkpoint.root if place.above is None else place.above.node
        replaced[id(holder)] = _with_element(entries.now(holder), place.key, new)
    # nodes are replaced by their identity, so that the old one must stay alive
    alive = (place.node,)
    others = tuple(
        _described(other, new) if _is_at(other, place) else other for other in checkpoint.others
    )
    return replace(
        checkpoint,
        others=others,
        replaced={**checkpoint.replaced, **replaced, id(alive): alive},
    )


def _is_at(other: Other, place: Place) -> bool:
    return place.holder is not None and other.path == place.path and other.key_node is place.key


def _described(other: Other, node: Node) -> Other:
    """Return another entry's description with another value."""
    return replace(other, node=node, type=type_name(node), value=plain_value(node), tensors=())


def _with_element(node: Node, index: Node, new: Node) -> Node:
    """Return a list, a tuple or an object with elements that has another one at `index`."""
    if isinstance(node, Object):
        elements = [new if i == index else each for i, each in enumerate(node.elements or ())]
        return Object(
            node.op, node.callee, node.args, elements=elements, items=node.items, state=node.state
        )
    assert isinstance(node, list | tuple)  # noqa: S101 - it has elements
    changed = [new if i == index else each for i, each in enumerate(node)]
    return tuple(changed) if isinstance(node, tuple) else List(changed)


def _with_new(checkpoint: Checkpoint, path: str, new: Node) -> Checkpoint:
    """Return the checkpoint with a new key in the dictionary, or the attributes, above a path."""
    above, _, name = path.rpartition("/")
    entries = Entries(checkpoint)
    holder: Node = checkpoint.root
    if above:
        found = locate(checkpoint, above)
        if found is None or found.place is None:
            raise not_found(checkpoint, path)
        holder = found.place.node
    if any(state_dict.node is holder for state_dict in checkpoint.state_dicts):
        raise PlanError(
            f"'{path}' is not there, and what would hold it are the weights",
            path=checkpoint.file.name,
            hint="'ckpt rename --wrap model' puts a dictionary around them",
        )
    now = entries.now(holder)
    key = own_text(name)
    replaced: dict[int, Node] = {}
    pairs = mapping_pairs(now)
    if pairs is None and isinstance(now, Object):
        state = state_of(now)
        pairs = mapping_pairs(entries.now(state))
        if pairs is not None:
            holder, now = state, entries.now(state)
        elif state is NO_STATE and now.op != "REDUCE":
            replaced[id(holder)] = Object(
                now.op, now.callee, now.args, elements=now.elements, items=now.items,
                state=Dict([key, new]),
            )  # fmt: skip
    if pairs is not None:
        replaced[id(holder)] = with_items(now, [n for pair in pairs for n in pair] + [key, new])
    if not name or not replaced:
        raise not_found(checkpoint, path)
    listed = holder is checkpoint.root or any(o.parent is holder for o in checkpoint.others)
    made = Other(path, type_name(new), plain_value(new), (), new, holder, key)
    return replace(
        checkpoint,
        others=(*checkpoint.others, made) if listed else checkpoint.others,
        replaced={**checkpoint.replaced, **replaced},
    )
