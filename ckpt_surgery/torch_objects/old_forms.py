"""Tensors, variables and parameters as torch 0.1 to 0.3 pickled them, and as today's torch does.

Until 0.3 a parameter was a `Variable` that had a tensor. Torch 0.1 pickled one as an empty object
with the state ``(data, grad, hooks, requires_grad, volatile)``, torch 0.2 and 0.3 as a call with
the data and the state ``(requires_grad, volatile, hooks)``. A tensor of torch 0.1 was an empty
object, too, with the state ``(storage, offset, size, stride)``. Today's torch loads all of them;
it leaves gradients out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Global, Node, Object, PersistentId
from ckpt_surgery.torch_objects.calls import Call, wrong_form
from ckpt_surgery.torch_objects.mappings import mapping_length
from ckpt_surgery.torch_objects.tensor_calls import build

PARAMETER_CLASSES: Final = frozenset({"torch.nn.parameter.Parameter", "torch.nn.Parameter"})
_VARIABLES: Final = PARAMETER_CLASSES | {
    "torch.autograd.variable.Variable",
    "torch.autograd.Variable",
}
_TENSOR_MODULES: Final = frozenset(
    {"torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse", "torch.tensor", "torch._tensor"}
)


def is_old_variable(node: Object) -> bool:
    """Return whether `node` is a variable or parameter as torch 0.1 to 0.3 wrote one."""
    if not isinstance(node.callee, Global) or node.callee.qualified not in _VARIABLES:
        return False
    state = node.state
    if not isinstance(state, tuple) or not isinstance(node.args, tuple):
        return False
    return (len(node.args), len(state)) in {(0, 5), (1, 3)}


def is_old_tensor(node: Object) -> bool:
    """Return whether `node` is an empty tensor that is given its place as its state."""
    callee = node.callee
    return (
        isinstance(callee, Global)
        and callee.name.endswith("Tensor")
        and callee.module in _TENSOR_MODULES
        and node.args == ()
        and node.state is not NO_STATE
    )


def require_own_storage(node: Object, tensor: Tensor) -> None:
    """Refuse an old tensor whose storage has elements of another type than its class, as torch."""
    name = node.callee.name if isinstance(node.callee, Global) else ""
    wanted = "FloatStorage" if name == "Tensor" else name.replace("Tensor", "Storage")
    if tensor.storage is None or tensor.storage.untyped or tensor.dtype.storage_class != wanted:
        raise DamagedFileError(f"'{node.name}' lies in a storage of {tensor.dtype.name}")


def read_variable(node: Object, describe: Callable[[Node], Tensor | None]) -> Tensor | None:
    """Return the tensor that an old variable has, as a parameter if it is one; None without one.

    Raises `DamagedFileError` if it is not of the form that torch wrote.
    """
    data, requires_grad = _parts(node)
    tensor = describe(data)
    if tensor is None:
        return None
    is_parameter = isinstance(node.callee, Global) and node.callee.qualified in PARAMETER_CLASSES
    return replace(tensor, is_parameter=is_parameter, requires_grad=requires_grad)


def has_gradient(node: Object) -> bool:
    """Return whether an old variable brings a gradient, which today's torch does not load."""
    state = node.state
    return isinstance(state, tuple) and len(state) == 5 and state[1] is not None


def modern_variable(node: Object, tensor: Tensor) -> Node:
    """Return `node`, an old variable that holds `tensor`, as today's torch writes it."""
    data, requires_grad = _parts(node)
    if tensor.is_parameter:
        args = (data, requires_grad, _hooks())
        return Object("REDUCE", Global("torch._utils", "_rebuild_parameter"), args)
    storage = data.args[0] if isinstance(data, Object) and isinstance(data.args, tuple) else None
    if requires_grad and isinstance(storage, PersistentId):
        return build(storage, tensor)
    return data


def _parts(node: Object) -> tuple[Node, bool]:
    """Return the data of an old variable, and whether it requires a gradient."""
    if isinstance(node.args, tuple) and node.args:
        call = Call.of_arguments_and_state(node)
        data, requires_grad, volatile, hooks = 0, 1, 2, 3
    else:
        call = Call.of_state(node)
        data, _, hooks, requires_grad, volatile = range(5)
    held = call.settled(hooks)
    if call.boolean(volatile) not in {True, False} or (held is not None and mapping_length(held)):
        raise wrong_form(node)
    return call.reference(data), call.boolean(requires_grad)


def _hooks() -> Object:
    return Object("REDUCE", Global("collections", "OrderedDict"), ())
