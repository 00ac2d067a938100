"""Two models, and a place between them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.gram import gram
from ckpt_surgery.merge.inputs import Inputs, Piece
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.parameters import MethodParameter

if TYPE_CHECKING:
    from torch import Tensor

_BETWEEN = MethodParameter("t", "float", "0 is the first file, 1 the second", low=0, high=1)

_COLLINEAR = 0.9995
"""The cosine beyond which a great circle is taken for a line (mergekit's ``DOT_THRESHOLD``)."""
_TINY_NORM = 1e-8


class Lerp(Method, name="lerp"):
    """Linear interpolation: ``x = (1 - t)·x₁ + t·x₂``, at the ends exact.

    Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020,
    arXiv:1912.05671.
    """

    summary = "a point on the line between two files"
    citation = "Frankle et al., Linear mode connectivity, ICML 2020, arXiv:1912.05671"
    parameters = (_BETWEEN,)
    min_inputs = max_inputs = 2

    def combine(self, piece: Piece) -> Tensor:
        t = piece.settings.number("t")
        return elementwise.combination(piece.tensors, (1 - t, t))


class Slerp(Method, name="slerp"):
    """Spherical interpolation of a whole tensor as one vector, at the ends exact.

    ``x = sin((1 - t)θ)/sin θ · x₁ + sin(tθ)/sin θ · x₂`` with θ the angle between x₁ and x₂.
    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985. Vectors that are nearly
    collinear (|cos θ| > 0.9995) are interpolated linearly. The formula has no angle for a zero
    vector; as in mergekit, a norm of at most 1e-8 counts as 1, which makes it a right angle.
    """

    summary = "a point on the arc between two files, tensor by tensor"
    citation = "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985"
    parameters = (_BETWEEN,)
    min_inputs = max_inputs = 2
    mergekit = "slerp"
    needs = Scope.SUMS

    def measure(self, inputs: Inputs) -> tuple[float, float]:
        return _arc(gram(inputs), inputs.settings.number("t"))

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.combination(piece.tensors, piece.measured)


def _arc(matrix: list[list[float]], t: float) -> tuple[float, float]:
    """Return the coefficients of two vectors, by their Gram matrix,
    at `t` on the arc between them.
    """
    first, second = (math.sqrt(matrix[i][i]) for i in range(2))
    first = first if first > _TINY_NORM else 1.0
    second = second if second > _TINY_NORM else 1.0
    cosine = max(-1.0, min(1.0, matrix[0][1] / first / second))
    if abs(cosine) > _COLLINEAR or t in {0.0, 1.0}:
        return (1 - t, t)
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta))


class NearSwap(Method, name="nearswap"):
    """The base moves towards the other file, most where they already agree.

    ``x = (1 - w)·b + w·x₁`` with ``w = min(1, t / |x₁ - b|)`` for each element: within t of the
    base the other file's value is taken over as it is, elsewhere a step of length t.
    By alchemonaut, with the model QuartetAnemoi-70B-t0.0001 (2024).
    """

    summary = "the base, with a step of at most t towards the other file"
    citation = "alchemonaut, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    parameters = (MethodParameter("t", "float", "the longest step of an element", low=0),)
    needs_base = True
    max_inputs = 1
    mergekit = "nearswap"

    def combine(self, piece: Piece) -> Tensor:
        t = piece.settings.number("t")
        base, other = piece.origin, piece.tensors[0]
        distance = (other - base).abs_()
        # torch makes t / tensor the product with a reciprocal, which is infinite for a subnormal
        share = distance.new_tensor(t) / distance
        moved = base * (1 - share)
        moved += other * share
        return other.where(distance <= t, moved)
