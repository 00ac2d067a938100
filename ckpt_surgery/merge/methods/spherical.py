"""Arcs between directions: of two files by rows or whole, and of any number."""

from __future__ import annotations

import math
from math import prod
from typing import TYPE_CHECKING, ClassVar

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.gram import Matrix, gram, norm, product, unit
from ckpt_surgery.merge.inputs import Inputs, Piece
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.parameters import MethodParameter, Settings
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from torch import Tensor

_NO_SUM = 1e-6
_COLLINEAR = 1e-16  # of 1 - cos²
_SHORT = 1e-7


def _added(piece: Piece, coefficients: tuple[float, ...] | list[float], based: bool) -> Tensor:
    """``Σ cᵢxᵢ``, or ``b + Σ cᵢ(xᵢ - b)``."""
    if not based:
        return elementwise.combination(piece.tensors, coefficients)
    rest = 1 - math.fsum(coefficients)
    return elementwise.combination((*piece.tensors, piece.origin), (*coefficients, rest))


@dataclass(frozen=True, slots=True)
class _Rows:
    """A pair of coefficients for each row; `size` elements are one, or every `size`-th is of it."""

    first: Tensor
    second: Tensor
    size: int
    across: bool

    def of(self, coefficients: Tensor, start: int, stop: int) -> Tensor:
        """Return the coefficients of the elements from `start` to `stop`."""
        return coefficients[_rows(start, stop, self.size, across=self.across)]


def _rows(start: int, stop: int, size: int, *, across: bool) -> Tensor:
    import torch

    places = torch.arange(start, stop)
    return places % size if across else places.div(size, rounding_mode="floor")


class _NuSlerp(Method):
    """What both forms of nuslerp have in common."""

    weighted = True
    min_inputs = 2
    max_inputs = 2
    mergekit = "nuslerp"
    parameters = (
        MethodParameter("flatten", "bool", "one angle for the whole tensor", True),
        MethodParameter("row_wise", "bool", "angles over the first axis, not the last", False),
    )

    def scope(self, settings: Settings) -> Scope:
        return Scope.SUMS if settings.flag("flatten") else Scope.TENSOR

    def working_nbytes(self, shape: tuple[int, ...], inputs: int) -> int:  # noqa: ARG002
        return 8 * 8 * max(prod(shape[:-1]), prod(shape[1:]), 1)

    def measure(self, inputs: Inputs) -> tuple[float, float] | _Rows:
        first, second = inputs.settings.weights
        total = first + second
        t = 0.5 if abs(total) < _NO_SUM else second / total
        if not inputs.settings.flag("flatten") and inputs.shape:
            return self._by_rows(inputs, t)
        matrix = gram(inputs, origin=-1 if self.needs_base else None)
        norms = [max(math.sqrt(matrix[i][i]), _SHORT) for i in range(2)]
        cosine = max(-1.0, min(1.0, matrix[0][1] / norms[0] / norms[1]))
        if 1 - cosine**2 <= _COLLINEAR:
            return (1 - t, t)
        theta = math.acos(cosine)
        return (math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta))

    def _by_rows(self, inputs: Inputs, t: float) -> _Rows:
        import torch

        across = inputs.settings.flag("row_wise")
        shape = inputs.shape
        size = prod(shape[1:]) if across else shape[-1]
        count = size if across else prod(shape[:-1])
        sums = torch.zeros(3, count, dtype=torch.float64)
        for piece in inputs.pieces():
            vectors = [tensor.double() for tensor in piece.tensors]
            if self.needs_base:
                vectors = [vector - piece.origin.double() for vector in vectors]
            where = _rows(piece.start, piece.stop, size, across=across)
            pairs = ((0, 0), (1, 1), (0, 1))
            for row, (i, j) in enumerate(pairs):
                sums[row].index_add_(0, where, vectors[i] * vectors[j])
        norms = sums[:2].sqrt().clamp_(min=_SHORT)
        cosine = (sums[2] / norms[0] / norms[1]).clamp_(-1, 1)
        straight = 1 - cosine.square() <= _COLLINEAR
        theta = torch.where(straight, 0.0, cosine).acos()
        first = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / torch.sin(theta))
        second = torch.where(straight, t, torch.sin(t * theta) / torch.sin(theta))
        return _Rows(first, second, size, across)

    def combine(self, piece: Piece) -> Tensor:
        found = piece.measured
        if not isinstance(found, _Rows):
            return _added(piece, found, self.needs_base)
        first, second = (
            found.of(each, piece.start, piece.stop).to(piece.work)
            for each in (found.first, found.second)
        )
        result = piece.tensors[0] * first
        result += piece.tensors[1] * second
        if self.needs_base:
            result += piece.origin * (1 - first - second)
        return result


class NuSlerp(_NuSlerp, name="nuslerp"):
    """A point on the arc between two files: at the second's share of the weights.

    ``x = (sin((1-t)θ)·x₁ + sin(tθ)·x₂)/sin θ`` with ``t = w₂/(w₁+w₂)`` and θ the angle between the
    whole tensors, or with `flatten` false between their last axes (`row_wise`: their first). Where
    they are parallel it is the line. As in mergekit 0.1.5, `nuslerp.py`; Shoemake, SIGGRAPH 1985.
    """

    summary = "a point on the arc between two files, at the second's share of the weights"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"


class NuSlerpDelta(_NuSlerp, name="nuslerp-delta"):
    """The base plus `NuSlerp` of what the two files add to it.

    As in mergekit 0.1.5, `nuslerp.py` (arXiv:2403.13257).
    """

    summary = "the base plus a point on the arc between what two files add to it"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"
    needs_base = True


class _MultiSlerp(Method):
    """What both forms of multislerp have in common."""

    weighted = True
    needs: ClassVar[Scope] = Scope.SUMS
    mergekit = "multislerp"
    parameters = (
        MethodParameter("normalize_weights", "bool", "divide by the sum of the weights", True),
        MethodParameter("eps", "float", "what is no length", 1e-8, low=0, low_open=True),
    )

    def check(self, settings: Settings) -> None:
        if settings.flag("normalize_weights") and not math.fsum(settings.weights):
            raise UsageError(f"the weights of '{self.name}' sum up to 0")

    def measure(self, inputs: Inputs) -> list[float]:
        settings = inputs.settings
        if inputs.count == 1:
            return [1.0]
        weights = settings.weights
        if settings.flag("normalize_weights"):
            weights = elementwise.normalized(weights)
        matrix = gram(inputs, origin=-1 if self.needs_base else None)
        found = _barycentre(matrix, weights, settings.number("eps"))
        if found is None:
            raise UsageError(
                f"the directions of '{inputs.name}' cancel each other out",
                entry=inputs.name,
                hint="give the files other weights",
            )
        return found

    def combine(self, piece: Piece) -> Tensor:
        return _added(piece, piece.measured, self.needs_base and len(piece.measured) > 1)


def _barycentre(matrix: Matrix, weights: tuple[float, ...], eps: float) -> list[float] | None:
    """Return coefficients of the vectors; None if their mean has no direction."""
    n = len(matrix)
    norms = [math.sqrt(matrix[i][i]) for i in range(n)]
    scales = [1 / (length + eps) for length in norms]
    mean = [w * scale for w, scale in zip(weights, scales, strict=True)]
    length = norm(matrix, mean)
    if length < eps:
        return list(weights) if n == 2 or not any(norms) else None
    mean = [c / length for c in mean]
    dots = [product(matrix, unit(n, i), mean) * scales[i] for i in range(n)]
    tangent = [w * scale for w, scale in zip(weights, scales, strict=True)]
    along = math.fsum(w * dot for w, dot in zip(weights, dots, strict=True))
    tangent = [c - along * m for c, m in zip(tangent, mean, strict=True)]
    angle = norm(matrix, tangent) + eps
    radius = math.fsum(w * each for w, each in zip(weights, norms, strict=True))
    turn = math.sin(angle) / angle
    return [radius * (m * math.cos(angle) + c * turn) for m, c in zip(mean, tangent, strict=True)]


class MultiSlerp(_MultiSlerp, name="multislerp"):
    """A weighted point between directions on the sphere, at the weighted mean of the norms.

    One step of `Karcher` from the weighted mean: into the tangent space there, and back. As in
    mergekit 0.1.5 (arXiv:2403.13257), `multislerp.py`;
    goddard.blog/posts/multislerp-wow-what-a-cool-idea.
    """

    summary = "a weighted point between directions of any number of files"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"


class MultiSlerpDelta(_MultiSlerp, name="multislerp-delta"):
    """The base plus `MultiSlerp` of what the files add to it.

    As in mergekit 0.1.5, `multislerp.py` (arXiv:2403.13257).
    """

    summary = "the base plus a weighted point between directions of what files add to it"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"
    needs_base = True
