"""Whether ``torch.load(weights_only=True)`` would load a pickle, without loading it.

What it allows is that of torch 2.13 (``torch/_weights_only_unpickler.py``): a few opcodes, names of
a fixed list, calls of what is on the list, and nothing done to the results but what a state dict
needs. Other code may have added names by ``torch.serialization.add_safe_globals``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.pickles.limits import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.nodes import (
    NO_STATE,
    ByteString,
    Extension,
    Global,
    Node,
    Object,
    PersistentId,
)
from ckpt_surgery.pickles.opcodes import NAMES, opcodes
from ckpt_surgery.pickles.walk import walk

_OPCODES: Final = """\
PROTO GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3
NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT
BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 STOP
"""
_TYPES: Final = "BFloat16 Bool Byte Char Double Float Half Int Long Short"
_STORAGES: Final = "ComplexDouble ComplexFloat QInt32 QInt8 QUInt2x4 QUInt4x2 QUInt8"
_REBUILD: Final = """\
parameter parameter_with_state qtensor tensor tensor_v2 tensor_v3 sparse_tensor
meta_tensor_no_storage nested_tensor wrapper_subclass device_tensor_from_numpy
device_tensor_from_cpu_tensor
"""
_OTHERS: Final = """\
_codecs.encode builtins.bytearray builtins.complex builtins.set collections.Counter
collections.OrderedDict torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter
torch.serialization._get_layout torch.storage.TypedStorage torch.storage.UntypedStorage
torch._tensor._rebuild_from_type_v2 torch.per_tensor_affine torch.per_tensor_symmetric
torch.per_channel_affine torch.per_channel_symmetric torch.per_channel_affine_float_qparams
"""
_ITEMS: Final = frozenset({"collections.OrderedDict", "collections.Counter"})
_PYTHON_2: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@cache
def _allowed() -> frozenset[str]:
    tensors = [f"{name}Tensor" for name in _TYPES.split()]
    storages = [f"{name}Storage" for name in _TYPES.split()]
    sparse = [name for name in tensors if name != "BoolTensor"]
    names = [f"torch.{name}" for name in (*tensors, *storages)]
    names += [f"torch.{name}Storage" for name in _STORAGES.split()]
    names += [f"torch.cuda.{name}" for name in (*tensors, *storages)]
    names += [f"torch.cuda.Complex{kind}Storage" for kind in ("Double", "Float")]
    names += [f"torch.{place}.{name}" for place in ("sparse", "cuda.sparse") for name in sparse]
    names += [f"torch._utils._rebuild_{name}" for name in _REBUILD.split()]
    names += [f"torch.{dtype.name}" for dtype in BY_NAME.values()]
    return frozenset((*names, *_OTHERS.split()))


def is_allowed(qualified: str) -> bool:
    """Return whether torch lets a pickle name a class or function, given its name in Python 3."""
    return qualified in _allowed()


def refusal(
    data: bytes, root: Node, names: tuple[Global, ...], *, limits: Limits = DEFAULT_LIMITS
) -> str | None:
    """Return why ``weights_only=True`` refuses a pickle; None if it loads it.

    `data` starts with the pickle; `root` and `names` are what `parse` made of it.
    """
    for name in names:
        if not is_allowed_name(name.qualified):
            return f"it names '{name.qualified}', which torch does not allow by itself"
    return refused_opcode(dict.fromkeys(opcodes(data))) or next(
        filter(None, map(refused_node, walk(root, limits=limits))), None
    )


def is_allowed_name(written: str) -> bool:
    """Return whether torch lets a pickle name a class or function, given its name as written."""
    module, dot, name = written.rpartition(".")
    return is_allowed(f"{_PYTHON_2.get(module, module)}{dot}{name}")


def refused_opcode(codes: Iterable[int]) -> str | None:
    """Return what is said of the first of some opcodes that torch does not read; None: of none."""
    known = _OPCODES.split()
    for code in codes:
        if NAMES[code] not in known:
            return f"it holds the opcode {NAMES[code]}, which only other unpicklers read"
    return None


def refused_node(node: Node) -> str | None:
    """Return why torch does not make `node`, of names that it allows; None if it does."""
    if isinstance(node, Extension):
        return "it takes an object from Python's extension registry"
    if isinstance(node, PersistentId):
        return _refused_id(node.pid)
    if not isinstance(node, Object):
        return None
    if not isinstance(node.callee, Global):
        return "it calls something that it has made itself"
    callee = node.callee.qualified
    if node.elements is not None:
        return f"it appends to a '{callee}', and torch only to lists"
    if node.items is not None and callee not in _ITEMS:
        return f"it sets items of a '{callee}', and torch only of dictionaries"
    if node.state is not NO_STATE and callee.rpartition(".")[2].startswith("_rebuild_"):
        return f"it gives a state to what '{callee}' makes"
    return None


def _refused_id(pid: Node) -> str | None:
    kind = pid[0] if isinstance(pid, tuple) and pid else pid
    if kind in ("storage", b"storage") or (isinstance(kind, ByteString) and kind.text == "storage"):
        return None
    return "it refers to something that is no storage, such as the source code of a class"
