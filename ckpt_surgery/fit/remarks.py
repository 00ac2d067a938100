"""What to know about a plan to fit: what may not be meant although it is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.names.fold import fold_names

_MOST_FOLDED: Final = 2000  # names
_MOST_SHOWN: Final = 8
_MOST_COLORS: Final = 4  # channels of an image, as far as a layer is taken for an input layer


def tie_notes(
    items: Sequence[FitItem], by_target: Mapping[str, str], one_tensor: Mapping[str, str]
) -> Iterator[str]:
    """Say of tensors that are one in the target, and were several in the checkpoint, which it is.

    `one_tensor` has a name for every tied tensor of the checkpoint, the same for all that are one.
    """
    for item in items:
        own, taken = by_target.get(item.name), item.source
        if own and taken and one_tensor.get(own, own) != one_tensor.get(taken, taken):
            yield (
                f"'{item.name}' is tied in the target: '{taken}' of the checkpoint is taken "
                f"for it, not '{own}'"
            )


def mark_suspects(items: Sequence[FitItem]) -> list[FitItem]:
    """Return the items, those marked that are square in one module with what looks transposed."""
    containers = {c for item in items if item.looks_transposed for c in _containers(item.name)}
    return [replace(i, is_suspect=_is_suspect(i, containers)) if containers else i for i in items]


def _is_suspect(item: FitItem, containers: set[str]) -> bool:
    is_square = len(item.shape) == 2 and item.shape[0] == item.shape[1] > 1
    if item.status not in ("copied", "cast") or not is_square:
        return False
    return any(container in containers for container in _containers(item.name))


def _containers(name: str) -> tuple[str, str]:
    """Return the module that owns a tensor, and the one above it,
    whose children are of one kind.
    """
    module = name.rpartition(".")[0]
    return module, module.rpartition(".")[0]


def grid_notes(items: Iterable[FitItem]) -> Iterator[str]:
    """Say how positions on a grid that is not square are interpolated."""
    lying = [item.name for item in items if item.may_lie_on_a_grid]
    if lying:
        yield (
            f"{_folded(lying)} may lie on a grid that is not square: --adapt interpolate with "
            "--grid HEIGHTxWIDTH carries "
            + ("it over" if len(lying) == 1 else "them over")
            + ", if as many class tokens stand before both"
        )


def suspect_notes(items: Sequence[FitItem]) -> Iterator[str]:
    """Name what is copied although it may be transposed: no shape can tell."""
    suspects = [item.name for item in items if item.is_suspect]
    if suspects:
        yield (
            "copied as they are, though square and in one module with what looks transposed: "
            + _folded(suspects)
        )


def _folded(names: Sequence[str]) -> str:
    if len(names) > _MOST_FOLDED:
        shown = [f"'{name}'" for name in names[:_MOST_SHOWN]]
        left = len(names) - len(shown)
    else:
        folds = fold_names(names)
        shown = [f"'{fold.pattern}'" for fold in folds[:_MOST_SHOWN]]
        left = sum(fold.count for fold in folds[_MOST_SHOWN:])
    return ", ".join(shown) + (f" and {left:,} more" if left else "")


def input_notes(items: Iterable[FitItem]) -> Iterator[str]:
    """Say how an input layer that takes initial values would keep the filters that it has."""
    kernels = (item for item in items if 3 <= len(item.shape) <= 5)
    for place, item in enumerate(kernels):
        shape, is_asked_for = item.source_shape, item.fill is not None and item.fill.prefix
        if "channels" not in item.would_adapt or shape is None or is_asked_for:
            continue
        if place and min(shape[1], item.shape[1]) > _MOST_COLORS:
            continue
        layer = item.name.removesuffix(".weight")
        more = item.shape[1] > shape[1]
        ways = ("first", "zero") if more else ("mean", "repeat")
        count = f"{item.shape[1]} input channel{'s' * (item.shape[1] != 1)}"
        yield (
            f"'{item.name}' loses its filters, since it has {count} instead of {shape[1]}: "
            f"--fill {layer}={ways[0]} or {ways[1]} "
            + ("keeps those of the old ones" if more else "makes the new ones of the old")
        )
