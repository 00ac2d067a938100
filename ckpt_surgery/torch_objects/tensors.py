"""Describe the tensors that a pickle graph would rebuild, for every function torch rebuilds with.

The functions and their arguments are those of ``torch/_utils.py`` and ``torch/_tensor.py``. What
is not recognised is no tensor here: it stays an opaque node of the graph and is carried over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import DType
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import (
    DEFAULT_LIMITS,
    NO_STATE,
    Dict,
    Global,
    Limits,
    Node,
    Object,
    PersistentId,
    children,
)
from ckpt_surgery.torch_objects import dtensor
from ckpt_surgery.torch_objects.calls import Call, sizes, wrong_form
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.math_bits import FROM_TYPE, bits_of_call
from ckpt_surgery.torch_objects.old_forms import (
    PARAMETER_CLASSES,
    has_gradient,
    is_old_tensor,
    is_old_variable,
    modern_variable,
    read_variable,
    require_own_storage,
)
from ckpt_surgery.torch_objects.sharded_tensor import read_sharded_tensor
from ckpt_surgery.torch_objects.storages import parse_storage_id
from ckpt_surgery.torch_objects.tensor_attributes import PLAIN_CLASSES, require_attributes
from ckpt_surgery.torch_objects.tensor_calls import build

_BEFORE_SCALARS = "torch._utils._rebuild_tensor"
_HOOKS = "collections.OrderedDict"
_PARAMETERS: Final = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
_CONTAINERS = (tuple, list, Dict, Object)
# Shares of the operations of `Limits`: how often objects that parts of tensors refer to may be
# looked at again, and how many tensors others may be made of, counted as often as they occur.
_SEARCH_SHARE = 256
_PARTS_SHARE = 256
_CHEAP = 8  # things that are no container, which take as long to look at as one that is


class TensorReader:
    """Describes the tensors of one graph; each node is described once.

    Tensors may share parts, so that a small pickle can stand for any number of them: `limits`
    bound how many, and the work to find them.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._search_left = limits.operations // _SEARCH_SHARE
        self._parts_left = limits.operations // _PARTS_SHARE
        self._searched: set[int] = set()  # what parts of tensors refer to
        self._made_of: dict[int, int] = {}  # strided tensors, by the identity of a tensor
        self.described: dict[int, Tensor | None] = {}
        """What was found of each node that was asked about, by its identity."""
        self._active: set[int] = set()
        self.modern: dict[int, Node] = {}
        """What today's torch writes for nodes of torch 0.1 to 0.3, by their identity."""
        self.gradients = 0
        """How many of these bring a gradient, which today's torch does not load."""

    def describe(self, node: Node) -> Tensor | None:
        """Return the tensor that `node` rebuilds; None if it is none or not understood.

        Raises `DamagedFileError` if the tensor would lie outside its storage, or if its arguments
        are not those of the function that rebuilds it, `LimitExceededError` if the tensors are
        made of too many.
        """
        if not isinstance(node, Object):
            return None
        known = self.described.get(id(node), self)
        if known is not self:
            return known  # type: ignore[return-value]  # `self` stands for "not seen"
        if id(node) in self._active or len(self._active) > 100:
            raise DamagedFileError("a tensor is made of itself")
        self._active.add(id(node))
        try:
            tensor = self.rebuild(node)
        finally:
            self._active.discard(id(node))
        self.described[id(node)] = tensor
        if tensor is not None and tensor.parts:
            self._count_parts(tensor)
        return tensor

    def _count_parts(self, tensor: Tensor) -> None:
        count = sum(self._made_of.get(id(part), 1) for part in tensor.parts)
        self._made_of[id(tensor)] = count + 1
        self._parts_left -= count
        if self._parts_left < 0:
            raise LimitExceededError("tensors are made of too many others")

    def below(self, node: Node, seen: set[int] | None = None) -> Iterator[Tensor]:
        """Yield the outermost tensors at or below `node`, each once, in the order of the pickle.

        What is below a node in `seen` is left out; `seen` grows by what was visited.
        """
        is_part_of_tensor = seen is None
        seen = set() if seen is None else seen
        waiting = [node]
        while waiting:
            found = waiting.pop()
            if id(found) in seen or not isinstance(found, _CONTAINERS):
                continue
            seen.add(id(found))
            tensor = self.describe(found)
            if tensor is not None:
                yield tensor
                continue
            inner = children(found)
            if is_part_of_tensor:
                self._count_visit(found, len(inner))
            waiting.extend(node for node in reversed(inner) if isinstance(node, _CONTAINERS))

    def _count_visit(self, node: Node, length: int) -> None:
        """Count the containers that parts of several tensors refer to, each time but the first.

        One that has `length` others or numbers in it counts for that as well.
        """
        if id(node) not in self._searched:
            self._searched.add(id(node))
            return
        self._search_left -= 1 + length // _CHEAP
        if self._search_left < 0:
            raise LimitExceededError("too many tensors are made of the same objects")

    def rebuild(self, node: Object) -> Tensor | None:
        """Like `describe`, but neither looked up nor remembered."""
        if not isinstance(node.callee, Global):
            return None
        if node.op != "REDUCE" and node.op != "NEWOBJ":
            return None
        if node.state is not NO_STATE and node.callee.module.startswith("torch"):
            old = self._old(node)
            if old is not None:
                return old
        if node.op != "REDUCE":
            return None
        function = _FUNCTIONS.get(node.callee.qualified)
        if function is not None:
            handler, least, most = function
            return handler(self, Call.plain(node, least, most))
        return None

    def _old(self, node: Object) -> Tensor | None:
        """Return the tensor of a node as torch 0.1 to 0.3 wrote one; None for any other.

        What today's torch would write for it is put into `modern`.
        """
        if is_old_variable(node):
            tensor = read_variable(node, self.describe)
            if tensor is not None:
                self.modern[id(node)] = modern_variable(node, tensor)
                self.gradients += has_gradient(node)
            return tensor
        if not is_old_tensor(node):
            return None
        tensor = _old_tensor(self, node)
        place = node.state[0] if tensor is not None and isinstance(node.state, tuple) else None
        if tensor is None or not isinstance(place, PersistentId):
            return tensor
        modern = build(place, tensor)
        self.modern[id(node)] = modern
        return replace(tensor, node=modern)


def _strided_v1(_: TensorReader, call: Call) -> Tensor:
    return _strided(call, False)


def _strided_v2(_: TensorReader, call: Call) -> Tensor:
    _require_hooks(call, 5)
    tensor = _strided(call, call.boolean(4))
    if len(call) > 6:
        _require_bits(call, 6, tensor)
    return tensor


def _strided_v3(_: TensorReader, call: Call) -> Tensor:
    _require_hooks(call, 5)
    tensor = _strided(call, call.boolean(4), call.dtype(6))
    if len(call) > 7:
        _require_bits(call, 7, tensor)
    return tensor


def _require_bits(call: Call, index: int, tensor: Tensor) -> None:
    """Refuse metadata of no form that torch writes, and real numbers that it would conjugate."""
    conjugated, _ = bits_of_call(call, index)
    if conjugated and tensor.dtype.kind != "complex":
        raise DamagedFileError(f"real numbers ({tensor.dtype.name}) are conjugated")


def _quantized(reader: TensorReader, call: Call) -> Tensor:
    parts = tuple(reader.below(call.settled(4)))
    _require_hooks(call, 6)
    return replace(_strided(call, call.boolean(5)), layout="quantized", parts=parts)


def _parameter(reader: TensorReader, call: Call) -> Tensor:
    inner = reader.describe(call.reference(0))
    if inner is None:
        raise DamagedFileError(f"'{call.node.name}' wraps something that is no tensor")
    _require_hooks(call, 2)
    parts = inner.parts
    if len(call) > 3:
        require_attributes(call.settled(3), call.node, of_plain=True)
        parts += _attributes(reader, inner, call.settled(3))
    return replace(inner, is_parameter=True, requires_grad=call.boolean(1), parts=parts)


def _from_type(reader: TensorReader, call: Call) -> Tensor | None:
    function, args = call.reference(0), call.settled(2)
    if not isinstance(function, Global) or not isinstance(args, tuple):
        return None
    if function.qualified in FROM_TYPE:  # torch wraps a tensor once
        return None
    kind = call.reference(1)
    name = kind.qualified if isinstance(kind, Global) else ""
    if function.qualified in _PARAMETERS or name in PARAMETER_CLASSES:
        raise wrong_form(call.node)  # torch writes a parameter in another way
    tensor = reader.rebuild(Object("REDUCE", function, args, call.node.at))
    if tensor is None:
        return None
    state = call.settled(3)
    require_attributes(state, call.node, of_plain=name in PLAIN_CLASSES)
    parts = tensor.parts + _attributes(reader, tensor, state)
    tensor = replace(tensor, parts=parts, node=call.node)
    if isinstance(kind, Global) and kind.qualified in dtensor.CLASSES:
        spec = dtensor.read_spec(state, call.node.at, reader.describe)
        return replace(tensor, layout="dtensor", shard=None if spec is None else spec.shard)
    sharded = read_sharded_tensor(call.node, reader.describe)
    if sharded is not None:
        return replace(tensor, layout="sharded", shard=sharded.shard)
    return tensor


def _require_hooks(call: Call, index: int) -> None:
    """Refuse hooks in a form that no version of torch writes: it keeps whatever is there."""
    hooks = call.reference(index)
    if isinstance(hooks, Object) and hooks.args == () and hooks.name == _HOOKS:
        return  # every tensor has them, so that this has to be quick
    if hooks is not None and mapping_pairs(hooks) is None:
        raise wrong_form(call.node)


def _attributes(reader: TensorReader, tensor: Tensor, state: Node) -> tuple[Tensor, ...]:
    """Return the tensors in the attributes of `tensor`, in `state`, that
    are not its parts already.
    """
    known = {id(part.node) for part in tensor.parts}
    return tuple(part for part in reader.below(state) if id(part.node) not in known)


def _sparse(reader: TensorReader, call: Call) -> Tensor:
    data = call.settled(1)
    if not isinstance(data, tuple) or not 3 <= len(data) <= 4:
        raise wrong_form(call.node)
    # (indices, values, size[, is_coalesced]) or (compressed, plain, values, size)
    compressed = len(data) == 4 and isinstance(data[3], (tuple, Object))
    parts = tuple(reader.below(data[: 3 if compressed else 2]))
    shape = sizes(data[3 if compressed else 2])
    if not parts:
        raise wrong_form(call.node)
    return Tensor(
        shape,
        parts[-1].dtype,
        (),
        layout=call.layout(0),
        device=parts[-1].device,
        parts=parts,
        node=call.node,
    )


def _meta(_: TensorReader, call: Call) -> Tensor:
    return Tensor(
        call.sizes(1),
        call.dtype(0),
        call.steps(2),
        layout="strided",
        device="meta",
        requires_grad=call.boolean(3),
        node=call.node,
    )


def _nested(reader: TensorReader, call: Call) -> Tensor:
    parts = tuple(reader.below(call.all_settled()))
    if len(parts) < 2 or not parts[1].shape:
        raise wrong_form(call.node)
    # The shape is ragged: only the number of tensors is known without reading bytes.
    shape = (parts[1].shape[0],)
    return replace(_of_parts(shape, parts, call), layout="nested")


def _jagged(reader: TensorReader, call: Call) -> Tensor:
    parts = tuple(reader.below(call.all_settled()))
    if len(parts) < 2 or not parts[1].shape:
        raise wrong_form(call.node)
    shape = (max(parts[1].shape[0] - 1, 0),)
    return replace(_of_parts(shape, parts, call), layout="jagged")


def _of_parts(shape: tuple[int, ...], parts: tuple[Tensor, ...], call: Call) -> Tensor:
    """Return a tensor whose elements are those of its first part."""
    first = parts[0]
    return Tensor(shape, first.dtype, (), device=first.device, parts=parts, node=call.node)


def _wrapper(_: TensorReader, call: Call) -> Tensor:
    return Tensor(
        call.sizes(2),
        call.dtype(1),
        call.steps(3),
        layout="subclass",
        device=call.device(6),
        requires_grad=call.boolean(7),
        node=call.node,
    )


def _device_tensor(reader: TensorReader, call: Call) -> Tensor | None:
    parts = tuple(reader.below(call.settled(0)))
    if not parts:
        return None  # a numpy array: its bytes are part of the pickle, carried as they are
    return Tensor(
        parts[0].shape,
        call.dtype(1),
        (),
        layout="device",
        device=call.device(2),
        requires_grad=call.boolean(3),
        parts=parts,
        node=call.node,
    )


def _old_tensor(reader: TensorReader, node: Object) -> Tensor | None:
    """``torch.FloatTensor()`` given (storage, offset, size, stride) as its state.

    With five things it is a variable's, which today's torch understands of a tensor, too.
    """
    if not isinstance(node.state, tuple):
        return None
    call = Call.of_state(node)
    if len(call) == 4:
        tensor = _strided(call, False)
        require_own_storage(node, tensor)
        return tensor
    inner = reader.describe(call.reference(0)) if len(call) == 5 else None
    return None if inner is None else replace(inner, requires_grad=call.boolean(3))


def _strided(call: Call, requires_grad: bool, dtype: DType | None = None) -> Tensor:
    """Return the view (storage, offset, size, stride) of a storage, checked to lie inside it.

    `dtype` None: the storage's own.
    """
    storage_node, offset, shape, steps = call.place()
    storage = storage_node.target if isinstance(storage_node, PersistentId) else None
    if not isinstance(storage_node, PersistentId) or not isinstance(storage, Storage):
        raise DamagedFileError("a tensor's storage is not a storage")
    if shape == () and storage.nbytes == 0 and call.node.name == _BEFORE_SCALARS:
        shape, steps = (0,), (1,)  # an empty tensor of torch 0.3, which had no scalars
    if len(shape) != len(steps):
        raise DamagedFileError(f"a tensor has {len(shape)} sizes but {len(steps)} strides")
    tensor = Tensor(
        shape,
        _stored_dtype(storage, storage_node.pid) if dtype is None else dtype,
        steps,
        offset,
        storage,
        device=storage.device,
        requires_grad=requires_grad,
        node=call.node,
    )
    extent = tensor.extent
    end = tensor.dtype.nbytes(offset + extent)
    if extent and end > storage.nbytes:
        raise DamagedFileError(
            f"a tensor of shape {shape} reaches to byte {end} of a storage of {storage.nbytes}",
            entry=f"storage {storage.key}",
        )
    return tensor


def _stored_dtype(storage: Storage, pid: Node) -> DType:
    """Return the type of a storage's elements; of an empty one each reference may say another."""
    said = parse_storage_id(pid) if storage.nbytes == 0 else None
    return storage.dtype if said is None else said.dtype


_Handler = Callable[[TensorReader, Call], Tensor | None]
# Each with the least and the most arguments that any version of torch gives it.
_FUNCTIONS: dict[str, tuple[_Handler, int, int]] = {
    f"torch._utils.{name}": function
    for name, function in {
        "_rebuild_tensor": (_strided_v1, 4, 4),
        "_rebuild_tensor_v2": (_strided_v2, 6, 7),
        "_rebuild_tensor_v3": (_strided_v3, 7, 8),
        "_rebuild_qtensor": (_quantized, 7, 7),
        "_rebuild_parameter": (_parameter, 3, 3),
        "_rebuild_parameter_with_state": (_parameter, 4, 4),
        "_rebuild_sparse_tensor": (_sparse, 2, 2),
        "_rebuild_sparse_csr_tensor": (_sparse, 2, 2),
        "_rebuild_meta_tensor_no_storage": (_meta, 4, 4),
        "_rebuild_nested_tensor": (_nested, 3, 4),
        "_rebuild_wrapper_subclass": (_wrapper, 8, 8),
        "_rebuild_device_tensor_from_numpy": (_device_tensor, 4, 4),
        "_rebuild_device_tensor_from_cpu_tensor": (_device_tensor, 4, 4),
        "_rebuild_xla_tensor": (_device_tensor, 4, 4),
    }.items()
}
_FUNCTIONS.update(dict.fromkeys(FROM_TYPE, (_from_type, 4, 4)))
_FUNCTIONS["torch.nested._internal.nested_tensor._rebuild_njt"] = _jagged, 1, 1
