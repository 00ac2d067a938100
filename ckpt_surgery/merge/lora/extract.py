"""The difference of two models as an adapter of the first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import StateDict, Tensor
from ckpt_surgery.checkpoint.select import select
from ckpt_surgery.errors import MismatchError, NonFiniteError, UsageError
from ckpt_surgery.fileio.parallel import shown
from ckpt_surgery.merge.lora.layers import Layer
from ckpt_surgery.names import Selection

if TYPE_CHECKING:
    import torch

    from ckpt_surgery.writing.output import ProgressBar

_WEIGHT: Final = ".weight"
# What embeddings are called in transformers, timm, fairseq and by hand.
_EMBEDDING: Final = re.compile(
    r"(?:^|\.)(?:\w*embed(?:s|ding|dings|_tokens|_positions)?|wte|wpe|shared)\.weight$",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Extraction:
    """The layers of the adapter, and entries that differ and are not in it, by how much.

    That is the length of the difference through that of the tuned entry.
    """

    layers: list[Layer] = field(default_factory=list)
    left_out: list[tuple[str, float]] = field(default_factory=list)


def extract(
    base: StateDict,
    tuned: StateDict,
    rank: int,
    selection: Selection,
    *,
    fan_in_fan_out: bool = False,
    progress: ProgressBar | None = None,
) -> Extraction:
    """Return factors of `rank` of every matrix and kernel that differs.

    `selection` narrows them. With `fan_in_fan_out` matrices have their inputs first. Reads a pair
    at a time, and shows bytes of `base` that are done.

    Raises `MismatchError` for names or shapes that differ, and `UsageError` if nothing is left.
    """
    own, theirs = dict(base.tensors), dict(tuned.tensors)
    missing = [name for name in own if name not in theirs]
    more = [name for name in theirs if name not in own]
    if missing or more:
        which, where = (missing[0], "the tuned model") if missing else (more[0], "the base")
        raise MismatchError(
            f"'{which}' is not in {where}",
            hint="'ckpt match FILE --like OTHER' shows how names differ",
        )
    chosen = None
    if selection.rules:
        (found,), _ = select([base], selection)
        chosen = found.chosen
    result = Extraction()
    with shown(progress, sum(tensor.nbytes for tensor in own.values())) as tally:
        for name, before, after in _pairs(own, theirs):
            difference = after - before
            length = float(difference.norm())
            wanted = chosen is None or name in chosen
            if length and wanted and name.endswith(_WEIGHT) and difference.dim() > 1:
                result.layers.append(_layer(name, difference, rank, swapped=fan_in_fan_out))
            elif length:
                result.left_out.append((name, length / (float(after.norm()) or 1.0)))
            tally(own[name].nbytes)
    if not result.layers:
        raise UsageError("no matrix differs that could be extracted")
    return result


def _pairs(
    own: dict[str, Tensor], theirs: dict[str, Tensor]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the floating tensors of both in float64, one name at a time."""
    import torch

    from ckpt_surgery.compute.elements import load_elements

    for name, tensor in own.items():
        other = theirs[name]
        if tensor.shape != other.shape:
            raise MismatchError(
                f"'{name}' has the shapes {list(tensor.shape)} and {list(other.shape)}", entry=name
            )
        if tensor.dtype.kind != "float" or other.dtype.kind != "float":
            continue
        loaded = [load_elements(each) for each in (tensor, other)]
        if any(each is None for each in loaded):
            continue
        before, after = (e.to(torch.float64).reshape(tensor.shape) for e in loaded if e is not None)
        if not bool((after - before).isfinite().all()):
            raise NonFiniteError(f"'{name}' holds NaN or infinity in one of the files", entry=name)
        yield name, before, after


def _layer(name: str, difference: torch.Tensor, rank: int, *, swapped: bool) -> Layer:
    from ckpt_surgery.merge.lora.factors import truncated

    module = name.removesuffix(_WEIGHT)
    embedding = difference.dim() == 2 and _EMBEDDING.search(name) is not None
    matrix = difference.flatten(1)
    if embedding or (swapped and difference.dim() == 2):
        matrix = matrix.T
    up, down, error = truncated(matrix, rank)
    if difference.dim() > 2:
        places = difference.shape[2:]
        up = up.reshape(*up.shape, *(1 for _ in places))
        down = down.reshape(down.shape[0], difference.shape[1], *places)
    return Layer(module, up, down, error, embedding)
