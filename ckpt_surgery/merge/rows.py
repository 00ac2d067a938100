"""Rows of embeddings, put into the order of another vocabulary, as mergekit 0.1.5 does it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.errors import MismatchError, PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.vocabularies import Vocabularies

ITSELF: Final = -1
"""What stands for the entry that a merge is put in the place of, among its inputs."""

_INDEXED: Final = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|embed_out|tok_embeddings|word_embeddings|wte|lm_head|embed"
    r"|shared|(?<!\.)output)\.(?:weight|bias)$"
)


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of a tensor: of each input in `inputs` as many, from its place in `starts`.

    Of several inputs their mean is taken, of none zeros. -1 is the entry itself.
    """

    count: int
    inputs: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()


def is_indexed(name: str) -> bool:
    """Return whether the rows of an entry are tokens, by its name."""
    return _INDEXED.search(name) is not None


def require_indexed(known: Vocabularies | None, names: Iterable[str], label: str) -> None:
    """Raise `MismatchError` if rows have to be moved, and no entry is known to have them."""
    if known is not None and not known.are_one and not any(map(is_indexed, names)):
        raise MismatchError(
            "the models have several vocabularies, and no entry is called like an embedding",
            path=label,
            hint="rename it, to 'embed_tokens.weight' say, or give the models one tokenizer",
        )


def rows_of(
    wanted: Sequence[str],
    places: Sequence[int],
    vocabularies: Sequence[Mapping[str, int]],
    base: int | None,
) -> list[tuple[Rows, ...]]:
    """Return for each vocabulary the rows that its tensor has in the order of the tokens `wanted`.

    A token that a vocabulary lacks takes the row of the base's (`base` is its place among the
    others), else of the only one that has it, else the mean of those that have it. `places` are
    what `Rows` calls the tensors.
    """
    made: list[list[Rows]] = [[] for _ in vocabularies]
    for token in wanted:
        have = [number for number, each in enumerate(vocabularies) if token in each]
        donors = [base] if base is not None and base in have else have
        for number, runs in enumerate(made):
            chosen = [number] if number in have else donors
            inputs = tuple(places[each] for each in chosen)
            starts = tuple(vocabularies[each][token] for each in chosen)
            last = runs[-1] if runs else None
            if (
                last is not None
                and last.inputs == inputs
                and all(s == b + last.count for s, b in zip(starts, last.starts, strict=True))
            ):
                runs[-1] = Rows(last.count + 1, inputs, last.starts)
            else:
                runs.append(Rows(1, inputs, starts))
    return [tuple(runs) for runs in made]


def gathered(own: Tensor, tensors: Sequence[Tensor], like: Tensor, rows: Sequence[Rows]) -> Tensor:
    """Return `like`, of which each row is one of `own` (-1) or of `tensors`; made when written.

    Raises `PlanError` for rows that are not there.
    """
    count = sum(each.count for each in rows)
    for each in rows:
        for place, start in zip(each.inputs, each.starts, strict=True):
            if not ITSELF <= place < len(tensors):
                raise PlanError(f"there is no input {place} that rows could be taken of")
            tensor = own if place == ITSELF else tensors[place]
            if not tensor.shape or tensor.shape[1:] != like.shape[1:]:
                raise PlanError(f"rows of {list(tensor.shape)} do not fit {list(like.shape)}")
            if start < 0 or start + each.count > tensor.shape[0]:
                raise PlanError(f"there are no rows {start} to {start + each.count}")
    shape = (count, *like.shape[1:])
    nbytes = sum(tensor.nbytes for tensor in (own, *tensors))
    return computed_tensor(
        shape,
        like.dtype,
        partial(_gathered, own, tuple(tensors), shape, like, tuple(rows)),
        workspace=2 * nbytes,
        big_endian=like.storage is not None and like.storage.big_endian,
        made_of=(own, *tensors),
    )


def _gathered(
    own: Tensor,
    tensors: tuple[Tensor, ...],
    shape: tuple[int, ...],
    like: Tensor,
    rows: tuple[Rows, ...],
) -> Any:
    import torch

    from ckpt_surgery.compute.casting import torch_dtype
    from ckpt_surgery.compute.elements import load_elements

    loaded: dict[int, Any] = {}
    for place in {place for each in rows for place in each.inputs}:
        tensor = own if place == ITSELF else tensors[place]
        elements = load_elements(tensor)
        if elements is None:
            raise TypeError(tensor.dtype)
        loaded[place] = elements.reshape(tensor.shape)
    made = torch.zeros(shape, dtype=torch_dtype(like.dtype))
    at = 0
    for each in rows:
        block = made[at : at + each.count]
        parts = [
            loaded[place][start : start + each.count]
            for place, start in zip(each.inputs, each.starts, strict=True)
        ]
        if len(parts) == 1:
            block.copy_(parts[0])
        elif parts:
            block.copy_(torch.stack([part.double() for part in parts]).mean(0))
        at += each.count
    return made
