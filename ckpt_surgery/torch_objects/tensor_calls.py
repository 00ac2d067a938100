"""Make the calls by which a pickle rebuilds tensors, as today's torch writes them."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.pickles import NO_STATE, Global, Node, Object, PersistentId


def relocated(node: Object, storage: PersistentId, tensor: Tensor) -> Object:
    """`node` rebuilding the same tensor from another place: `tensor`'s offset, size and stride."""
    place = (storage, tensor.offset, _own_sizes(tensor.shape), _own_sizes(tensor.stride))
    if node.args == () and node.state is not NO_STATE:  # a tensor of torch 0.1
        return build(storage, tensor)
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
    """Return a new node that rebuilds `tensor`, as torch writes it:
    ``_rebuild_tensor_v2`` or ``_v3``, in ``_rebuild_parameter`` if it is one.
    """
    if tensor.is_parameter:
        data = build(storage, replace(tensor, is_parameter=False, requires_grad=False))
        hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
        function = Global("torch._utils", "_rebuild_parameter")
        return Object("REDUCE", function, (data, tensor.requires_grad, hooks))
    hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
    shape, stride = _own_sizes(tensor.shape), _own_sizes(tensor.stride)
    place = (storage, tensor.offset, shape, stride, tensor.requires_grad, hooks)
    if tensor.storage is not None and tensor.storage.untyped:
        dtype = Global("torch", tensor.dtype.name)
        return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v3"), (*place, dtype))
    return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), place)


def _own_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return equal sizes as a tuple of their own, as torch makes them for each tensor.

    A pickle refers back to one that it has written; so it does not depend on which were shared.
    """
    return tuple(iter(sizes))
