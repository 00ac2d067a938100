"""Aligning two lists of tensors in order, by shape: for networks whose names do not agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

from ckpt_surgery.errors import UsageError
from ckpt_surgery.models.target import Shape, TensorSpec
from ckpt_surgery.startup.lazy_dataclass import dataclass

_MAX_CELLS = 1_000_000
_WRITE_A_MAP = "write the pairs that you mean into a map and give it with --map"


class AmbiguousMatchError(UsageError):
    """More than one correspondence is equally good; the message lists the candidates."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Neighbouring tensors of one module, or at the top level; they are aligned as one."""

    name: str
    tensors: tuple[TensorSpec, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(spec.shape for spec in self.tensors)


def align_in_order(
    source: Sequence[TensorSpec],
    target: Sequence[TensorSpec],
    same: Callable[[str, str], bool] = str.__eq__,
) -> list[tuple[str, str]]:
    """Pairs (source, target) of the best alignment of layers in order, with equal shapes.

    The best one carries over the most tensors, and of those with as many the one in which the most
    names agree (`same`). Raises AmbiguousMatchError if two are equally good, UsageError if there
    are too many layers to compare.
    """
    ours, theirs = _layers(source), _layers(target)
    if len(ours) * len(theirs) > _MAX_CELLS:
        raise UsageError(
            f"{len(ours)} and {len(theirs)} layers are too many to align in order",
            hint="match by name, prefix or suffix, or write a map",
        )
    weights = _weights(ours, theirs, same)
    forward = _table(weights)
    backward = _table([row[::-1] for row in weights[::-1]])
    best = forward[-1][-1]
    optimal = [
        (i, j)
        for i, row in enumerate(weights)
        for j, weight in enumerate(row)
        if weight
        and forward[i][j] + weight + backward[len(ours) - 1 - i][len(theirs) - 1 - j] == best
    ]
    _refuse_ambiguous(optimal, ours, theirs)
    return [pair for i, j in optimal for pair in _pair_tensors(ours[i], theirs[j])]


def _layers(tensors: Sequence[TensorSpec]) -> list[_Layer]:
    groups = groupby(tensors, key=lambda spec: spec.name.rpartition(".")[0])
    layers = [(name, tuple(group)) for name, group in groups]
    return [_Layer(name or tensors[0].name, tensors) for name, tensors in layers]


def _weights(
    ours: Sequence[_Layer], theirs: Sequence[_Layer], same: Callable[[str, str], bool]
) -> list[list[int]]:
    """Return what aligning two layers is worth: tensors first, then names; 0 if shapes differ."""
    # no sum of names may outweigh one tensor
    tensor = 1 + sum(len(layer.tensors) for layer in ours)
    return [
        [
            len(a.tensors) * tensor
            + sum(same(x.name, y.name) for x, y in zip(a.tensors, b.tensors, strict=True))
            if a.shapes == b.shapes
            else 0
            for b in theirs
        ]
        for a in ours
    ]


def _table(weights: Sequence[Sequence[int]]) -> list[list[int]]:
    """``table[i][j]``: the best worth of the first `i` layers against the first `j`."""
    columns = len(weights[0]) if weights else 0
    table = [[0] * (columns + 1)]
    for row in weights:
        above = table[-1]
        line = [0]
        for j, weight in enumerate(row):
            best = max(above[j + 1], line[j])
            line.append(max(best, above[j] + weight) if weight else best)
        table.append(line)
    return table


def _refuse_ambiguous(
    optimal: Sequence[tuple[int, int]], ours: Sequence[_Layer], theirs: Sequence[_Layer]
) -> None:
    """`optimal` are all pairs of all best alignments: of a single one if they are in order."""
    for j in sorted({j for _, j in optimal}):
        candidates = [ours[i].name for i, other in optimal if other == j]
        if len(candidates) > 1:
            raise ambiguous(theirs[j].name, candidates)
    for i in sorted({i for i, _ in optimal}):
        candidates = [theirs[j].name for other, j in optimal if other == i]
        if len(candidates) > 1:
            raise ambiguous(ours[i].name, candidates)
    for (i, j), (after, crossing) in pairwise(optimal):
        if crossing < j:
            raise AmbiguousMatchError(
                f"'{ours[i].name}' as '{theirs[j].name}' and '{ours[after].name}' as "
                f"'{theirs[crossing].name}' are equally good, but not in the same order",
                hint=_WRITE_A_MAP,
            )


def ambiguous(name: str, candidates: Sequence[str]) -> AmbiguousMatchError:
    """Return the error that `name` could correspond to each of `candidates`."""
    shown = ", ".join(f"'{candidate}'" for candidate in candidates[:8])
    more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
    return AmbiguousMatchError(
        f"'{name}' could correspond to {shown}{more}",
        hint=_WRITE_A_MAP,
    )


def _pair_tensors(ours: _Layer, theirs: _Layer) -> list[tuple[str, str]]:
    leaves = {spec.name.rpartition(".")[2]: spec for spec in ours.tensors}
    wanted = [spec.name.rpartition(".")[2] for spec in theirs.tensors]
    if leaves.keys() == set(wanted):
        by_leaf = [(leaves[leaf], want) for leaf, want in zip(wanted, theirs.tensors, strict=True)]
        if all(have.shape == want.shape for have, want in by_leaf):
            return [(have.name, want.name) for have, want in by_leaf]
    return [(a.name, b.name) for a, b in zip(ours.tensors, theirs.tensors, strict=True)]
