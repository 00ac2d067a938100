"""Task vectors that are weighed by themselves: what differs most between the files counts most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.inputs import Inputs, Piece, steady_sum
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.parameters import MethodParameter, Settings
from ckpt_surgery.merge.sparsify import largest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Shares:
    """Which elements are selected (None: all), and the weight of each input."""

    mask: Tensor | None
    weights: list[float]


class Sce(Method, name="sce"):
    """Select, calculate and erase.

    Select: of the task vectors ``δᵢ = xᵢ - b`` the share `select_topk` of the elements (not
    counting those on which all files agree) with the largest variance between the files stays.
    Calculate: ``ηᵢ = Σ δᵢ² / Σⱼ Σ δⱼ²`` for each tensor. Erase: where a vector has not the sign of
    ``Σ δᵢ`` (zero: positive), its weight is 0. ``x = b + Σ ηᵢδᵢ / Σ ηᵢ``. Wan et al., "FuseChat:
    knowledge fusion of chat models", 2024, arXiv:2408.07990, section 3.3.
    """

    summary = "task vectors weighed by their size where the files differ most"
    citation = "Wan et al., FuseChat, 2024, arXiv:2408.07990"
    needs_base = True
    mergekit = "sce"
    parameters = (
        MethodParameter("select_topk", "float", "the share of elements that stays", 1.0, 0, 1),
    )

    def scope(self, settings: Settings) -> Scope:
        return Scope.SUMS if settings.number("select_topk") >= 1 else Scope.TENSOR

    def measure(self, inputs: Inputs) -> _Shares:
        share = inputs.settings.number("select_topk")
        mask = None if share >= 1 else _most_varied(inputs, share)
        squares = [0.0] * inputs.count
        for piece in inputs.pieces():
            for which, tensor in enumerate(piece.tensors):
                delta = tensor - piece.origin
                if mask is not None:
                    delta *= mask[piece.start : piece.stop]
                squares[which] += steady_sum(delta.double().square_())
        total = sum(squares)
        if total == 0:
            return _Shares(mask, [1 / inputs.count] * inputs.count)
        return _Shares(mask, [square / total for square in squares])

    def combine(self, piece: Piece) -> Tensor:
        found: _Shares = piece.measured
        deltas = [tensor - piece.origin for tensor in piece.tensors]
        if found.mask is not None:
            selected = found.mask[piece.start : piece.stop]
            deltas = [delta * selected for delta in deltas]
        total = deltas[0].clone()
        for delta in deltas[1:]:
            total += delta
        positive = total >= 0
        shares = [
            (delta > 0).where(positive, delta < 0).to(total.dtype) * weight
            for delta, weight in zip(deltas, found.weights, strict=True)
        ]
        divisor = total.zero_()
        for share in shares:
            divisor += share
        divisor.masked_fill_(divisor == 0, 1)
        return elementwise.from_base(
            piece.origin, piece.tensors, [share.div_(divisor) for share in shares]
        )


def _most_varied(inputs: Inputs, share: float) -> Tensor:
    """Return a mask of the elements whose task vectors vary most between the inputs."""
    whole = inputs.one(0, 0, min(1, inputs.numel)).new_empty(inputs.numel)
    for piece in inputs.pieces():
        deltas = [tensor - piece.origin for tensor in piece.tensors]
        middle = elementwise.mean(deltas, inputs.work)
        whole[piece.start : piece.stop] = elementwise.mean(
            [(delta - middle).square_() for delta in deltas], inputs.work
        )
    return largest(whole, int(int(whole.count_nonzero()) * share))
