"""Constructors that want more than the meta device: that move tensors, or compute with values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_MOVES = (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu)


class _StayingPut(TorchFunctionMode):
    """Keeps tensors that stand for others on the device `home`, wherever code moves or makes them.

    A tensor on the meta device cannot be moved, and a machine without a GPU has none to move to;
    where a model lies does not matter for its description. An explicit CPU stays one: what is made
    there is computed with.
    """

    def __init__(self, home: str) -> None:
        super().__init__()
        self.home = home

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MOVES and args and _stands_in(args[0]):
            return self._converted(func, args, kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type not in ("cpu", "meta"):
            kwargs["device"] = self.home
        return func(*args, **kwargs)

    def _converted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the tensor of the element type that it is asked to have, where it is."""
        tensor, *rest = args
        asked = [*rest, *kwargs.values()] if func is torch.Tensor.to else []
        dtypes = [a.dtype if isinstance(a, torch.Tensor) else a for a in asked]
        dtype = next((a for a in dtypes if isinstance(a, torch.dtype)), tensor.dtype)
        return tensor if dtype == tensor.dtype else torch.Tensor.to(tensor, dtype)


def _stands_in(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Make every tensor on the meta device, and leave it there."""
    with torch.device("meta"), _StayingPut("meta"):
        yield


@contextlib.contextmanager
def with_fakes() -> Iterator[None]:
    """Make fake tensors: without memory, on the CPU for all they say, of known values where small.

    So a network can be run inside a constructor, for the shape of what comes out.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    module: Any = nn.Module
    own = module._apply  # noqa: SLF001 it swaps tensors, which crashes with fakes (torch 2.13)
    module._apply = _replace_tensors  # noqa: SLF001 as above
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _StayingPut("cpu"):
            yield
    finally:
        module._apply = own  # noqa: SLF001 as above


def _replace_tensors(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Return what ``Module._apply`` does, with new parameters in the place of the old ones."""
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for each in module.modules() if recurse else [module]:
        for tensors in (each._parameters, each._buffers):  # noqa: SLF001 as in torch's own
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = tensor, _like(tensor, fn(tensor.detach()))
                tensors[name] = known[id(tensor)][1]  # type: ignore[assignment]  # one of its kind
    return module


def as_description(model: nn.Module) -> nn.Module:
    """`model` with all its tensors on the meta device; what they held is released.

    Tensors that are one stay one, also in attributes and in lists of these.
    """
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                shape, stride = tuple(value.shape), tuple(value.stride())
                bare = torch.empty_strided(shape, stride, dtype=value.dtype, device="meta")
                known[id(value)] = value, _like(value, bare)
            return known[id(value)][1]
        if type(value) in (list, tuple):
            return type(value)(map(moved, value))
        return value

    for module in model.modules():
        attributes = {name: moved(value) for name, value in module.__dict__.items()}
        module.__dict__.update(attributes)
        for tensors in (module._parameters, module._buffers):  # noqa: SLF001 as in torch's own
            tensors.update({name: moved(tensor) for name, tensor in tensors.items()})
    return model


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` as a parameter if `old` is one."""
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)
