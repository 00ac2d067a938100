"""What a pickled ``torch.nn.Module`` looks like in a graph."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.pickles import Dict, Global, Node, Object, PersistentId
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.storages import text

SETS: Final = frozenset(
    {"__builtin__.set", "builtins.set", "__builtin__.frozenset", "builtins.frozenset"}
)
COMPILED: Final = "torch._dynamo.eval_frame.OptimizedModule"
_LOAD_TYPE: Final = frozenset({"dill._dill._load_type", "dill.dill._load_type"})
# Where no class is a module: an instance of these is what it is, whatever its attributes.
_NO_MODULES: Final = frozenset(
    {"__builtin__", "argparse", "builtins", "collections", "datetime", "enum", "functools", "torch",
     "torch._tensor", "torch._utils", "torch.nn.parameter", "torch.tensor", "types"}
)  # fmt: skip
_COPY_REG: Final = frozenset({"copy_reg", "copyreg"})


def is_module(node: Node) -> bool:
    """Return whether `node` would be a ``torch.nn.Module``: its
    state has parameters and modules.
    """
    if not isinstance(node, Object):
        return False
    while node.name == COMPILED:
        inner = node.args[0] if isinstance(node.args, tuple) and node.args else None
        if not isinstance(inner, Object) or inner is node:
            return False
        node = inner
    if not isinstance(node.state, Dict):
        return False
    wanted = {"_parameters", "_modules"}
    for key, value in node.state.pairs():
        name = text(key)
        if name in wanted and isinstance(value, (Dict, Object)):
            wanted.remove(name)
    return not wanted and class_name_of(node).rpartition(".")[0] not in _NO_MODULES


def class_name_of(node: Object) -> str:
    """Return the qualified name of the class whose instance `node` would be; ``""`` if it has none.

    The class may be the callee, the first argument of ``copyreg``'s helpers, what dill loads by
    the name of a built-in type, or, in files of the legacy container, the second part of a
    persistent id that also holds its source.
    """
    cls = node.callee
    if isinstance(cls, Global) and cls.module in _COPY_REG and isinstance(node.args, tuple):
        cls = node.args[0] if node.args else None
    if isinstance(cls, PersistentId):
        pid = cls.pid
        named = isinstance(pid, tuple) and len(pid) > 1 and text(pid[0]) == "module"
        cls = pid[1] if named and isinstance(pid, tuple) else None
    if isinstance(cls, Object) and cls.name in _LOAD_TYPE:
        return f"builtins.{text(Call.plain(cls, 1, 1).reference(0))}"
    return cls.qualified if isinstance(cls, Global) else ""
