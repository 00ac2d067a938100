"""The state of a parameter that an edit made of others: parts of one, several joined, a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint.description import Storage, Tensor, contiguous_strides
from ckpt_surgery.errors import ReadError
from ckpt_surgery.pickles import Node, PersistentId
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensor_calls import build
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.optimizers.members import MomentMaker
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState, ParameterState
from ckpt_surgery.training.optimizers.scalars import scalar


def made_moments(
    optimizer: OptimizerState, keys: Sequence[Key], change: MomentMaker, reader: TensorReader
) -> dict[str, Node] | None:
    """Return new nodes for the tensors of the state of a parameter that is made of others.

    Its scalars are theirs, with bytes of their own: an optimizer counts steps in place. None if it
    has to begin anew, because theirs differ or are not understood.
    """
    states = [optimizer.states[key] for key in keys if key in optimizer.states]
    if not states:
        return {}
    scalars = [_scalars(state, reader) for state in states]
    if len(states) < len(keys) or not all(state.understood for state in states):
        return None
    if any(each.names != states[0].names for each in states) or any(
        each != scalars[0] for each in scalars
    ):
        return None
    found: dict[str, Node] = {}
    for moment in states[0].moments:
        beginning = optimizer.beginning(keys[0], moment.name)
        parts = [reader.describe(_named(state, moment.name)) for state in states]
        if beginning is None:
            return None
        tensor = change.make([part for part in parts if part is not None], beginning)
        if tensor is None or tensor.storage is None:
            return None
        found[moment.name] = build(PersistentId(None, tensor.storage), tensor)
    for name, node in _fields(states[0]):
        tensor = reader.describe(node)
        if tensor is not None and name not in found:
            found[name] = _own(name, tensor)
    return found


def _fields(state: ParameterState) -> list[tuple[str, Node]]:
    return [(name, v) for k, v in mapping_pairs(state.node) or [] if (name := text(k)) is not None]


def _named(state: ParameterState, name: str) -> Node:
    return next(moment.node for moment in state.moments if moment.name == name)


def _scalars(state: ParameterState, reader: TensorReader) -> dict[str, object]:
    """Return what a state holds beside its moments, by name."""
    moments = {moment.name for moment in state.moments}
    found: dict[str, object] = {}
    for name, node in _fields(state):
        if name not in moments:
            number = scalar(node, reader.describe(node))
            found[name] = text(node) if number is None else number
    return found


def _own(name: str, tensor: Tensor) -> Node:
    """Return a tensor of equal numbers in a storage of its own."""
    try:
        data = row_major(tensor)
    except ReadError as error:
        error.entry = name
        raise
    untyped = tensor.dtype.storage_class is None
    storage = Storage(name, tensor.dtype, tensor.device, data, untyped=untyped)
    alone = replace(tensor, storage=storage, offset=0, stride=contiguous_strides(tensor.shape))
    return build(PersistentId(None, storage), replace(alone, node=None))
