"""Calls that torch itself writes: arguments are read from here, and only if nothing else was done.

A pickle can do more to the result of a call than torch ever does: give it a state, set items on it,
append to it, or change a list that was an argument after the call was made. What is read of such a
call is not what torch loads. So whatever interprets one takes its arguments through `Call`.
"""

from __future__ import annotations

from math import prod
from typing import Final

from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Dict, Global, List, Node, Object
from ckpt_surgery.torch_objects.storages import text

_MAX_DIMENSIONS: Final = 1000  # torch sets no bound; a shape of a million ones is an attack
_MAX_INT: Final = 2**63 - 1
_LONGEST_DEVICE: Final = 40  # characters
_CHANGEABLE: Final = (List, Dict, Object)


class Call:
    """The arguments of a call, each as it was when the call was made.

    Each method gives the argument at an index in the form that it must have; all of them raise
    `DamagedFileError` if it has not, or if it is changed after the call.
    """

    __slots__ = ("_args", "_at", "node")

    def __init__(self, node: Object, args: tuple[Node, ...], at: int) -> None:
        self.node = node
        self._args = args
        self._at = at

    @classmethod
    def plain(cls, node: Object, least: int, most: int) -> Call:
        """Return the call `node` of `least` to `most` arguments; nothing is done to its result."""
        if node.state is not NO_STATE or node.items is not None or node.elements is not None:
            raise DamagedFileError(f"the result of '{node.name}' is given a state or items")
        args = node.args
        if not isinstance(args, tuple) or not least <= len(args) <= most:
            raise wrong_form(node)
        return cls(node, args, node.at)

    @classmethod
    def of_state(cls, node: Object) -> Call:
        """Return what the state of `node`, a tuple, says; it is itself called without arguments."""
        if node.args != () or node.items is not None or node.elements is not None:
            raise DamagedFileError(f"the result of '{node.name}' is given arguments or items")
        if not isinstance(node.state, tuple):
            raise wrong_form(node)
        return cls(node, node.state, node.changed)

    @classmethod
    def of_arguments_and_state(cls, node: Object) -> Call:
        """Return what `node` is called with, and after that what its state, a tuple, says."""
        if not isinstance(node.args, tuple) or not isinstance(node.state, tuple):
            raise wrong_form(node)
        if node.items is not None or node.elements is not None:
            raise DamagedFileError(f"the result of '{node.name}' is given items")
        return cls(node, (*node.args, *node.state), node.changed)

    def __len__(self) -> int:
        return len(self._args)

    def reference(self, index: int) -> Node:
        """Return an argument of any form that is kept and not read:
        later changes reach it as well.
        """
        return self._args[index]

    def settled(self, index: int) -> Node:
        """Return an argument of any form, with what tuples and lists in it hold."""
        return self._settled(self._args[index])

    def all_settled(self) -> tuple[Node, ...]:
        """Return all arguments, like `settled`."""
        self._settled(self._args)
        return self._args

    def boolean(self, index: int) -> bool:
        """True or False and nothing else."""
        value = self._args[index]
        if not isinstance(value, bool):
            raise wrong_form(self.node)
        return value

    def place(self) -> tuple[Node, int, tuple[int, ...], tuple[int, ...]]:
        """Return the first four arguments as storage, offset (in elements), shape and stride."""
        storage, offset, shape, stride = self._args[:4]
        if type(offset) is not int or offset < 0:
            raise DamagedFileError("a tensor's storage offset is not a number")
        if type(shape) is not tuple:
            self._settled(shape)
        if type(stride) is not tuple:
            self._settled(stride)
        return storage, offset, sizes(shape), steps(stride)

    def sizes(self, index: int) -> tuple[int, ...]:
        """Return a shape: a tuple, list or ``torch.Size`` of integers from 0 to 2**63 - 1."""
        node = self._args[index]
        return sizes(node if type(node) is tuple else self._settled(node))

    def steps(self, index: int) -> tuple[int, ...]:
        """Return strides, which are of the form of a shape, and of any product."""
        node = self._args[index]
        return steps(node if type(node) is tuple else self._settled(node))

    def dtype(self, index: int) -> DType:
        """Return the element type that a global names."""
        node = self._args[index]
        if isinstance(node, Global) and node.module == "torch" and node.name in BY_NAME:
            return BY_NAME[node.name]
        name = node.qualified if isinstance(node, Global) else "something else"
        raise DamagedFileError(f"unknown element type '{name}'")

    def device(self, index: int) -> str:
        """Return a ``torch.device`` or its name; "unknown" for anything else."""
        return device_name(self._args[index])

    def layout(self, index: int) -> str:
        """Return the layout of a sparse tensor, without the module."""
        node = self._args[index]
        if isinstance(node, Object) and node.name == "torch.serialization._get_layout":
            node = Call.plain(node, 1, 1).settled(0)
        name = node.qualified if isinstance(node, Global) else text(node)
        if name is None or not name.startswith("torch."):
            raise DamagedFileError("a sparse tensor names no layout")
        return name.rpartition(".")[2]

    def _settled(self, node: Node) -> Node:
        seen: set[int] = set()
        waiting = [node]
        while waiting:
            found = waiting.pop()
            if isinstance(found, _CHANGEABLE) and found.changed > self._at:
                raise DamagedFileError(
                    f"an argument of '{self.node.name}' is changed after the call"
                )
            if isinstance(found, (tuple, list)) and id(found) not in seen:
                seen.add(id(found))
                waiting += found
        return node


def device_name(node: Node) -> str:
    """Return the device that a ``torch.device`` or a text names; "unknown" for anything else."""
    if isinstance(node, Object) and node.name == "torch.device":
        parts = Call.plain(node, 1, 2).all_settled()
        return ":".join(str(n) for n in parts if isinstance(n, str | int))[:_LONGEST_DEVICE]
    return (text(node) or "unknown")[:_LONGEST_DEVICE]


def wrong_form(node: Object) -> DamagedFileError:
    """Return the error for a call of arguments that no version of torch writes."""
    return DamagedFileError(f"'{node.name}' has arguments of the wrong form")


def sizes(node: Node) -> tuple[int, ...]:
    """Return a shape: `steps` whose product fits in 64 bits."""
    found = steps(node)
    if prod(found) > _MAX_INT:
        raise DamagedFileError("a tensor has more elements than fit in 64 bits")
    return found


def steps(node: Node) -> tuple[int, ...]:
    """Return strides: a tuple, list or ``torch.Size`` of integers from 0 to 2**63 - 1."""
    if isinstance(node, Object) and node.name == "torch.Size":
        node = Call.plain(node, 1, 1).settled(0)
    if not isinstance(node, (tuple, list)) or len(node) > _MAX_DIMENSIONS:
        raise DamagedFileError("a tensor's shape is not a sequence of numbers")
    for n in node:
        if type(n) is not int or not 0 <= n <= _MAX_INT:
            raise DamagedFileError("a tensor's size or stride is negative, too large or no number")
    return tuple(node)
