"""Optimizer state dicts as node graphs and back, with the tensors themselves at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ckpt_surgery.pickles import Dict, Global, Node, Object, PersistentId
from ckpt_surgery.training.optimizers import OptimizerState, read_optimizer


class Held:
    """A tensor as a leaf of the graph: what `describe` is asked about."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.nbytes = tensor.nbytes


def to_nodes(value: Any) -> Node:
    if isinstance(value, torch.Tensor):
        callee = Global("torch._utils", "_rebuild_tensor_v2")
        return Object("REDUCE", callee, (PersistentId(None, Held(value)),))
    if isinstance(value, dict):
        return Dict([to_nodes(part) for pair in value.items() for part in pair])
    if isinstance(value, (list, tuple)):
        return type(value)(to_nodes(item) for item in value)
    return value


def from_nodes(node: Node) -> Any:
    held = describe(node)
    if held is not None:
        return held.tensor
    if isinstance(node, Dict):
        return {from_nodes(key): from_nodes(value) for key, value in node.pairs()}
    if isinstance(node, (list, tuple)):
        return type(node)(from_nodes(item) for item in node)
    return node


def describe(node: Node) -> Held | None:
    if isinstance(node, Object) and isinstance(node.args, tuple) and node.args:
        target = getattr(node.args[0], "target", None)
        return target if isinstance(target, Held) else None
    return None


def understood(value: Any) -> OptimizerState:
    optimizer = read_optimizer(to_nodes(value), describe)
    assert optimizer is not None
    return optimizer


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def give_gradients(parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """A gradient that depends on the name, the step and the value only, whatever else there is."""
    for name, parameter in parameters:
        if parameter.requires_grad:
            factor = (sum(map(ord, name)) + 3 * step) % 7 - 3.5
            parameter.grad = parameter.detach() * factor + 0.01


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int],
        idle: Callable[[str], bool] = lambda _: False) -> None:  # fmt: skip
    """Take steps; parameters whose name is `idle` get no gradient."""
    for step in steps:
        optimizer.zero_grad()
        give_gradients(((n, p) for n, p in model.named_parameters() if not idle(n)), step)
        optimizer.step()
