"""What torch writes of a call is all that is read of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import ByteString, Dict, Global, List, Node, Object
from ckpt_surgery.torch_objects import tensor_attributes, tensors
from ckpt_surgery.torch_objects.calls import Call, sizes

SIZE = Global("torch", "Size")


def call(*args: Node, at: int = 10, **rest: Node) -> Object:
    made = Object("REDUCE", Global("m", "f"), args, at)
    for name, value in rest.items():
        setattr(made, name, value)
    return made


def plain(*args: Node) -> Call:
    return Call.plain(call(*args), 0, 9)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (call(1, state=None), "given a state or items"),
        (call(1, items=[1, 2]), "given a state or items"),
        (call(1, items=[]), "given a state or items"),
        (call(1, elements=[1]), "given a state or items"),
        (call(), "wrong form"),
        (call(1, 2, 3), "wrong form"),
        (Object("REDUCE", Global("m", "f"), [1]), "wrong form"),
    ],
)
def test_call_that_torch_would_not_write_is_refused(node: Object, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        Call.plain(node, 1, 2)
    assert len(Call.plain(call(1, 2), 1, 2)) == 2


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (call(1, state=()), "given arguments or items"),
        (call(state=(), items=[]), "given arguments or items"),
        (call(state=(), elements=[]), "given arguments or items"),
        (call(state=[1]), "wrong form"),
    ],
)
def test_state_that_torch_would_not_write_is_refused(node: Object, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        Call.of_state(node)


@pytest.mark.parametrize(
    ("read", "argument"),
    [
        (Call.boolean, 1),
        (Call.boolean, None),
        (Call.dtype, Global("other", "float32")),
        (Call.dtype, Global("torch", "float33")),
        (Call.dtype, "float32"),
        (Call.layout, Global("other", "sparse_coo")),
        (Call.layout, "sparse_coo"),
        (Call.layout, 3),
        (Call.sizes, Object("REDUCE", Global("os", "system"), ((2, 3),))),
        (Call.sizes, Object("REDUCE", SIZE, ((2, 3), 1))),
        (Call.device, Object("REDUCE", Global("torch", "device"), ())),
    ],
)
def test_argument_of_another_form_is_refused(
    read: Callable[[Call, int], object], argument: Node
) -> None:
    with pytest.raises(DamagedFileError):
        read(plain(argument), 0)


def test_device_in_another_call_is_unknown() -> None:
    assert plain(Object("REDUCE", Global("m", "device"), ("cuda", 1))).device(0) == "unknown"
    assert plain(ByteString(b"cpu")).device(0) == "cpu"


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: (1, n), lambda n: ((n,), [n])])
def test_argument_changed_after_the_call_is_refused(wrap: Callable[[Node], Node]) -> None:
    for make in (lambda: List([2]), Dict, lambda: Object("REDUCE", SIZE, ((2,),))):
        node = make()
        node.changed = 10
        assert plain(wrap(node)).settled(0) is not None
        node.changed = 11
        with pytest.raises(DamagedFileError, match="changed after the call"):
            plain(wrap(node)).settled(0)
        assert plain(node).reference(0) is node


def test_what_a_dictionary_refers_to_may_change_later() -> None:
    """A tensor's attribute may be the module that it is a part of, which is not complete yet."""
    module = call(state=Dict())
    module.changed = 99
    assert plain(Dict(["owner", module])).settled(0) is not None


def test_argument_that_holds_itself_or_doubles_is_gone_through_once() -> None:
    node: Node = List()
    node.append(node)  # type: ignore[attr-defined]
    for _ in range(100):
        node = (node, node)
    assert plain(node).settled(0) is node


def test_size_in_a_list_that_changed_later_is_refused() -> None:
    inner = List([2, 3], 20)
    with pytest.raises(DamagedFileError, match="changed after the call"):
        sizes(Object("REDUCE", SIZE, (inner,), 10))
    assert sizes(Object("REDUCE", SIZE, (inner,), 21)) == (2, 3)


def test_functions_take_what_those_of_torch_take() -> None:
    """A later torch with another signature has to be looked at."""
    gone = {"torch._utils._rebuild_sparse_csr_tensor"}
    for name, (_, least, most) in tensors._FUNCTIONS.items():
        module, _, attribute = name.rpartition(".")
        if module == "torch.tensor":  # its name before 1.9
            module = "torch._tensor"
        function = getattr(import_module(module), attribute, None)
        assert (function is None) == (name in gone), name
        if function is not None:
            parameters = inspect.signature(function).parameters.values()
            assert most == len(parameters), name
            required = [p for p in parameters if p.default is inspect.Parameter.empty]
            assert least <= len(required), name


def test_attributes_of_tensors_are_all_known() -> None:
    """Those that do something when they are set."""
    setters = {
        name
        for cls in (*torch.nn.Parameter.__mro__, *torch.Tensor.__mro__)
        for name, value in vars(cls).items()
        if hasattr(type(value), "__set__")
    }
    assert setters <= tensor_attributes._OWN_ATTRIBUTES
