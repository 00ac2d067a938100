"""Moving averages of a model's weights (EMA, SWA): put in its place, dropped, kept in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Tensor
from ckpt_surgery.edits.base import BatchEdit, Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import not_there, state_dict_at, with_state_dicts
from ckpt_surgery.errors import LossyEditError, PlanError
from ckpt_surgery.names.metadata import rewrite_metadata, strip_metadata
from ckpt_surgery.pickles import Node, Object, walk
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.find import metadata_of
from ckpt_surgery.torch_objects.mappings import mapping_pairs, named_items
from ckpt_surgery.torch_objects.module_nodes import class_name_of
from ckpt_surgery.torch_objects.rebuild import lower_state_dict, stays_module
from ckpt_surgery.torch_objects.tensors import TensorReader

if TYPE_CHECKING:
    from ckpt_surgery.training.averages import Average


@dataclass(frozen=True, slots=True)
class TakeWeights(Edit):
    """Give the state dict `state_dict` the values that the average at the path `old` has for them.

    An average among the weights of its model has the path of their state dict.
    """

    kind: ClassVar[str] = "take-weights"
    state_dict: str
    old: str

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the average's values under the model's own names.

        Entries that the average lacks stay. Raises `PlanError` if it is no average of that model.
        """
        from ckpt_surgery.training.averages import find_averages

        model = state_dict_at(checkpoint, self.state_dict)
        average = next(
            (
                average
                for average in find_averages(checkpoint)
                if (average.model, average.path) == (self.state_dict, self.old) and average.names
            ),
            None,
        )
        if average is None:
            raise PlanError(
                f"'{self.old}' is no average of the weights in '{self.state_dict}'",
                path=checkpoint.file.name,
            )
        source = _whole_module(checkpoint, model, average)
        if source is not None:
            return _put_module(checkpoint, model, source)
        values = _values(checkpoint, average)
        entries = tuple(
            _with_value(entry, values[average.names[entry.name]])
            if entry.name in average.names
            else entry
            for entry in model.entries
        )
        return with_state_dicts(checkpoint, {self.state_dict: replace(model, entries=entries)})


def _whole_module(checkpoint: Checkpoint, model: StateDict, average: Average) -> StateDict | None:
    """Return the average's state dict if it and the model are pickled modules of one class, with
    the same entries: then the one can take the other's place as it is.
    """
    if average.place != "state dict" or any(old != new for old, new in average.names.items()):
        return None
    source = state_dict_at(checkpoint, average.path)
    classes = {_class_of(each.node) for each in (model, source)}
    same = source.names == model.names == list(average.names) and len(classes) == 1
    whole = stays_module(checkpoint, model) and stays_module(checkpoint, source)
    return source if same and whole else None


def _class_of(node: object) -> str:
    return class_name_of(node) if isinstance(node, Object) else ""


def _put_module(checkpoint: Checkpoint, model: StateDict, source: StateDict) -> Checkpoint:
    """Return the checkpoint with the module of `source` in the place of that of `model`."""
    put = replace(source, path=model.path, kind=model.kind)
    replaced = {**checkpoint.replaced, id(model.node): source.node}
    return replace(with_state_dicts(checkpoint, {model.path: put}), replaced=replaced)


def _with_value(entry: Entry, value: Entry) -> Entry:
    if value.tensor is None or entry.tensor is None:
        return replace(entry, tensor=value.tensor, node=value.node)
    tensor = replace(value.tensor, is_parameter=entry.tensor.is_parameter)
    return replace(entry, tensor=tensor, node=value.node)


def _values(checkpoint: Checkpoint, average: Average) -> dict[str, Entry]:
    """Return the entries of an average by the names that `Average.names` has for them."""
    if average.place in {"state dict", "inside"}:
        entries = state_dict_at(checkpoint, average.path).entries
        return {entry.name: entry for entry in entries}
    reader = TensorReader()
    return {
        name: Entry(name, reader.describe(node), node=node)
        for name, node in _items(average).items()
    }


def _items(average: Average) -> dict[str, Node]:
    """Return what an average that is no state dict holds: by position of a list, by name of a
    mapping.
    """
    from ckpt_surgery.training.averages import shadow_list

    if average.place == "entry":
        return named_items(average.node) or {}
    return {str(i): node for i, node in enumerate(shadow_list(average.node))}


@dataclass(frozen=True, slots=True)
class UpdateAverage(Edit):
    """Let the average at `path`, which is no state dict, follow what was done to its model.

    `names` are its entries (positions of a list) by now, in their order: what each was called
    before. An entry that is not in it is removed.
    """

    kind: ClassVar[str] = "update-average"
    path: str
    names: Mapping[str, str]

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with this average updated."""
        for other in checkpoint.others:
            if self.path == other.path or self.path.startswith(f"{other.path}/"):
                return self._updated(checkpoint, other)
        raise not_there(checkpoint, self.path)

    def _updated(self, checkpoint: Checkpoint, other: Other) -> Checkpoint:
        from ckpt_surgery.training.averages import Average, find_averages

        known = {average.path: average for average in find_averages(checkpoint)}
        if self.path == other.path and isinstance(other.node, list):
            # its model may have fewer parameters by now, which hides what a mere list is
            known[self.path] = Average("", "list", self.path, None, {}, node=other.node)
        average = known.get(self.path)
        if average is None:
            raise not_there(checkpoint, self.path)
        items = _items(average)
        missing = next((old for old in self.names.values() if old not in items), None)
        if missing is not None:
            raise not_there(checkpoint, f"{self.path}/{missing}")
        replaced = (
            _renamed_mapping(average.node, self.names)
            if average.place == "entry"
            else _shortened_lists(average.node, len(items), [int(i) for i in self.names.values()])
        )
        return _with_replaced(checkpoint, other, replaced)


def _renamed_mapping(node: Node, names: Mapping[str, str]) -> dict[int, Node]:
    """Return the mapping with other names for what is left of it; ``_metadata`` follows."""
    held = named_items(node) or {}
    entries = tuple(Entry(new, None, node=held[old]) for new, old in names.items())
    metadata = metadata_of(node)
    if metadata is not None:
        kept = strip_metadata(list(metadata), list(held), list(names.values()))
        moved = rewrite_metadata(kept, list(names.values()), list(names), ())
        metadata = {moved[module]: metadata[module] for module in kept if module in moved}
    return {id(node): lower_state_dict(StateDict("", "ema", entries, metadata, node))}


def _shortened_lists(node: Node, length: int, kept: Sequence[int]) -> dict[int, Node]:
    """Return the lists of one tensor a parameter, shorter: the average's, and torch_ema's copy."""
    held = [node] if isinstance(node, list) else (named_items(node) or {}).values()
    lists = (value for value in held if isinstance(value, list))
    return {id(each): [each[i] for i in kept] for each in lists if len(each) == length}


def _with_replaced(
    checkpoint: Checkpoint, other: Other, replaced: Mapping[int, Node]
) -> Checkpoint:
    """Return the checkpoint with other nodes below an entry, whose tensors are those that are
    left.
    """
    every = {**checkpoint.replaced, **replaced}
    left = {id(node) for node in walk(other.node, replaced=every)}
    tensors = tuple(t for t in other.tensors if _outermost(t, left))
    others = tuple(
        replace(each, tensors=tensors) if each.path == other.path else each
        for each in checkpoint.others
    )
    return replace(checkpoint, others=others, replaced=every)


def _outermost(tensor: Tensor, left: set[int]) -> bool:
    return id(tensor.node) in left


@dataclass(frozen=True, slots=True)
class DropStateDict(BatchEdit):
    """Remove a whole state dict: a moving average."""

    kind: ClassVar[str] = "drop-state-dict"
    path: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[DropStateDict],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint without these state dicts.

        Raises `LossyEditError` for one that is not an item of a dictionary.
        """
        known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
        for edit in run:
            if edit.path not in known:
                raise not_there(checkpoint, edit.path)
        places = _places(checkpoint, [known[edit.path] for edit in run])
        for edit in run:
            if edit.path not in places:
                raise LossyEditError(
                    "only an entry of a dictionary can be dropped", entry=edit.path or None
                )
        kept = with_state_dicts(checkpoint, dict.fromkeys(places))
        return replace(kept, dropped=(*checkpoint.dropped, *places.values()))


def _places(checkpoint: Checkpoint, state_dicts: Sequence[StateDict]) -> dict[str, Other]:
    """Return, by their paths, where state dicts are items of a dictionary; found in one walk."""
    wanted = {id(state_dict.node): state_dict.path for state_dict in state_dicts}
    places: dict[str, Other] = {}
    for node in walk(checkpoint.root):
        for key, value in mapping_pairs(node) or ():
            path = wanted.pop(id(value), None)
            if path is not None:
                places[path] = Other(path, "", node=value, parent=node, key_node=key)
        if not wanted:
            break
    return places
