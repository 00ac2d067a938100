"""Classes outside torch that put more into a state dict than their parameters and buffers.

Of most classes only the name is in a file. Some are known by it; of others the file has the class
itself (dill) or its source (the container of torch before 1.6), which is looked at as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ckpt_surgery.pickles import Node, Object, PersistentId
from ckpt_surgery.torch_objects.mappings import named_items
from ckpt_surgery.torch_objects.module_nodes import class_name_of
from ckpt_surgery.torch_objects.storages import text

_EXTRA_STATE: Final = "_extra_state"
"""Where ``torch.nn.Module.state_dict`` puts what a class's ``get_extra_state`` returns."""

# Methods that add entries, and what an entry of theirs is called: "" if only their code knows.
_METHODS: Final = {"get_extra_state": _EXTRA_STATE, "_save_to_state_dict": ""}
_BY_NAME: Final = {
    "bitsandbytes.nn.modules.Linear8bitLt": "SCB",
    "bitsandbytes.nn.modules.Linear4bit": "weight.quant_state",
    "bitsandbytes.nn.modules.LinearFP4": "weight.quant_state",
    "bitsandbytes.nn.modules.LinearNF4": "weight.quant_state",
}
_EXTRA_STATES: Final = ("transformer_engine.pytorch.",)  # every module of it keeps scales so
_MAKES_A_CLASS: Final = frozenset({"dill._dill._create_type", "dill.dill._create_type"})


class Savers:
    """Tells what code adds to state dicts; the class of each module is looked at once."""

    def __init__(self) -> None:
        self._methods: dict[int, frozenset[str]] = {}  # of what defines a class, by its node
        self._of_class: dict[str, frozenset[str]] = {}  # only its first use has the source

    def added(self, node: Object, fields: Mapping[str, Node]) -> Iterator[str]:
        """Yield the names of entries that a module's class adds, as far as the file tells.

        `fields` are the module's attributes. A name is "" where the class alone knows it.
        """
        name = class_name_of(node)
        if name in _BY_NAME:
            yield _BY_NAME[name]
        elif name.startswith(_EXTRA_STATES):
            yield _EXTRA_STATE
        yield from _kept_metrics(fields)
        methods = self._defined_methods(node, name)
        yield from (entry for method, entry in _METHODS.items() if method in methods)

    def _defined_methods(self, node: Object, name: str) -> frozenset[str]:
        """Return which of the methods a module's class defines, where the file has the class."""
        if name in self._of_class:
            return self._of_class[name]
        definition = _definition(node)
        if definition is None:
            return frozenset()
        if id(definition) not in self._methods:
            source = text(definition)
            members = named_items(definition) if source is None else None
            self._methods[id(definition)] = frozenset(
                method
                for method in _METHODS
                if method in (members or ()) or f"def {method}(" in (source or "")
            )
        found = self._methods[id(definition)]
        if name and not name.startswith("builtins."):
            self._of_class[name] = found
        return found


def _kept_metrics(fields: Mapping[str, Node]) -> Iterator[str]:
    """Yield the states that a metric of torchmetrics says are to be saved."""
    if "_persistent" in fields and "_defaults" in fields:
        kept = named_items(fields["_persistent"]) or {}
        yield from (name for name, is_kept in kept.items() if is_kept is True)


def _definition(node: Object) -> Node:
    """Return the source of a module's class, or the dictionary that it is made of; else None."""
    cls = node.callee
    if isinstance(cls, PersistentId):
        pid = cls.pid
        return pid[3] if isinstance(pid, tuple) and len(pid) > 3 else None
    if not isinstance(cls, Object) and isinstance(node.args, tuple) and node.args:
        cls = node.args[0]
    if not isinstance(cls, Object) or cls.name not in _MAKES_A_CLASS:
        return None
    parts = cls.args if isinstance(cls.args, tuple) else ()
    return parts[3] if len(parts) > 3 else None
