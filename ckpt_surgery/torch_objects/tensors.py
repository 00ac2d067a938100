"""Describe the tensors that a pickle graph would rebuild, for every function torch rebuilds with.

The functions and their arguments are those of ``torch/_utils.py`` and ``torch/_tensor.py``. What
is not recognised is no tensor here: it stays an opaque node of the graph and is carried over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME, DType
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
from ckpt_surgery.torch_objects.storages import parse_storage_id, text

_MAX_DIMENSIONS = 1000  # torch sets no bound; a shape of a million ones is an attack
_MAX_INT = 2**63 - 1
_BEFORE_SCALARS = "torch._utils._rebuild_tensor"
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
        self._seen: dict[int, Tensor | None] = {}
        self._active: set[int] = set()

    def describe(self, node: Node) -> Tensor | None:
        """The tensor that `node` rebuilds; None if it is none or not understood.

        Raises `DamagedFileError` if the tensor would lie outside its storage, or if its arguments
        are not those of the function that rebuilds it, `LimitExceededError` if the tensors are
        made of too many.
        """
        if not isinstance(node, Object):
            return None
        known = self._seen.get(id(node), self)
        if known is not self:
            return known  # type: ignore[return-value]  # `self` stands for "not seen"
        if id(node) in self._active or len(self._active) > 100:
            raise DamagedFileError("a tensor is made of itself")
        self._active.add(id(node))
        try:
            tensor = self._rebuild(node)
        finally:
            self._active.discard(id(node))
        self._seen[id(node)] = tensor
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
        """The outermost tensors at or below `node`, each once, in the order of the pickle.

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

    def _rebuild(self, node: Object) -> Tensor | None:
        if node.op != "REDUCE" or not isinstance(node.callee, Global):
            return None
        handler = _HANDLERS.get(node.callee.qualified)
        if handler is not None and isinstance(node.args, tuple):
            try:
                return handler(self, node.args, node)
            except (IndexError, ValueError, TypeError) as error:
                raise DamagedFileError(
                    f"'{node.callee.qualified}' has arguments of the wrong form"
                ) from error
        if node.args == () and _is_old_tensor_class(node.callee) and node.state is not NO_STATE:
            return _old_tensor(self, node)
        return None


def _strided_v2(_: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    return _strided(args, node, len(args) > 4 and args[4] is True)


def _strided_v3(_: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    return _strided(args, node, args[4] is True, _dtype(args[6]))


def _quantized(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    tensor = _strided(args, node, args[5] is True)
    return replace(tensor, layout="quantized", parts=tuple(reader.below(args[4])))


def _parameter(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    inner = reader.describe(args[0])
    if inner is None:
        raise DamagedFileError(f"'{node.name}' wraps something that is no tensor")
    parts = inner.parts + _attributes(reader, inner, args[3]) if len(args) > 3 else inner.parts
    return replace(inner, is_parameter=True, requires_grad=args[1] is True, parts=parts)


def _from_type(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor | None:
    function, _, inner_args, state = args
    if not isinstance(function, Global) or not isinstance(inner_args, tuple):
        return None
    handler = _HANDLERS.get(function.qualified)
    if handler is None or handler is _from_type:  # torch wraps a tensor once
        return None
    tensor = handler(reader, inner_args, Object("REDUCE", function, inner_args))
    if tensor is None:
        return None
    return replace(tensor, parts=tensor.parts + _attributes(reader, tensor, state), node=node)


def _attributes(reader: TensorReader, tensor: Tensor, state: Node) -> tuple[Tensor, ...]:
    """The tensors in the state of `tensor` that are not its parts already."""
    known = {id(part.node) for part in tensor.parts}
    return tuple(part for part in reader.below(state) if id(part.node) not in known)


def _sparse(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    layout, data = args
    if not isinstance(data, tuple):
        raise TypeError
    # (indices, values, size[, is_coalesced]) or (compressed, plain, values, size)
    compressed = len(data) == 4 and isinstance(data[3], (tuple, Object))
    parts = tuple(reader.below(data[: 3 if compressed else 2]))
    shape = sizes(data[3 if compressed else 2])
    if not parts:
        raise ValueError
    return Tensor(
        shape,
        parts[-1].dtype,
        (),
        layout=_layout(layout),
        device=parts[-1].device,
        parts=parts,
        node=node,
    )


def _meta(_: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    shape, stride = sizes(args[1]), sizes(args[2])
    return Tensor(
        shape,
        _dtype(args[0]),
        stride,
        layout="strided",
        device="meta",
        requires_grad=args[3] is True,
        node=node,
    )


def _nested(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    parts = tuple(reader.below(args[:4]))
    if len(parts) < 2 or not parts[1].shape:
        raise ValueError
    # The shape is ragged: only the number of tensors is known without reading bytes.
    return Tensor((parts[1].shape[0],), parts[0].dtype, (), layout="nested", parts=parts, node=node)


def _jagged(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    parts = tuple(reader.below(args))
    if len(parts) < 2 or not parts[1].shape:
        raise ValueError
    shape = (max(parts[1].shape[0] - 1, 0),)
    return Tensor(shape, parts[0].dtype, (), layout="jagged", parts=parts, node=node)


def _wrapper(_: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor:
    dtype, size, stride, device, requires_grad = args[1], args[2], args[3], args[6], args[7]
    return Tensor(
        sizes(size),
        _dtype(dtype),
        sizes(stride),
        layout="subclass",
        device=_device(device),
        requires_grad=requires_grad is True,
        node=node,
    )


def _device_tensor(reader: TensorReader, args: tuple[Node, ...], node: Object) -> Tensor | None:
    data, dtype, device, requires_grad = args
    parts = tuple(reader.below(data))
    if not parts:
        return None  # a numpy array: its bytes are part of the pickle, carried as they are
    return Tensor(
        parts[0].shape,
        _dtype(dtype),
        (),
        layout="device",
        device=_device(device),
        requires_grad=requires_grad is True,
        parts=parts,
        node=node,
    )


def _old_tensor(reader: TensorReader, node: Object) -> Tensor | None:
    """``torch.FloatTensor()`` given (storage, offset, size, stride) as its state."""
    state = node.state
    if not isinstance(state, tuple):
        return None
    if len(state) == 4:
        return _strided(state, node, False)
    inner = reader.describe(state[0]) if len(state) == 5 else None
    return None if inner is None else replace(inner, requires_grad=state[3] is True)


def _strided(
    place: tuple[Node, ...], node: Object, requires_grad: bool, dtype: DType | None = None
) -> Tensor:
    """The view (storage, offset, size, stride) of a storage, checked to lie inside it.

    `dtype` None: the storage's own.
    """
    storage_node, offset, size, stride = place[:4]
    storage = storage_node.target if isinstance(storage_node, PersistentId) else None
    if not isinstance(storage_node, PersistentId) or not isinstance(storage, Storage):
        raise DamagedFileError("a tensor's storage is not a storage")
    shape, steps = sizes(size), sizes(stride)
    if shape == () and storage.nbytes == 0 and node.name == _BEFORE_SCALARS:
        shape, steps = (0,), (1,)  # an empty tensor of torch 0.3, which had no scalars
    if type(offset) is not int or offset < 0:
        raise DamagedFileError("a tensor's storage offset is not a number")
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
        node=node,
    )
    end = tensor.dtype.nbytes(offset + tensor.extent)
    if tensor.extent and end > storage.nbytes:
        raise DamagedFileError(
            f"a tensor of shape {shape} reaches to byte {end} of a storage of {storage.nbytes}",
            entry=f"storage {storage.key}",
        )
    return tensor


def _stored_dtype(storage: Storage, pid: Node) -> DType:
    """The type of a storage's elements; of an empty one each reference may say another."""
    said = parse_storage_id(pid) if storage.nbytes == 0 else None
    return storage.dtype if said is None else said.dtype


def math_bits(tensor: Tensor) -> tuple[bool, bool]:
    """Whether torch would read the stored elements as conjugated, and whether as negated."""
    node = tensor.node
    if not isinstance(node, Object):
        return False, False
    args = node.args
    if isinstance(args, tuple) and node.name.endswith("._rebuild_from_type_v2"):
        args = args[2]
    if not isinstance(args, tuple) or not args or not isinstance(args[-1], Dict):
        return False, False
    bits = {text(key): value is True for key, value in args[-1].pairs()}
    return bits.get("conj", False), bits.get("neg", False)


def sizes(node: Node) -> tuple[int, ...]:
    """A shape or stride: a tuple, list or ``torch.Size`` of integers from 0 to 2**63 - 1."""
    if isinstance(node, Object) and isinstance(node.args, tuple) and len(node.args) == 1:
        node = node.args[0]
    if not isinstance(node, (tuple, list)) or len(node) > _MAX_DIMENSIONS:
        raise DamagedFileError("a tensor's shape is not a sequence of numbers")
    for n in node:
        if type(n) is not int or not 0 <= n <= _MAX_INT:
            raise DamagedFileError("a tensor's size or stride is negative, too large or no number")
    if prod(node) > _MAX_INT:
        raise DamagedFileError("a tensor has more elements than fit in 64 bits")
    return tuple(node)


def _dtype(node: Node) -> DType:
    if isinstance(node, Global) and node.name in BY_NAME:
        return BY_NAME[node.name]
    name = node.qualified if isinstance(node, Global) else "something else"
    raise DamagedFileError(f"unknown element type '{name}'")


def _device(node: Node) -> str:
    if isinstance(node, Object) and isinstance(node.args, tuple):
        return ":".join(str(part) for part in node.args if isinstance(part, (str, int)))[:40]
    return text(node) or "unknown"


def _layout(node: Node) -> str:
    if isinstance(node, Object) and isinstance(node.args, tuple) and node.args:
        node = node.args[0]
    name = node.name if isinstance(node, Global) else text(node)
    if name is None:
        raise DamagedFileError("a sparse tensor names no layout")
    return name.rpartition(".")[2]


def _is_old_tensor_class(callee: Global) -> bool:
    return callee.name.endswith("Tensor") and callee.module in {
        "torch",
        "torch.cuda",
        "torch.tensor",
        "torch._tensor",
        "torch.autograd.variable",
    }


_Handler = Callable[[TensorReader, tuple[Node, ...], Object], Tensor | None]
_HANDLERS: dict[str, _Handler] = {
    f"torch._utils.{name}": handler
    for name, handler in {
        "_rebuild_tensor": _strided_v2,
        "_rebuild_tensor_v2": _strided_v2,
        "_rebuild_tensor_v3": _strided_v3,
        "_rebuild_qtensor": _quantized,
        "_rebuild_parameter": _parameter,
        "_rebuild_parameter_with_state": _parameter,
        "_rebuild_sparse_tensor": _sparse,
        "_rebuild_sparse_csr_tensor": _sparse,
        "_rebuild_meta_tensor_no_storage": _meta,
        "_rebuild_nested_tensor": _nested,
        "_rebuild_wrapper_subclass": _wrapper,
        "_rebuild_device_tensor_from_numpy": _device_tensor,
        "_rebuild_device_tensor_from_cpu_tensor": _device_tensor,
        "_rebuild_xla_tensor": _device_tensor,
    }.items()
}
_HANDLERS["torch._tensor._rebuild_from_type_v2"] = _from_type
_HANDLERS["torch.tensor._rebuild_from_type_v2"] = _from_type
_HANDLERS["torch.nested._internal.nested_tensor._rebuild_njt"] = _jagged


def relocated(node: Object, storage: PersistentId, tensor: Tensor) -> Object:
    """`node` rebuilding the same tensor from another place: `tensor`'s offset, size and stride."""
    place = (storage, tensor.offset, tensor.shape, tensor.stride)
    if node.state is not NO_STATE and node.args == ():
        return Object(node.op, node.callee, (), state=place)
    if not isinstance(node.args, tuple):
        raise TypeError(node)
    if node.name.endswith("_rebuild_from_type_v2"):
        function, kind, inner, state = node.args
        if not isinstance(inner, tuple):
            raise TypeError(node)
        args: tuple[Node, ...] = (function, kind, (*place, *inner[4:]), state)
    else:
        args = (*place, *node.args[4:])
    return Object(
        node.op, node.callee, args, elements=node.elements, items=node.items, state=node.state
    )


def build(storage: PersistentId, tensor: Tensor) -> Object:
    """A new node that rebuilds `tensor`, as torch writes it: ``_rebuild_tensor_v2`` or ``_v3``."""
    hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
    place = (storage, tensor.offset, tensor.shape, tensor.stride, tensor.requires_grad, hooks)
    if tensor.storage is not None and tensor.storage.untyped:
        dtype = Global("torch", tensor.dtype.name)
        return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v3"), (*place, dtype))
    return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), place)
