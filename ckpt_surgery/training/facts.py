"""What the training state in a checkpoint says: optimizers, schedulers, scalers, averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.pickles import Node
from ckpt_surgery.torch_objects.mappings import mapping_pairs, named_items
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.training_state import TrainingStates
from ckpt_surgery.training.averages import Average, find_averages
from ckpt_surgery.training.documents import (
    AverageFacts,
    GroupFacts,
    OptimizerFacts,
    ScalerFacts,
    SchedulerFacts,
    StateFacts,
    TrainingFacts,
)
from ckpt_surgery.training.optimizers import FoundOptimizer, ParameterGroup, find
from ckpt_surgery.training.optimizers.items import Items
from ckpt_surgery.training.optimizers.scalars import scalar

_MOST_VALUES = 64  # of a list of learning rates


def training_facts(checkpoint: Checkpoint) -> dict[str, TrainingFacts]:
    """Return what is known of the training state in the other entries, by their paths.

    Of tensors only step counts, learning rates and scales of one element are read.
    """
    reader, items, states = TensorReader(), Items(), TrainingStates()
    found: dict[str, list[FoundOptimizer]] = {}
    for optimizer in find(checkpoint, items):
        found.setdefault(optimizer.other.path, []).append(optimizer)
    facts: dict[str, TrainingFacts] = {}
    known: dict[int, TrainingFacts] = {}
    for other in checkpoint.others:
        if id(other.node) in known:  # one object in two places
            facts[other.path] = known[id(other.node)]
            continue
        kind, node = states.kind(other.path, other.node), other.node
        optimizers = found.get(other.path)
        if optimizers:
            each = tuple(_optimizer(optimizer, reader) for optimizer in optimizers)
            facts[other.path] = TrainingFacts(kind or "optimizers", optimizers=each)
        elif kind == "scheduler":
            facts[other.path] = TrainingFacts(
                kind, schedulers=(_scheduler(items.named(node), reader),)
            )
        elif kind == "schedulers" and isinstance(node, list):
            schedulers = tuple(_scheduler(items.named(item), reader) for item in items.listed(node))
            facts[other.path] = TrainingFacts(kind, schedulers=schedulers)
        elif kind == "scaler":
            facts[other.path] = TrainingFacts(kind, scaler=_scaler(items.named(node), reader))
        elif kind == "callbacks":
            facts[other.path] = TrainingFacts(kind, callbacks=tuple(items.named(node)))
        elif kind is not None:
            facts[other.path] = TrainingFacts(kind)
        if other.path in facts and other.node is not None:
            known[id(other.node)] = facts[other.path]
    return facts


def average_facts(checkpoint: Checkpoint) -> tuple[AverageFacts, ...]:
    """Return what is known of the moving averages; of tensors only their counters are read."""
    reader = TensorReader()
    return tuple(
        AverageFacts(
            title=average.title,
            path=average.path,
            place=average.place,
            model=average.model,
            wrapper=average.wrapper,
            swapped=average.swapped,
            counters=dict(_counters(checkpoint, average, reader)),
            follows=bool(average.names),
            reason=average.reason,
        )
        for average in find_averages(checkpoint)
    )


def _counters(
    checkpoint: Checkpoint, average: Average, reader: TensorReader
) -> Iterator[tuple[str, int | float | None]]:
    """Yield the numbers that an average keeps of itself, wherever they lie."""
    place = average.model if average.swapped else average.path
    for state_dict in checkpoint.state_dicts:
        for entry in state_dict.entries if state_dict.path == place else ():
            if entry.name in average.counters and average.place != "list":
                yield entry.name, _number(entry.node, reader)
    fields = mapping_pairs(average.node) if average.place == "list" else None
    for key, value in fields or ():
        name = text(key)
        if name in average.counters and (number := _number(value, reader)) is not None:
            yield name, number
    for other in checkpoint.others:
        if other.path in average.beside:
            inner = named_items(other.node) or {other.path.rpartition("/")[2]: other.node}
            for name, value in inner.items():
                yield name, _number(value, reader)


def _optimizer(found: FoundOptimizer, reader: TensorReader) -> OptimizerFacts:
    optimizer, correspondence = found.state, found.correspondence
    states: list[StateFacts] = []
    for position, group in enumerate(optimizer.groups):
        for key in group.keys:
            state = optimizer.states.get(key)
            step = None if state is None else _number(state.step, reader)
            tensors = () if state is None else tuple(m.name for m in state.moments)
            nbytes = 0 if state is None else state.nbytes
            name = correspondence.names.get(key)
            candidates = correspondence.candidates(key) if name is None else ()
            states.append(StateFacts(key, name, candidates, position, step, tensors, nbytes))
    return OptimizerFacts(
        path=found.path,
        layout=optimizer.layout,
        state_dicts=() if found.model is None else tuple(s.path for s in found.model.state_dicts),
        certainty=correspondence.certainty,
        reason=correspondence.reason,
        groups=tuple(GroupFacts(len(g.keys), _options(g, reader)) for g in optimizer.groups),
        parameters=tuple(states),
        states=len(optimizer.states),
        nbytes=optimizer.nbytes,
    )


def _options(group: ParameterGroup, reader: TensorReader) -> Mapping[str, Any]:
    """Return the options of a group that are plain, a pair, or a tensor of one element."""
    options: dict[str, Any] = dict(group.options)
    for name, value in group.fields.items():
        if name in options:
            continue
        if isinstance(value, list | tuple):
            numbers = _numbers(value, reader)
            if numbers:
                options[name] = numbers
        elif (number := _number(value, reader)) is not None:
            options[name] = number
    return options


def _scheduler(fields: Mapping[str, Node], reader: TensorReader) -> SchedulerFacts:
    inner = fields.get("_schedulers")
    rates = fields.get("_last_lr")
    return SchedulerFacts(
        last_epoch=_number(fields.get("last_epoch"), reader),
        last_lr=_numbers(rates, reader) if isinstance(rates, list | tuple) else (),
        inner=len(inner) if isinstance(inner, list) else 0,
    )


def _scaler(fields: Mapping[str, Node], reader: TensorReader) -> ScalerFacts:
    return ScalerFacts(
        _number(fields.get("scale"), reader), _number(fields.get("_growth_tracker"), reader)
    )


def _number(node: Node, reader: TensorReader) -> int | float | None:
    return scalar(node, reader.describe(node))


def _numbers(nodes: list[Node] | tuple[Node, ...], reader: TensorReader) -> tuple[float, ...]:
    """Return the numbers in a list; nothing if it holds anything
    else, or more than anybody would.
    """
    if len(nodes) > _MOST_VALUES:
        return ()
    values = [_number(node, reader) for node in nodes]
    if None in values:
        return ()
    return tuple(value for value in values if value is not None)
