"""A pickled ``torch.nn.Module`` as the state dict that it would give, without making the module.

What ``torch.nn.Module.state_dict`` does is done here on the graph: for each module its parameters,
its persistent buffers, then its children, depth first; ``_metadata`` says the version of each
module's class. Code in the file cannot be asked, so `ModuleReading.approximate` says where a class
or a hook may have other ideas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import field, replace
from typing import Final

from ckpt_surgery.checkpoint.description import StateDict, StateDictKind
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import (
    DEFAULT_LIMITS,
    Dict,
    Limits,
    Node,
    Object,
)
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.mappings import mapping_pairs, named_items, state_of
from ckpt_surgery.torch_objects.module_nodes import COMPILED, SETS, class_name_of, is_module
from ckpt_surgery.torch_objects.module_savers import Savers
from ckpt_surgery.torch_objects.module_tree import SHOWN_NAME, Describe, ModuleTree
from ckpt_surgery.torch_objects.module_versions import saves_itself, version_of
from ckpt_surgery.torch_objects.storages import text

_SPECTRAL_NORM_HOOK: Final = "torch.nn.utils.spectral_norm.SpectralNormStateDictHook"
_SPECTRAL_NORM_VERSION: Final = 1  # torch.nn.utils.spectral_norm.SpectralNorm._version
_SAVE_NOTHING: Final = frozenset(  # whose state_dict() is {} and leaves out their children
    {
        "torch.ao.pruning.sparsifier.utils.FakeSparsity",
        "torch.ao.pruning._experimental.pruner.parametrization.FakeStructuredSparsity",
    }
)
_SHOWN_NAMES: Final = 5
_ITSELF: Final = "the model itself"
_METHODS: Final = ("state_dict", "_save_to_state_dict", "get_extra_state")
"""Methods that make a state dict. An attribute of the instance comes before that of the class."""


class UnreadableModuleError(DamagedFileError):
    """A module has not the attributes of one: what else is in the file may be fine."""


@dataclass(frozen=True, slots=True)
class ModuleReading:
    """A module's state dict, the class of the module, and why the first may be another.

    `approximate` is empty if ``module.state_dict()`` gives exactly `state_dict`.
    """

    state_dict: StateDict
    class_name: str
    approximate: tuple[str, ...]


def read_module(
    node: Object,
    path: str,
    kind: StateDictKind,
    describe: Describe,
    limits: Limits = DEFAULT_LIMITS,
) -> ModuleReading:
    """Return what ``state_dict()`` of the module `node` would return, found at `path` of the file.

    `describe` gives the tensor that a node rebuilds. The entries' nodes are detached tensors, as
    ``state_dict()`` gives them. Raises `UnreadableModuleError` if the module is not built like one,
    `DamagedFileError` if it contains itself, and `LimitExceededError` if shared modules make more
    entries than the operations that `limits` allows.
    """
    tree = ModuleTree(path, describe, limits)
    reader = _Reader(tree)
    tree.walk(node, reader.enter)
    reader.note_empty()
    state_dict = replace(tree.state_dict(kind, node), missing=tuple(reader.missing))
    return ModuleReading(state_dict, class_name_of(node), tuple(reader.reasons()))


@dataclass(slots=True)
class _Reader:
    """Reads modules into a tree, and notes where the result may be wrong.

    The notes are names in the order of the file, each once.
    """

    tree: ModuleTree
    _foreign: dict[str, None] = field(default_factory=dict)
    _self_saving: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(
        default_factory=dict
    )  # modules whose weights only code can tell
    _hooked: dict[str, None] = field(default_factory=dict)
    _own_methods: dict[str, None] = field(default_factory=dict)
    _skipped: dict[str, None] = field(default_factory=dict)
    _savers: Savers = field(default_factory=Savers)

    def enter(self, node: Object, prefix: str) -> Iterator[tuple[str, Object]]:
        """Record what the module itself holds; returns its children."""
        fields = _fields_of(node)
        self.tree.spend(len(fields), prefix)
        class_name = class_name_of(node)
        self._note_class(class_name, prefix)
        if class_name in _SAVE_NOTHING:
            return iter(())
        for name in self._savers.added(node, fields) if not saves_itself(class_name) else ():
            self.missing[(prefix + name).removesuffix(".") or _ITSELF] = None
        self._note_hooks(fields, prefix)
        self._note_own_methods(fields, prefix)
        self.tree.metadata[prefix[:-1]] = _local_metadata(class_name, fields)
        transient = self._transient(fields, prefix)
        for name, value in self._items(fields, "_parameters", prefix):
            self.tree.add(prefix + name, value, "parameter")
        for name, value in self._items(fields, "_buffers", prefix):
            if name not in transient:
                self.tree.add(prefix + name, value, "buffer")
        return self._children(fields, prefix)

    def note_empty(self) -> None:
        """Note what has no entry at all, if a class that is not known may hold its weights."""
        if not self.tree.entries:
            for name in self._foreign:
                self.missing[f"{_ITSELF} (by {name[:SHOWN_NAME]})"] = None

    def reasons(self) -> Iterator[str]:
        if self._foreign:
            yield f"classes outside torch may change their state dict: {_listed(self._foreign)}"
        if self._self_saving:
            yield f"these classes change their state dict: {_listed(self._self_saving)}"
        if self._hooked:
            yield f"hooks that may change the state dict are not run: {_listed(self._hooked)}"
        if self._own_methods:
            yield f"methods that are attributes are not called: {_listed(self._own_methods)}"
        if self._skipped:
            yield f"modules that only code can make are left out: {_listed(self._skipped)}"

    def _children(self, fields: dict[str, Node], prefix: str) -> Iterator[tuple[str, Object]]:
        for name, node in self._items(fields, "_modules", prefix):
            if not isinstance(node, Object):
                raise self._unreadable("a child of a module is no module", prefix + name)
            if is_module(node):
                yield name, node
            else:
                made_by = class_name_of(node)[:SHOWN_NAME] or "unknown"
                self._skipped[f"{prefix}{name} ({made_by})"] = None
                self.missing[prefix + name] = None

    def _items(
        self, fields: dict[str, Node], which: str, prefix: str
    ) -> Iterator[tuple[str, Node]]:
        """Return the items of a module's dictionary that are not None; older files may lack it."""
        items = named_items(fields[which]) if which in fields else {}
        if items is None:
            raise self._unreadable(f"a module's '{which}' is no mapping of names", prefix)
        return ((name, value) for name, value in items.items() if value is not None)

    def _transient(self, fields: dict[str, Node], prefix: str) -> set[str]:
        """Return names of the buffers that are not part of the state dict."""
        node = fields.get("_non_persistent_buffers_set")
        if node is None:
            return set()
        names: Node = None
        if isinstance(node, Object) and class_name_of(node) in SETS:
            call = Call.plain(node, 0, 1)
            names = call.settled(0) if len(call) else []
        if not isinstance(names, list):
            raise self._unreadable("'_non_persistent_buffers_set' is no set", prefix)
        return {name for name in map(text, names) if name is not None}

    def _unreadable(self, message: str, name: str) -> UnreadableModuleError:
        error = self.tree.damaged(message, name)
        return UnreadableModuleError(error.message, entry=error.entry)

    def _note_class(self, name: str, prefix: str) -> None:
        if saves_itself(name):
            self._self_saving[name] = None
            if ".quantized." in name:  # its weights are packed, and only its code unpacks them
                self.missing[prefix[:-1] or _ITSELF] = None
        elif not name.startswith(("torch.", "torchvision.")):
            self._foreign[name or "unknown"] = None

    def _note_hooks(self, fields: dict[str, Node], prefix: str) -> None:
        for which in ("_state_dict_hooks", "_state_dict_pre_hooks"):
            for hook in _hooks(fields, which):
                if _spectral_norm_name(hook) is None:
                    name = prefix[:-1] or _ITSELF
                    self._hooked[name] = None
                    self.missing[f"{name} (by hooks)"] = None

    def _note_own_methods(self, fields: dict[str, Node], prefix: str) -> None:
        """Note what is called instead of the methods of the class, being an attribute."""
        for method in _METHODS:
            if method in fields:
                self._own_methods[prefix + method] = None
                self.missing[f"{prefix[:-1] or _ITSELF} (by its own {method})"] = None


def _fields_of(node: Object) -> dict[str, Node]:
    """Return the attributes of a module that have a name."""
    if node.name == COMPILED:
        inner = Call(node, node.args if isinstance(node.args, tuple) else (), node.at).reference(0)
        return {"_parameters": Dict(), "_modules": Dict(["_orig_mod", inner])}
    if node.items is not None or node.elements is not None:
        raise DamagedFileError("a module is given items, which torch never writes")
    pairs = mapping_pairs(state_of(node)) or ()
    return {name: value for key, value in pairs if (name := text(key)) is not None}


def _hooks(fields: dict[str, Node], which: str) -> list[Node]:
    return [hook for _, hook in mapping_pairs(fields.get(which)) or ()]


def _local_metadata(class_name: str, fields: dict[str, Node]) -> Dict:
    """Return what ``state_dict()`` and the hooks of ``spectral_norm`` put into ``_metadata``."""
    versions: list[Node] = []
    for hook in _hooks(fields, "_state_dict_hooks"):
        name = _spectral_norm_name(hook)
        if name is not None:
            versions += [f"{name}.version", _SPECTRAL_NORM_VERSION]
    own = fields.get("_version")
    items: list[Node] = ["version", own if type(own) is int else version_of(class_name)]
    return Dict([*items, "spectral_norm", Dict(versions)] if versions else items)


def _spectral_norm_name(hook: Node) -> str | None:
    """Return the parameter that a hook of
    ``torch.nn.utils.spectral_norm`` is about; None for others.
    """
    if not isinstance(hook, Object) or class_name_of(hook) != _SPECTRAL_NORM_HOOK:
        return None
    norm = (named_items(state_of(hook)) or {}).get("fn")
    state = named_items(state_of(norm)) if isinstance(norm, Object) else None
    return text((state or {}).get("name"))


def _listed(names: Iterable[str]) -> str:
    """Return the first few of `names`, in quotes, and how many more there are."""
    names = list(names)
    shown = ", ".join(f"'{name[:SHOWN_NAME]}'" for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
