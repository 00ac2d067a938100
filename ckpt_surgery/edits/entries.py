"""Other names for entries beside the weights, and a dictionary around everything or none."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict, join_path
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import not_there
from ckpt_surgery.errors import NameCollisionError, PlanError
from ckpt_surgery.pickles import Dict, Node, own_text, walk
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.entries import Entries, Place
from ckpt_surgery.torch_objects.mappings import with_items
from ckpt_surgery.torch_objects.storages import text


@dataclass(frozen=True, slots=True)
class RenameEntry(Edit):
    """Put what lies at the path `old`, a state dict or anything else, under the key `new`.

    It stays in the dictionary (or the attributes of an object) that it is in.
    """

    kind: ClassVar[str] = "rename-entry"
    old: str
    new: str

    def path_after(self, path: str) -> str:
        """Return the path of what is at or below the entry with the other key in it."""
        if path != self.old and not path.startswith(f"{self.old}/"):
            return path
        return self._path + path.removeprefix(self.old)

    @property
    def _path(self) -> str:
        return join_path(self.old.rpartition("/")[0], self.new)

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the other key.

        Raises `PlanError` for a key that is no text, `NameCollisionError` if `new` is taken.
        """
        entries = Entries(checkpoint)
        place = entries.find({self.old}).get(self.old)
        if place is None:
            raise not_there(checkpoint, self.old)
        if place.holder is None or text(place.key) is None:
            what = "an element of a list" if place.holder is None else "a number"
            raise PlanError(f"its key is {what}, which has no other name", entry=self.old)
        if "/" in place.name:
            raise PlanError("its key holds a slash, which paths cannot tell", entry=self.old)
        key = own_text(self.new)
        items: list[Node] = []
        for old_key, value in entries.items(place.holder):
            if text(old_key) == self.new:
                if entries.remains(place.holder, old_key):
                    raise NameCollisionError(
                        f"there is a '{self.new}' beside '{self.old}' already",
                        path=checkpoint.file.name,
                    )
                continue  # it was dropped, and leaves the key to this one
            items += (key if old_key is place.key else old_key, value)
        holder = with_items(entries.now(place.holder), items)
        moved = _moved(checkpoint, place, self, key, {id(place.holder): holder})
        left = (o for o in moved.dropped if not self._replaces(o, place.holder))
        return replace(moved, dropped=tuple(left))

    def _replaces(self, other: Other, holder: Node) -> bool:
        return other.parent is holder and text(other.key_node) == self.new


def _moved(
    checkpoint: Checkpoint, place: Place, edit: Edit, key: str, replaced: dict[int, Node]
) -> Checkpoint:
    """Return the checkpoint with what is at and below a place under another path."""
    inside = {id(node) for node in walk(place.node)}

    def path(old: str) -> str:
        return edit.path_after(old) or ""

    def other(each: Other) -> Other:
        if each.path == place.path:
            return replace(each, path=path(each.path), key_node=key)
        return replace(each, path=path(each.path)) if id(each.parent) in inside else each

    def state_dict(each: StateDict) -> StateDict:
        return replace(each, path=path(each.path)) if id(each.node) in inside else each

    return replace(
        checkpoint,
        state_dicts=tuple(map(state_dict, checkpoint.state_dicts)),
        others=tuple(map(other, checkpoint.others)),
        replaced={**checkpoint.replaced, **replaced},
    )


@dataclass(frozen=True, slots=True)
class Wrap(Edit):
    """Make everything the one entry, under `key`, of a dictionary around it."""

    kind: ClassVar[str] = "wrap"
    key: str

    def path_after(self, path: str) -> str:
        """Return the path below the dictionary."""
        return join_path(self.key, path) if path else self.key

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with a dictionary around it.

        Raises `PlanError` for several state dicts in a format that has no dictionary around them.
        """
        if checkpoint.root is None and (len(checkpoint.state_dicts) != 1 or checkpoint.others):
            raise PlanError(
                "only a single state dict of this format can be wrapped",
                path=checkpoint.file.name,
            )
        key = own_text(self.key)
        root = None if checkpoint.root is None else Dict([key, checkpoint.root])

        def other(each: Other) -> Other:
            below = replace(each, path=self.path_after(each.path))
            return below if each.path else replace(below, parent=root, key_node=key)

        return replace(
            checkpoint,
            root=root,
            state_dicts=tuple(
                replace(s, path=self.path_after(s.path)) for s in checkpoint.state_dicts
            ),
            others=tuple(map(other, checkpoint.others)),
        )


@dataclass(frozen=True, slots=True)
class Unwrap(Edit):
    """Make what lies under `key`, the one entry of the dictionary around it, the whole file."""

    kind: ClassVar[str] = "unwrap"
    key: str

    def path_after(self, path: str) -> str:
        """Return the path without the dictionary's key."""
        return path.removeprefix(self.key).removeprefix("/")

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint without that dictionary.

        Raises `PlanError` if `key` is not its one entry, so that nothing would get lost.
        """
        place = the_one_entry(checkpoint)
        if place.path != self.key:
            raise not_there(checkpoint, self.key)
        root = checkpoint.root
        return replace(
            checkpoint,
            root=place.node,
            state_dicts=tuple(
                replace(s, path=self.path_after(s.path)) for s in checkpoint.state_dicts
            ),
            others=tuple(
                replace(o, path="", parent=None, key_node=None)
                if o.path == self.key
                else replace(o, path=self.path_after(o.path))
                for o in checkpoint.others
            ),
            # nodes are replaced by their identity, so that the old root must stay alive
            replaced={**checkpoint.replaced, id(root): root},
        )


def the_one_entry(checkpoint: Checkpoint) -> Place:
    """Return the only entry of the dictionary that the file is.

    Raises `PlanError` if it is none, if there are more, or if nothing is in the entry.
    """
    weights = any(not state_dict.path for state_dict in checkpoint.state_dicts)
    places = [] if weights or checkpoint.root is None else list(Entries(checkpoint).top())
    if len(places) == 1 and places[0].holder is checkpoint.root:
        return places[0]
    if not places:
        raise PlanError("there is no dictionary around it", path=checkpoint.file.name)
    others = ", ".join(f"'{place.path}'" for place in places[:8])
    raise PlanError(
        f"the dictionary around it has {len(places)} entries: {others}",
        path=checkpoint.file.name,
        hint="--entry drops one, --state-dict-only writes the weights alone",
    )
