"""Task vectors of which elements are chosen, and added as they are."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.inputs import Inputs, Piece
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.parameters import MethodParameter

if TYPE_CHECKING:
    from torch import Tensor

_NEVER_ZERO = 1e-8


class ArceeFusion(Method, name="arcee-fusion"):
    """The base, with the other file's elements where they matter most.

    An element's importance is ``|x - b|·KL(softmax(x) ‖ softmax(b))``, the divergence over its last
    axis; it is taken if that is at least the median plus 1.5 times the distance of the quartiles.
    As in mergekit 0.1.5 (arXiv:2403.13257), `arcee_fusion.py`, which draws a sample for the
    quartiles of more than a million elements; here they are those of all.
    """

    summary = "the base, with the other file's elements where they matter most"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"
    needs_base = True
    max_inputs = 1
    mergekit = "arcee_fusion"
    needs = Scope.TENSOR

    def working_nbytes(self, shape: tuple[int, ...], inputs: int) -> int:  # noqa: ARG002
        return 8 * 8 * prod(shape)

    def measure(self, inputs: Inputs) -> Tensor:
        base, other = (_whole(inputs, which).reshape(inputs.shape) for which in (-1, 0))
        importance = _importance(other, base).reshape(-1)
        if not importance.numel():
            return importance.bool()
        quartiles = [_smallest(importance, share) for share in (0.25, 0.5, 0.75)]
        first, middle, third = quartiles
        return importance >= middle + 1.5 * (third - first)

    def combine(self, piece: Piece) -> Tensor:
        taken = piece.measured[piece.start : piece.stop]
        return piece.tensors[0].where(taken, piece.origin)


def _whole(inputs: Inputs, which: int) -> Tensor:
    whole = inputs.one(which, 0, min(1, inputs.numel)).new_empty(inputs.numel)
    for start, stop in inputs.spans():
        whole[start:stop] = inputs.one(which, start, stop)
    return whole


def _importance(other: Tensor, base: Tensor) -> Tensor:
    p = other.softmax(-1) + _NEVER_ZERO
    q = base.softmax(-1) + _NEVER_ZERO
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    return (other - base).abs() * divergence


def _smallest(values: Tensor, share: float) -> Tensor:
    """Return the element below which this share of all others is."""
    # the place is found in float32, as there
    import torch

    place = int((torch.tensor(share) * (values.numel() - 1)).long())
    return values.kthvalue(place + 1).values


class Ram(Method, name="ram"):
    """The base plus task vectors, averaged over the files that change an element.

    ``x = b + Σ δᵢ/k`` over the k files with ``|δᵢ| > ε`` there. Reinforced Agent Merging, 2026,
    arXiv:2601.13572.
    """

    summary = "the base plus each element's mean over the files that change it"
    citation = "Reinforced Agent Merging, 2026, arXiv:2601.13572"
    needs_base = True
    mergekit = "ram"
    parameters = (
        MethodParameter("epsilon", "float", "what is no change of an element", 1e-5, low=0),
    )

    def combine(self, piece: Piece) -> Tensor:
        return _ram(piece, piece.settings.number("epsilon"), [1.0] * len(piece.tensors))


class RamPlus(Method, name="ramplus-tl"):
    """`Ram`, with more of what only one file changes the more it shares with others.

    What only file i changes is multiplied by ``1 + r·min(ρᵢ, α)``, ρᵢ being the number of its
    elements that others change, too, through that of those that it changes alone, for each tensor.
    Reinforced Agent Merging, 2026, arXiv:2601.13572.
    """

    summary = "like ram, with more of what one file alone changes"
    citation = "Reinforced Agent Merging, 2026, arXiv:2601.13572"
    needs_base = True
    mergekit = "ramplus_tl"
    needs = Scope.SUMS
    parameters = (
        MethodParameter("r", "float", "how much more", 0.1),
        MethodParameter("alpha", "float", "the most that the ratio counts", 0.2, low=0),
        MethodParameter(
            "epsilon", "float", "what is no change of an element", 1e-5, low=0, low_open=True
        ),
    )

    def measure(self, inputs: Inputs) -> list[float]:
        settings = inputs.settings
        epsilon = settings.number("epsilon")
        shared, alone = [0] * inputs.count, [0] * inputs.count
        for piece in inputs.pieces():
            changed = [(tensor - piece.origin).abs() > epsilon for tensor in piece.tensors]
            counts = sum((each.int() for each in changed[1:]), changed[0].int())
            for which, each in enumerate(changed):
                shared[which] += int((each & (counts > 1)).sum())
                alone[which] += int((each & (counts == 1)).sum())
        ratios = [s / max(a, epsilon) for s, a in zip(shared, alone, strict=True)]
        alpha = settings.number("alpha")
        return [1 + settings.number("r") * min(ratio, alpha) for ratio in ratios]

    def combine(self, piece: Piece) -> Tensor:
        return _ram(piece, piece.settings.number("epsilon"), piece.measured)


def _ram(piece: Piece, epsilon: float, factors: list[float]) -> Tensor:
    deltas = [tensor - piece.origin for tensor in piece.tensors]
    changed = [delta.abs() > epsilon for delta in deltas]
    counts = changed[0].to(piece.work)
    for each in changed[1:]:
        counts += each
    shares = [
        each.to(piece.work) * (counts == 1).to(piece.work).mul_(factor - 1).add_(1)
        for each, factor in zip(changed, factors, strict=True)
    ]
    divisor = counts.clamp(min=1)
    return elementwise.from_base(
        piece.origin, piece.tensors, [share.div_(divisor) for share in shares]
    )
