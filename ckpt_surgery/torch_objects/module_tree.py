"""The walk over a tree of modules that fills a state dict, as ``nn.Module.state_dict`` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from ckpt_surgery.checkpoint.description import (
    Entry,
    Role,
    StateDict,
    StateDictKind,
    Tensor,
    join_path,
)
from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import Global, Limits, Node, Object, PersistentId
from ckpt_surgery.torch_objects.tensor_attributes import PLAIN_CLASSES

Describe = Callable[[Node], Tensor | None]
"""The tensor that a node rebuilds, None if it rebuilds none."""

SHOWN_NAME: Final = 200  # characters
# An entry takes far longer than an opcode of a pickle, of which the limit speaks.
_COST_SHARE: Final = 8
_ENTRY_COST: Final = 20  # what an entry takes beside its name, in operations of `Limits`

# Where a rebuilding function takes `requires_grad`.
_REQUIRES_GRAD: Final = {
    "torch._utils._rebuild_tensor_v2": 4,
    "torch._utils._rebuild_tensor_v3": 4,
    "torch._utils._rebuild_qtensor": 5,
    "torch._utils._rebuild_meta_tensor_no_storage": 3,
    "torch._utils._rebuild_device_tensor_from_numpy": 3,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": 3,
    "torch._utils._rebuild_xla_tensor": 3,
    "torch._utils._rebuild_wrapper_subclass": 7,
}
_STRIDED: Final = frozenset({"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"})
_FROM_TYPE: Final = frozenset(
    {"torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2"}
)


@dataclass(slots=True)
class ModuleTree:
    """A state dict in the making, found at `path` of the file.

    Modules may be shared, so that a small pickle can stand for any number of entries. Each entry
    counts as `_ENTRY_COST` operations and the characters of its name against `limits`.
    """

    path: str
    describe: Describe
    limits: Limits
    entries: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, Node] = field(default_factory=dict)
    _spent: int = 0
    _used: set[int] = field(default_factory=set)  # nodes that an entry was made from

    def walk(
        self, root: Object, enter: Callable[[Object, str], Iterable[tuple[str, Object]]]
    ) -> None:
        """Call `enter` with each module and the prefix of its names, depth first.

        `enter` records what the module itself holds and returns its children that are modules.
        Raises `DamagedFileError` if a module contains itself.
        """
        active = {id(root)}
        stack = [(root, "", iter(enter(root, "")))]
        while stack:
            module, prefix, children = stack[-1]
            child = next(children, None)
            if child is None:
                active.discard(id(module))
                stack.pop()
                continue
            name, node = child
            below = prefix + name
            if id(node) in active:
                raise self.damaged("a module contains itself", below)
            active.add(id(node))
            self.spend(len(below) + _ENTRY_COST, below)
            stack.append((node, f"{below}.", iter(enter(node, f"{below}."))))

    def add(self, name: str, value: Node, role: Role) -> None:
        """Add an entry; a tensor is detached, as ``state_dict()`` gives it."""
        self.spend(len(name) + _ENTRY_COST, name)
        try:
            tensor = self.describe(value)
        except CkptError as error:
            if error.entry is None:
                error.entry = self._entry(name)
            raise
        if tensor is not None and isinstance(tensor.node, Object):
            detached = _detached(tensor.node)
            # What Python code hung on a plain tensor or parameter does not survive `detach`.
            plain = self.describe(tensor.node) if detached is tensor.node else None
            parts = () if plain is None else plain.parts
            value = _copied(detached) if id(tensor.node) in self._used else detached
            self._used.add(id(tensor.node))
            tensor = replace(
                tensor, node=value, parts=parts, requires_grad=False, is_parameter=False
            )
        self.entries[name] = Entry(name, tensor, role, value, name)

    def spend(self, amount: int, name: str) -> None:
        """Count `amount` operations; raises `LimitExceededError` beyond the limit."""
        self._spent += amount
        if self._spent > self.limits.operations // _COST_SHARE:
            raise LimitExceededError(
                "the module is too large: modules are shared or nested too often",
                entry=self._entry(name),
            )

    def damaged(self, message: str, name: str) -> DamagedFileError:
        return DamagedFileError(message, entry=self._entry(name))

    def state_dict(self, kind: StateDictKind, node: Object) -> StateDict:
        return StateDict(self.path, kind, tuple(self.entries.values()), self.metadata, node)

    def _entry(self, name: str) -> str | None:
        shown = name[:SHOWN_NAME].removesuffix(".")
        return (join_path(self.path, shown) if shown else self.path) or None


def _detached(node: Object) -> Object:
    """Return the node of ``tensor.detach()`` for the `node` of a
    tensor; the same one if that is it.
    """
    args = node.args
    if not isinstance(args, tuple):
        return node
    if node.name in _FROM_TYPE:
        function, cls, inner_args, state = args
        inner = Object("REDUCE", function, inner_args)
        without_grad = _detached(inner)
        if inner.name in _STRIDED and isinstance(cls, Global) and cls.qualified in PLAIN_CLASSES:
            return without_grad
        if without_grad is inner:
            return node
        args = (function, cls, without_grad.args, state)
    else:
        index = _REQUIRES_GRAD.get(node.name, len(args))
        if index >= len(args) or args[index] is not True:
            return node
        args = (*args[:index], False, *args[index + 1 :])
    return Object(
        node.op, node.callee, args, elements=node.elements, items=node.items, state=node.state
    )


def _copied(node: Object) -> Object:
    """`node` again: ``detach`` makes a tensor of its own of each use of a tied parameter.

    The copy shares the storage, and no object that pickle would refer back to.
    """
    if node.name not in _STRIDED or not isinstance(node.args, tuple):
        return node
    return Object(node.op, node.callee, tuple(_copied_argument(arg) for arg in node.args))


def _copied_argument(node: Node) -> Node:
    if isinstance(node, PersistentId):
        return PersistentId(_copied_argument(node.pid), node.target)
    if isinstance(node, tuple):
        return (*node,)
    if isinstance(node, Object):  # the hooks, an empty `OrderedDict`
        return Object(node.op, node.callee, node.args)
    return node
