"""Find the state dicts of a graph, and what lies beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    Other,
    PickledModule,
    StateDict,
    Tensor,
    join_path,
)
from ckpt_surgery.errors import CkptError, LimitExceededError
from ckpt_surgery.fileio import Source
from ckpt_surgery.pickles import (
    DEFAULT_LIMITS,
    Dict,
    Global,
    Limits,
    Node,
    Object,
    walk,
)
from ckpt_surgery.torch_objects.averages import are_counters, with_true_kinds
from ckpt_surgery.torch_objects.kinds import (
    NOT_WEIGHTS,
    are_statistics,
    kind_of,
    plain_value,
    role_of,
    type_name,
)
from ckpt_surgery.torch_objects.mappings import (
    attributes_of,
    mapping_length,
    mapping_pairs,
    require_own_methods,
    state_of,
)
from ckpt_surgery.torch_objects.module_nodes import is_module
from ckpt_surgery.torch_objects.places import (
    SHOWN_PATH,
    Place,
    children,
    distinct,
    holds_more,
    is_empty,
)
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.training_state import (
    OPTIMIZER_PARTS,
    TrainingStates,
    is_flattened_optimizer,
    is_optimizer_state,
    last_part,
)

# The usual names for the weights inside a training checkpoint.
_WRAPPERS = frozenset(
    {
        "state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights",
        "params", "state_dict_ema", "model_ema", "ema", "params_ema", "ema_state_dict",
    }
)  # fmt: skip
_KEEPING = frozenset({"torch-zip", "torch-legacy"})  # containers whose modules torch loads
_PATH_SHARE = 2  # characters of all paths and names, as a share of the operations of `Limits`


def metadata_of(node: Node) -> dict[str, Node] | None:
    """``_metadata`` of a state dict: module path to the node stored for it."""
    holder = metadata_node(node)
    pairs = None if holder is None else mapping_pairs(holder)
    if pairs is None:
        return None
    return {name: value for key, value in pairs if (name := text(key)) is not None}


def metadata_node(node: Node) -> Node | None:
    """Return the graph node that is the ``_metadata`` attribute of the state dict `node`."""
    attributes = mapping_pairs(state_of(node)) if isinstance(node, Object) else None
    for key, value in attributes or ():
        if text(key) == "_metadata":
            return value
    return None


def assemble(
    root: Node,
    *,
    sources: tuple[Source, ...],
    format: str,  # noqa: A002  # the term of the report
    container: object = None,
    notes: tuple[str, ...] = (),
    unwritable: str = "",
    names: Iterable[Global] | None = None,
    opcodes: frozenset[int] = frozenset(),
    limits: Limits = DEFAULT_LIMITS,
) -> Checkpoint:
    """Describe a graph whose persistent ids were resolved to storages.

    `names` are the classes and functions that the pickle names; None: those left in its graph.
    `opcodes` are the rarer ones in it.

    Raises `DamagedFileError` if a tensor does not fit its storage or a name stands twice, and
    `LimitExceededError` if the graph is too deep or its paths are too long.
    """
    if names is None:
        names = (node for node in walk(root, limits=limits) if isinstance(node, Global))
    qualified = tuple(dict.fromkeys(name.qualified for name in names))
    survey = _Survey(TensorReader(limits), limits)
    survey.search(root)
    survey.state_dicts = with_true_kinds(survey.state_dicts)
    others = tuple(survey.others(root))
    if survey.tensors.gradients:
        count = survey.tensors.gradients
        survey.notes.append(f"gradients of {count} old variables, which torch does not load")
    if unwritable:
        survey.notes.append(f"an edit would lose something: {unwritable}")
    return Checkpoint(
        format="torch-module" if survey.found_module else format,
        sources=sources,
        root=root,
        state_dicts=tuple(survey.state_dicts),
        others=others,
        globals=qualified,
        container=container,
        notes=(*notes, *survey.notes),
        unwritable=unwritable,
        replaced=survey.tensors.modern,
        # those with tensors of forms that torch no longer loads, and those of containers that it
        # does not write, become state dicts
        modules=survey.modules if format in _KEEPING and not survey.tensors.modern else {},
        opcodes=opcodes,
    )


@dataclass(slots=True)
class _Survey:
    """One search through a graph. State dicts come in the order in which the pickle has them."""

    tensors: TensorReader
    limits: Limits
    state_dicts: list[StateDict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modules: dict[int, PickledModule] = field(default_factory=dict)
    found_module: bool = False
    training: TrainingStates = field(default_factory=TrainingStates)
    _found: dict[int, str] = field(default_factory=dict)
    _leading: set[int] = field(default_factory=set)  # nodes above state dicts, training state
    _statistics: list[tuple[Place, tuple[Entry, ...]]] = field(default_factory=list)
    _counted: set[int] = field(default_factory=set)  # nodes below other entries
    _paths: dict[str, int] = field(default_factory=dict)  # of the state dicts: times it occurred
    _characters: int = 0  # of the paths made

    def search(self, root: Node) -> None:
        """Find the state dicts at and below `root`.

        An optimizer that is the whole file holds none; other training state at the top may be a
        trainer's own dictionary that has the model in it.
        """
        seen: set[int] = set(map(id, _optimizer_parts(root, self.training)))
        waiting = [Place("", root, None)]
        while waiting:
            place = waiting.pop()
            try:
                waiting.extend(reversed(self._visit(place, seen)))
            except CkptError as error:
                if error.entry is None:
                    error.entry = place.shown or None
                raise
        self._take_statistics()
        self.state_dicts = [self._with_hidden_tensors(s) for s in self.state_dicts]

    def _with_hidden_tensors(self, state_dict: StateDict) -> StateDict:
        """Return the state dict with the tensors below entries that are none, each counted once."""
        if all(entry.tensor is not None for entry in state_dict.entries):
            return state_dict
        self._counted.update(self._found)

        def hidden(entry: Entry) -> Entry:
            if entry.tensor is not None:
                return entry
            return replace(entry, tensors=tuple(self.tensors.below(entry.node, self._counted)))

        return replace(state_dict, entries=tuple(map(hidden, state_dict.entries)))

    def _visit(self, place: Place, seen: set[int]) -> list[Place]:
        """Take what lies at `place`; the places below it that are still to be visited."""
        node = place.node
        if not isinstance(node, (Dict, Object, list, tuple)) or is_empty(node):
            return []
        if id(node) in self._found:
            first = self._found[id(node)]
            self._spend(len(first))
            self.notes.append(f"'{self._path(place)}' is the same object as '{first}'")
            return []
        if id(node) in seen:
            return []
        if self._is_no_model(place):
            if self.training.form(node) is not None:
                self._mark_mapping(place.parent)
            return []
        if place.depth > self.limits.depth:
            raise LimitExceededError(f"objects are nested more than {self.limits.depth} deep")
        seen.add(id(node))
        path = self._take(place)
        if path is not None:
            self._found[id(node)] = path
            self._mark_leading(place.parent)
        if is_module(node):
            return []  # its parameters' dictionaries are no state dicts of their own
        known = self.tensors.described  # what is there has not to be asked for, entry by entry
        return [
            place.child(name, child)
            for name, child, _ in children(node)
            if holds_more(child)
            and known.get(id(child)) is None
            and self._tensor(child, place, name) is None
        ]

    def _tensor(self, node: Node, place: Place, name: str) -> Tensor | None:
        """Return the tensor that `node` rebuilds, if any; an error
        about it tells that it is `name`.
        """
        try:
            return self.tensors.describe(node)
        except CkptError as error:
            if error.entry is None:
                error.entry = join_path(place.shown, name)[:SHOWN_PATH]
            raise

    def _spend(self, characters: int) -> None:
        self._characters += characters
        if self._characters > self.limits.operations // _PATH_SHARE:
            raise LimitExceededError("the names of what it holds are too long")

    def _path(self, place: Place) -> str:
        self._spend(place.path_length + place.depth)
        return place.path

    def _is_no_model(self, place: Place) -> bool:
        name = last_part(place.name)
        if place.parent is None or name in _WRAPPERS:
            return False
        if _is_extra_state(name) or re.search(NOT_WEIGHTS, name):
            return True  # the module's own names in it are nobody else's
        return self.training.kind(place.name, place.node) is not None

    def _take(self, place: Place) -> str | None:
        """Record the state dict at `place`, if there is one, and return its path."""
        node = place.node
        if is_module(node) and isinstance(node, Object):
            return self._take_module(place, node)
        entries = self._entries(place)
        if entries is None or not _are_weights(node, entries):
            return None
        is_named = place.parent is None or last_part(place.name) in _WRAPPERS
        names = [entry.name for entry in entries]
        if not is_named and (are_statistics(entries) or are_counters(names)):
            self._statistics.append((place, entries))
            return None
        return self._take_entries(place, entries)

    def _take_module(self, place: Place, node: Object) -> str | None:
        """Record the state dict of a module; None if the module cannot be read, or has no entry.

        The first is an error only where it is the whole file, and does not hide what is beside it;
        the second is a loss function or the like, which stays what it is.
        """
        from ckpt_surgery.torch_objects.modules import UnreadableModuleError, read_module  # rare

        path = self._path(place)
        try:
            reading = read_module(node, path, "model", self.tensors.describe, self.limits)
        except UnreadableModuleError as error:
            if place.parent is None:
                raise
            self.notes.append(f"the module '{error.entry}' is not understood: {error.message}")
            return None
        for _ in self.tensors.below(node, set()):
            pass  # those that the state dict leaves out are looked at, too: torch loads all of them
        self.notes.extend(reading.approximate)
        if not reading.state_dict.entries and place.parent is not None:
            return None
        path = distinct(path, self._paths)
        kind = kind_of(path, reading.state_dict.names)
        state_dict = replace(reading.state_dict, path=path, kind=kind)
        self.state_dicts.append(state_dict)
        self.modules[id(node)] = PickledModule(state_dict, reading.approximate)
        self.found_module = True
        return path

    def _take_entries(self, place: Place, entries: tuple[Entry, ...]) -> str:
        path = distinct(self._path(place), self._paths)
        self._spend(len(path) * len(entries) + sum(len(entry.name) for entry in entries))
        kind = kind_of(path, [entry.name for entry in entries])
        if isinstance(place.node, Object):
            require_own_methods(attributes_of(place.node))
        metadata = metadata_of(place.node)
        self.state_dicts.append(StateDict(path, kind, entries, metadata, place.node))
        return path

    def _take_statistics(self) -> None:
        """Take statistics for a state dict where the file has no other."""
        for place, entries in [] if self.state_dicts else self._statistics:
            self._found[id(place.node)] = self._take_entries(place, entries)
            self._mark_leading(place.parent)

    def _entries(self, place: Place) -> tuple[Entry, ...] | None:
        """Return the items of a mapping whose keys are all text; None for anything else."""
        pairs = mapping_pairs(place.node)
        if pairs is None:
            return None
        entries: list[Entry] = []
        for key, value in pairs:
            name = text(key)
            if name is None:
                return None
            tensor = self._tensor(value, place, name)
            node = self.tensors.modern.get(id(value), value)
            entries.append(Entry(name, tensor, role_of(name, tensor), node, key))
        return tuple(entries)

    def _mark_mapping(self, place: Place | None) -> None:
        """Let an entry of a mapping be one of its own, which can then be dropped alone."""
        if place is None or id(place.node) in self._leading:
            return
        if mapping_length(place.node) is not None:
            self._mark_leading(place)

    def _mark_leading(self, place: Place | None) -> None:
        while place is not None and id(place.node) not in self._leading:
            self._leading.add(id(place.node))
            place = place.parent

    def others(self, root: Node) -> Iterator[Other]:
        """Everything beside the state dicts, each at the highest place that leads to none."""
        if not self.state_dicts and (not mapping_pairs(root) or self.training.form(root)):
            yield self._other("", root)
            return
        seen: set[int] = set()
        paths: dict[str, int] = {}
        waiting: list[tuple[str, Node]] = [("", root)]
        while waiting:
            path, node = waiting.pop()
            if id(node) in seen or id(node) in self._found:
                continue
            seen.add(id(node))
            inner: list[tuple[str, Node]] = []
            for name, child, key in children(node):
                below = join_path(path, name)
                self._spend(len(below))
                if id(child) in self._leading:
                    inner.append((below, child))
                elif id(child) not in self._found:
                    place = distinct(below, paths)
                    yield replace(self._other(place, child), parent=node, key_node=key)
            waiting.extend(reversed(inner))

    def _other(self, path: str, node: Node) -> Other:
        tensor = self.tensors.describe(node)
        tensors = tuple(self.tensors.below(node, self._counted))
        kind = "torch.Tensor" if tensor is not None else type_name(node)
        return Other(path, kind, plain_value(node), tensors, node)


def _optimizer_parts(root: Node, training: TrainingStates) -> list[Node]:
    """Return what a file that is an optimizer consists of; nothing for other files."""
    if training.form(root) != "optimizer":
        return []
    if is_optimizer_state(root) or is_flattened_optimizer(root):
        return [root]
    return [v for k, v in mapping_pairs(root) or () if text(k) in OPTIMIZER_PARTS]


def _is_extra_state(name: str) -> bool:
    """Return whether an entry is what a module's own ``get_extra_state`` returns."""
    return name.rpartition(".")[2] == "_extra_state"


def _are_weights(node: Node, entries: tuple[Entry, ...]) -> bool:
    """Return whether a mapping is a state dict: it has metadata, or is
    mostly tensors and wraps none; what modules keep beside theirs does not count.
    """
    if metadata_node(node) is not None:
        return True
    count = sum(entry.tensor is not None for entry in entries)
    wraps = any(e.name in _WRAPPERS and mapping_pairs(e.node) is not None for e in entries)
    extra = sum(e.tensor is None and _is_extra_state(e.name) for e in entries)
    return count * 2 > len(entries) - extra and not wraps
