"""What could be split into several tensors of a target, or joined to one, by names alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from ckpt_surgery.matching.fused_names import FAMILIES, INTERLEAVED, Family, Spelled, spelled
from ckpt_surgery.models.target import Shape, TensorSpec
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """One tensor and its parts: `sources` are the checkpoint's names, `made` what comes of them.

    `specs` describe what is made, with shapes as far as names tell: equal parts.
    """

    kind: Literal["split", "concat"]
    sources: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    is_interleaved: bool = False

    @property
    def made(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)


def regroupings(free: Sequence[TensorSpec], lost: Sequence[str]) -> Iterator[list[Group]]:
    """Yield groups of one spelling each, from what of a checkpoint has no use and what a target
    lacks.
    """
    have = [(spec, found) for spec in free if (found := spelled(spec.name)) is not None]
    want = [found for name in lost if (found := spelled(name)) is not None]
    tokens = {found.token for found in want}
    for family in FAMILIES:
        for parts in family.parts:
            if tokens.issuperset(parts):
                for separator in _separators(want, parts[0]):
                    yield list(_splits(have, family, parts, separator))
        for token in family.fused:
            if token in tokens:
                for separator in _separators(want, token):
                    yield list(_joins(have, family, token, separator))


def _separators(want: Sequence[Spelled], token: str) -> list[str]:
    return list(dict.fromkeys(each.separator for each in want if each.token == token))


def _splits(
    have: Sequence[tuple[TensorSpec, Spelled]],
    family: Family,
    parts: tuple[str, ...],
    separator: str,
) -> Iterator[Group]:
    for spec, name in have:
        if name.token in family.fused and spec.shape:
            shape = _part(spec.shape, len(parts))
            specs = tuple(
                TensorSpec(name.called(part, separator), shape, spec.dtype, spec.role, spec.layout)
                for part in parts
            )
            yield Group("split", (spec.name,), specs, name.token in INTERLEAVED)


def _joins(
    have: Sequence[tuple[TensorSpec, Spelled]], family: Family, token: str, separator: str
) -> Iterator[Group]:
    for parts in family.parts:
        found: dict[tuple[str, str, str], dict[str, TensorSpec]] = defaultdict(dict)
        example: dict[tuple[str, str, str], Spelled] = {}
        for spec, name in have:
            if name.token in parts and spec.shape:
                key = (name.prefix, name.separator, name.leaf)
                found[key][name.token] = spec
                example[key] = name
        for key, each in found.items():
            if len(each) < len(parts) or len({spec.dtype for spec in each.values()}) > 1:
                continue
            specs = [each[part] for part in parts]
            shape = (sum(spec.shape[0] for spec in specs), *specs[0].shape[1:])
            made = example[key].called(token, separator)
            first = specs[0]
            whole = TensorSpec(made, shape, first.dtype, first.role, first.layout)
            names = tuple(spec.name for spec in specs)
            yield Group("concat", names, (whole,), token in INTERLEAVED)


def _part(shape: Shape, count: int) -> Shape:
    """Return the shape of each of `count` parts, along the first axis that has as many."""
    axis = next((axis for axis, size in enumerate(shape) if size % count == 0), 0)
    return (*shape[:axis], shape[axis] // count, *shape[axis + 1 :])
