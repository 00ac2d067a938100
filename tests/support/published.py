"""The published files, and what torch makes of them where it can, or nearly can."""

from __future__ import annotations

import builtins
import hashlib
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ckpt_surgery.checkpoint.description import Storage
from ckpt_surgery.pickles import NO_STATE, ByteString, Dict, Global, Node, Object, PersistentId

# Format as `ckpt inspect` says it.
FILES = {
    "AgileRL/agilerl_dill_dqn.pt": "torch-zip",
    "affnet/torchscript_2019_affnet.pt": "torchscript",
    "chemprop/example_model_v1_mve_regression.pt": "torch-zip",
    "chemprop/tests_data_example_model_v2_regression_mol.ckpt": "torch-zip",
    "chemprop/tests_data_example_model_v2_regression_mol.pt": "torch-zip",
    "facenet-pytorch/data_onet.pt": "torch-legacy",
    "facenet-pytorch/data_rnet.pt": "torch-legacy",
    "lpips/lpips_weights_v0.1_alex.pth": "torch-legacy",
    "lpips/lpips_weights_v0.1_squeeze.pth": "torch-legacy",
    "lpips/lpips_weights_v0.1_vgg.pth": "torch-legacy",
    "practical-pytorch/tar_module_2017_char-rnn.pt": "torch-module",
    "picklescan/tests_data_new_pytorch_model.bin": "torch-zip",
    "picklescan/tests_data_pytorch_model.bin": "torch-legacy",
    "pytorch_resnet_cifar10/resnet20-12fca82f.th": "torch-legacy",
    "pytorch_resnet_cifar10/resnet32-d509ac18.th": "torch-legacy",
    "pytorx/pytorx_integer_parameters.pth.tar": "torch-legacy",
    "rl-trained-agents/sb3_ppo_policy.optimizer.pth": "torch-zip",
    "safetensors/safetensors_all_dtypes.safetensors": "safetensors",
    "silero-vad/silero_vad_2023-04.jit": "torchscript",
    "silero-vad/src_silero_vad_data_silero_vad_16k.safetensors": "safetensors",
    "taesd/taef2_decoder.pth": "torch-zip",
}
# Archives of other projects, with the checkpoint in each and its format.
MEMBERS = {
    "allennlp/allennlp_model.tar.gz": ("weights.th", "torch-legacy"),
    "rl-trained-agents/sb3_ars_cartpole.zip": ("policy.pth", "torch-zip"),
}
WITHOUT_MODEL = {"rl-trained-agents/sb3_ppo_policy.optimizer.pth"}
TORCH_FILES = [name for name, kind in FILES.items() if kind.startswith("torch-")]
ZIP_FILES = [name for name, kind in FILES.items() if kind == "torch-zip"]
LIGHTNING = [name for name in FILES if "v2_regression" in name]


class Stub(dict[Any, Any]):
    """Stands for an object of a class that is not installed; keeps what it is given."""

    def __new__(cls, *args: Any, **named: Any) -> Stub:
        made = super().__new__(cls)
        made.given = [args, named]
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.given.append(state)


def as_module(stub: Stub) -> torch.nn.Module:
    """The module that a stub stands for, without the methods of its class."""
    module = torch.nn.Module()
    torch.nn.Module.__setstate__(module, stub.given[-1])
    return module


def is_module_stub(value: Any) -> bool:
    """Whether a stub stands for a module."""
    return isinstance(value, Stub) and "_modules" in value.given[-1]


# What else may be installed would be imported, and behave as its version does.
_KNOWN = sys.stdlib_module_names | {"torch", "numpy"}


class _TolerantUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("dill._dill", "_load_type"):
            return vars(builtins).__getitem__
        try:
            if module.partition(".")[0] in _KNOWN:
                return super().find_class(module, name)
        except (ImportError, AttributeError):
            pass
        return type(name, (Stub,), {"__module__": module})


def load(path: Path) -> Any:
    """What ``torch.load`` gives, with stubs for classes that are not installed.

    It runs the file as torch would, so it is for files of known origin.
    """
    tolerant = SimpleNamespace(
        __name__="tolerant",
        Unpickler=_TolerantUnpickler,
        load=lambda file, **options: _TolerantUnpickler(file, **options).load(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sources that changed since, or that a stub has not
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=tolerant)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor object that `value` holds, once each."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            yield found
            continue
        if isinstance(found, Mapping):
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, (list, tuple, set)):
            waiting += found
        if hasattr(found, "__dict__"):
            waiting += vars(found).values()


def canonical(node: Node) -> object:
    """`node` as nested tuples that are equal exactly for graphs of one form, sharing included.

    A storage is its type, device and bytes, whatever its key.
    """
    numbers: dict[int, int] = {}

    def visit(found: Node) -> object:
        if isinstance(found, (str, int, float, bytes)) or found is None:
            return type(found).__name__, found
        if id(found) in numbers:
            return "again", numbers[id(found)]
        numbers[id(found)] = len(numbers)
        match found:
            case Dict():
                return "dict", tuple(map(visit, found.items))
            case Global():
                return "global", found.module, found.name
            case ByteString():
                return "bytes of Python 2", found.data
            case PersistentId(target=Storage() as storage):
                digest = hashlib.sha256()
                for chunk in storage.data.chunks():
                    digest.update(chunk)
                return "storage", storage.dtype.name, storage.device, digest.hexdigest()
            case Object():
                parts = (found.callee, found.args, found.elements, found.items)
                state = ("none",) if found.state is NO_STATE else visit(found.state)
                return found.op, tuple(map(visit, parts)), state
            case tuple() | list():
                return type(found).__name__, tuple(map(visit, found))
        raise AssertionError(found)

    return visit(node)
