"""Scalar products of whole tensors, and what follows from them.

Angles, distances, and every point that a method finds on a sphere or between the inputs follow from
the Gram matrix of the inputs. So such a method reads the tensors once for the matrix and once for
the sum, and holds pieces only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.merge.inputs import Inputs, steady_sum

Matrix = list[list[float]]


def gram(inputs: Inputs, origin: int | None = None) -> Matrix:
    """``Gᵢⱼ = ⟨xᵢ - o, xⱼ - o⟩`` in float64, with `origin` an input (-1: the base) or zero.

    Raises `LossyEditError` if a product is no finite number.
    """
    n = inputs.count
    matrix = [[0.0] * n for _ in range(n)]
    for start, stop in inputs.spans():
        vectors = [inputs.one(which, start, stop).double() for which in range(n)]
        if origin is not None:
            centre = inputs.one(origin, start, stop).double()
            vectors = [vector - centre for vector in vectors]
        for i in range(n):
            for j in range(i, n):
                matrix[i][j] += steady_sum(vectors[i] * vectors[j])
    for i in range(n):
        for j in range(i):
            matrix[i][j] = matrix[j][i]
    if not all(math.isfinite(value) for row in matrix for value in row):
        raise LossyEditError(f"the norm of '{inputs.name}' is no finite number", entry=inputs.name)
    return matrix


def product(matrix: Matrix, left: Sequence[float], right: Sequence[float]) -> float:
    """``⟨Σ aᵢxᵢ, Σ bⱼxⱼ⟩`` from the Gram matrix of the x."""
    return math.fsum(
        a * value * b
        for a, row in zip(left, matrix, strict=True)
        for value, b in zip(row, right, strict=True)
        if a and b
    )


def norm(matrix: Matrix, coefficients: Sequence[float]) -> float:
    """``‖Σ cᵢxᵢ‖``."""
    return math.sqrt(max(product(matrix, coefficients, coefficients), 0.0))


def unit(n: int, index: int) -> list[float]:
    """Coefficients that pick one of n vectors."""
    return [float(i == index) for i in range(n)]
