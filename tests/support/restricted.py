"""An unpickler that knows nothing but torch's own classes and a few containers: nothing that acts.

It is the oracle for what ``weights_only`` refuses: modules, legacy classes, newer opcodes.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

_PLAIN = {
    "collections": {"OrderedDict", "Counter", "defaultdict"},
    "builtins": {"set", "frozenset", "dict", "list", "tuple", "object", "int", "complex", "bytes"},
    "_codecs": {"encode"},
    "copyreg": {"_reconstructor"},
    "torch": {"Size", "device", "Tensor", "FloatTensor", "LongTensor", "DoubleTensor"},
    "torch._tensor": {"_rebuild_from_type_v2", "Tensor"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if "." in name:  # attributes of what is allowed
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        is_plain = name in _PLAIN.get(module, ())
        is_rebuilder = module == "torch._utils" and name.startswith("_rebuild_")
        is_storage = module == "torch" and name.endswith("Storage")
        if is_plain or is_rebuilder or is_storage:
            return super().find_class(module, name)
        found = (
            super().find_class(module, name) if module == "torch" or _is_module(module) else None
        )
        is_class = isinstance(found, type) and issubclass(found, torch.nn.Module)
        if is_class or isinstance(found, torch.dtype | torch.layout | torch.qscheme):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _is_module(name: str) -> bool:
    return name.startswith("torch.nn.modules.") and "_functions" not in name


def load(file: BinaryIO, **options: Any) -> Any:
    return Unpickler(file, **options).load()


module = SimpleNamespace(__name__="restricted", Unpickler=Unpickler, load=load)
