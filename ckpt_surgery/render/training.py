"""Training state in a few words: what stands behind an entry's name in the footer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ckpt_surgery.render.text import count, printable

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import (
        AverageFacts,
        OptimizerChange,
        OptimizerFacts,
        SchedulerFacts,
        TrainingFacts,
    )

_MOST: Final = 4  # of one kind
_MOST_BITS: Final = 1000  # of an integer that can be shown as a floating-point number
_CERTAINTY: Final = {
    "stored": "by stored names",
    "order": "by order and shapes",
    "partial": "only in part",
    "none": "of unknown parameters",
}


_KINDS: Final = {
    "optimizer": "optimizer state of another form",
    "scheduler": "scheduler of another form",
    "loops": "progress of the training",
    "rng": "random number generators",
    "log": "log of the training",
}


def training_lines(facts: TrainingFacts, most: int = _MOST) -> Iterator[str]:
    """Yield the facts, to be joined by commas, at most `most` of a
    kind; the kind if there are none.
    """
    lines = list(_lines(facts, most))
    yield from lines or ([_KINDS[facts.kind]] if facts.kind in _KINDS else [])


def _lines(facts: TrainingFacts, most: int) -> Iterator[str]:
    for optimizer in facts.optimizers[:most]:
        yield from _optimizer(optimizer, most)
    if len(facts.optimizers) > most:
        yield f"… and {len(facts.optimizers) - most:,} more optimizers"
    if facts.schedulers:
        yield from _schedulers(facts.schedulers, most)
    if facts.scaler is not None:
        yield f"scale {_number(facts.scaler.scale)}"
    yield from (printable(name.partition("{")[0]) for name in facts.callbacks[:most])


def average_line(facts: AverageFacts) -> str:
    """Return which weights are averaged where, who writes it so, and how often it was updated."""
    where = printable(facts.path) or "(top level)"
    model = None if facts.model is None else printable(facts.model) or "(top level)"
    if facts.swapped:
        what = f"{where} holds the average, {model} the weights in training"
    elif facts.place == "inside":
        what = f"{where} also holds an average"
    else:
        what = f"{where} averages {model}" if model is not None else f"{where} is an average"
    counts = [
        f"{printable(name)} {_number(value)}"
        for name, value in facts.counters.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join([f"{what} ({facts.title})" if facts.title else what, *counts[:_MOST]])


def optimizer_lines(changes: Iterable[OptimizerChange]) -> Iterator[str]:
    """Yield what became of the optimizers that follow their model;
    the others are in the warnings.
    """
    for change in changes:
        if change.action == "updated":
            yield f"optimizer in '{printable(change.path)}' kept in step: {_change(change)}"


def _change(change: OptimizerChange) -> str:
    """Return what happened to the state of parameters: ``2 states removed, 60 names changed``."""
    facts = [
        f"{count(len(names), 'parameter')} {what}"
        for what, names in (
            ("removed", change.removed),
            ("added", change.added),
            ("reset", change.reset),
            ("resized", change.resized),
        )
        if names
    ]
    if change.renamed:
        facts.append(f"{count(change.renamed, 'stored name')} changed")
    groups = sorted(set(change.added_groups))
    if groups:
        joined = count(len(groups), "group").partition(" ")[2]
        facts.append(f"new ones in {joined} {' and '.join(map(str, groups))}")
    return ", ".join(facts) or "reordered"


def _optimizer(facts: OptimizerFacts, most: int) -> Iterator[str]:
    if facts.layout != "unknown":
        yield facts.layout
    yield count(len(facts.groups), "group")
    if facts.learning_rates:
        yield f"lr {_numbers(facts.learning_rates, most)}"
    if facts.steps:
        yield f"step {' to '.join(map(_number, facts.steps))}"
    yield f"{count(facts.states, 'state')} {_CERTAINTY[facts.certainty]}"


def _schedulers(schedulers: Sequence[SchedulerFacts], most: int) -> Iterator[str]:
    yield count(len(schedulers), "scheduler")
    first = schedulers[0]
    if first.last_epoch is not None:
        yield f"epoch {_number(first.last_epoch)}"
    if first.last_lr:
        yield f"lr {_numbers(first.last_lr, most)}"


def _numbers(values: Sequence[float], most: int) -> str:
    shown = " ".join(map(_number, values[:most]))
    return f"{shown} …" if len(values) > most else shown


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    huge = isinstance(value, int) and value.bit_length() > _MOST_BITS
    return "huge" if huge else f"{value:.6g}"
