"""Points that are found from angles and distances between whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.gram import Matrix, gram, norm, product, unit
from ckpt_surgery.merge.inputs import Inputs, Piece
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.methods.averages import require_sum
from ckpt_surgery.merge.parameters import MethodParameter, Settings

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-9  # what sums over a tensor may be off by, relatively


class ModelStock(Method, name="model-stock"):
    """Between the base and the mean of the others, as far as their angle says.

    ``x = t·mean(xᵢ) + (1 - t)·b`` with ``t = n·cos θ / (1 + (n - 1)·cos θ)`` and cos θ the mean
    cosine between pairs of ``xᵢ - b``, for each tensor. Jang, Yun and Han, "Model Stock: all we
    need is just a few fine-tuned models", ECCV 2024, arXiv:2403.19522, equation (4). Where the
    denominator vanishes the base stays. An input that equals the base has cosine 0 with all others.
    """

    summary = "between the base and the mean, as far as the angles between the others say"
    citation = "Jang et al., Model Stock, ECCV 2024, arXiv:2403.19522"
    needs_base = True
    min_inputs = 2
    mergekit = "model_stock"
    needs = Scope.SUMS

    def measure(self, inputs: Inputs) -> float:
        return _stock_ratio(gram(inputs, origin=-1))

    def combine(self, piece: Piece) -> Tensor:
        middle = elementwise.mean(piece.raw, piece.work)
        return elementwise.combination((middle, piece.origin), (piece.measured, 1 - piece.measured))


def _stock_ratio(matrix: Matrix) -> float:
    """Model Stock's t from the Gram matrix of the offsets from the base."""
    n = len(matrix)
    norms = [math.sqrt(matrix[i][i]) for i in range(n)]
    cosines = []
    for i in range(n):
        for j in range(i + 1, n):
            scale = norms[i] * norms[j]
            cosines.append(max(-1.0, min(1.0, matrix[i][j] / scale)) if scale > 0 else 0.0)
    cosine = math.fsum(cosines) / len(cosines)
    denominator = 1 + (n - 1) * cosine
    return 0.0 if abs(denominator) < 1e-6 else n * cosine / denominator


class Karcher(Method, name="karcher"):
    """The Riemannian centre of mass on the sphere, at the weighted mean of the norms.

    With ``uᵢ = xᵢ/‖xᵢ‖`` and weights αᵢ that sum to 1, iterate from the normalised mean
    ``v = Σ αᵢ·(θᵢ/sin θᵢ)·(uᵢ - cos θᵢ·m)``, ``m ← cos‖v‖·m + sin‖v‖·v/‖v‖`` until ‖v‖ < `tol`;
    the result is ``(Σ αᵢ‖xᵢ‖)·m``. Karcher, "Riemannian center of mass and mollifier smoothing",
    CPAM 30 (1977); for models Wang et al., arXiv:2603.04972. A zero tensor has no direction and
    counts in the norm only; an input opposite to m has no logarithm and waits for the next step.
    """

    summary = "the centre of mass on the sphere, tensor by tensor"
    citation = "Wang et al., LLM merging on the Fisher-Rao manifold, 2026, arXiv:2603.04972"
    weighted = True
    mergekit = "karcher"
    needs = Scope.SUMS
    parameters = (
        MethodParameter("max_iter", "int", "iterations at most", 10, low=1),
        MethodParameter("tol", "float", "the step that ends the iteration", 1e-5, low=0),
    )

    def check(self, settings: Settings) -> None:
        _require_positive(settings.weights, self.name)

    def measure(self, inputs: Inputs) -> list[float]:
        if inputs.count == 1:
            return [1.0]
        return _centre_of_mass(
            gram(inputs),
            elementwise.normalized(inputs.settings.weights),
            int(inputs.settings.number("max_iter")),
            inputs.settings.number("tol"),
        )

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.combination(piece.tensors, piece.measured)


def _centre_of_mass(
    matrix: Matrix, weights: Sequence[float], max_iter: int, tol: float
) -> list[float]:
    """Return the Karcher mean's coefficients, from the Gram matrix of the vectors."""
    n = len(matrix)
    norms = [math.sqrt(matrix[i][i]) for i in range(n)]
    valid = [i for i in range(n) if norms[i] > 0 and weights[i] > 0]
    if not valid:
        return [0.0] * n
    cosines = [
        [max(-1.0, min(1.0, matrix[i][j] / norms[i] / norms[j])) for j in valid] for i in valid
    ]
    alphas = elementwise.normalized([weights[i] for i in valid])
    point = list(alphas)
    length = norm(cosines, point)
    point = unit(len(valid), 0) if length < tol else [c / length for c in point]
    for _ in range(max_iter):
        step = _logarithm(cosines, alphas, point, tol)
        length = norm(cosines, step)
        if length < tol:
            break
        along, across = math.cos(length), math.sin(length) / length
        point = [along * p + across * s for p, s in zip(point, step, strict=True)]
        scale = norm(cosines, point)
        point = [c / scale for c in point]
    radius = math.fsum(w * r for w, r in zip(weights, norms, strict=True))
    found = {i: radius * c / norms[i] for i, c in zip(valid, point, strict=True)}
    return [found.get(i, 0.0) for i in range(n)]


def _logarithm(
    cosines: Matrix, alphas: Sequence[float], point: Sequence[float], tol: float
) -> list[float]:
    """Return the mean of the tangents at `point` that lead to the unit vectors, as coefficients."""
    step = [0.0] * len(point)
    for i, alpha in enumerate(alphas):
        cosine = max(-1.0, min(1.0, product(cosines, unit(len(point), i), point)))
        theta = math.acos(cosine)
        if theta < tol or math.sin(theta) < 1e-8:
            continue
        factor = alpha * theta / math.sin(theta)
        step = [s - factor * cosine * p for s, p in zip(step, point, strict=True)]
        step[i] += factor
    return step


class GeometricMedian(Method, name="geometric-median"):
    """The point with the least weighted sum of distances: ``argmin Σ wᵢ·‖z - xᵢ‖``.

    Weiszfeld's iteration ``z ← Σ βᵢxᵢ / Σ βᵢ`` with ``βᵢ = wᵢ / max(ε·R, ‖z - xᵢ‖)``, smoothed as
    by Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022,
    arXiv:1912.13445, Algorithm 2; R is the largest distance between inputs, so that scaling the
    inputs scales the result. An input that is itself the optimum is found by its condition
    (Kuhn 1973) and given back bit for bit. Where two are, as of any two files of equal weight, all
    between them is, and the middle is given.
    """

    summary = "the point with the least sum of distances to all files, tensor by tensor"
    citation = "Pillutla et al., Robust aggregation, IEEE TSP 2022, arXiv:1912.13445"
    weighted = True
    needs = Scope.SUMS
    parameters = (
        MethodParameter("max_iter", "int", "iterations at most", 1000, low=1),
        MethodParameter("tol", "float", "the relative step that ends the iteration", 1e-10, low=0),
        MethodParameter(
            "epsilon", "float", "smoothing, as a share of the spread", 1e-9, low=0, high=1
        ),
    )

    def check(self, settings: Settings) -> None:
        _require_positive(settings.weights, self.name)

    def measure(self, inputs: Inputs) -> list[float]:
        return _least_distance(
            gram(inputs, origin=0),
            inputs.settings.weights,
            int(inputs.settings.number("max_iter")),
            inputs.settings.number("tol"),
            inputs.settings.number("epsilon"),
        )

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.combination(piece.tensors, piece.measured)


def _least_distance(
    matrix: Matrix, weights: Sequence[float], max_iter: int, tol: float, epsilon: float
) -> list[float]:
    """Return the geometric median's coefficients, from a Gram matrix about any origin."""
    n = len(matrix)
    between = [_distances(matrix, unit(n, i)) for i in range(n)]
    spread = max(max(row) for row in between)
    optimal = [k for k in range(n) if _is_optimal(matrix, weights, between, k)]
    if optimal:
        apart = [k for k in optimal if between[k][optimal[0]] > 0]
        ends = [optimal[0], *apart[:1]]
        return [ends.count(k) / len(ends) for k in range(n)]
    floor = max(epsilon * spread, 1e-300)
    point = list(elementwise.normalized(weights))
    for _ in range(max_iter):
        distances = _distances(matrix, point)
        pull = [w / max(floor, d) for w, d in zip(weights, distances, strict=True)]
        moved = list(elementwise.normalized(pull))
        step = norm(matrix, [a - b for a, b in zip(moved, point, strict=True)])
        point = moved
        if step <= tol * spread:
            break
    return point


def _distances(matrix: Matrix, point: Sequence[float]) -> list[float]:
    """From a point, given by coefficients that sum to 1, to each vector."""
    products = [sum(g * c for g, c in zip(row, point, strict=True)) for row in matrix]
    square = sum(p * c for p, c in zip(products, point, strict=True))
    return [math.sqrt(max(square - 2 * p + matrix[i][i], 0.0)) for i, p in enumerate(products)]


def _is_optimal(
    matrix: Matrix, weights: Sequence[float], between: list[list[float]], k: int
) -> bool:
    """Return whether vector k is the geometric median: the others pull less than its own weight."""
    n = len(matrix)
    pull, own = [0.0] * n, 0.0
    for i in range(n):
        if between[i][k] > 0:
            pull[i] = weights[i] / between[i][k]
            pull[k] -= pull[i]
        else:
            own += weights[i]
    return own > 0 and norm(matrix, pull) <= own * (1 + _ROUNDING)


def _require_positive(weights: Sequence[float], method: str) -> None:
    """Raise `UsageError` if a weight is negative or all are 0."""
    if min(weights) < 0:
        raise UsageError(f"method '{method}' takes no negative weight: {min(weights):g}")
    require_sum(tuple(weights))
