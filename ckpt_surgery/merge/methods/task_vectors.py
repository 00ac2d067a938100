"""Task vectors: what training added to the base, thinned, weighed, and added up.

A task vector is ``δᵢ = xᵢ - b`` with b the base. Ilharco et al., "Editing models with task
arithmetic", ICLR 2023, arXiv:2212.04089. The methods differ in how they thin it (`sparsify`) and in
whether the vectors vote on each element's sign.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING, ClassVar

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge import elementwise, sparsify
from ckpt_surgery.merge.inputs import Inputs, Piece
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.methods.averages import require_sum
from ckpt_surgery.merge.parameters import MethodParameter, Settings
from ckpt_surgery.merge.sparsify import Kept

if TYPE_CHECKING:
    from torch import Tensor

_LAMBDA = MethodParameter("lambda", "float", "what the merged task vector is multiplied by", 1.0)
_DENSITY = MethodParameter(
    "density", "float", "the share of a task vector that stays", 1.0, 0, 1, per_input=True
)


def _normalize(default: bool) -> MethodParameter:
    return MethodParameter("normalize", "bool", "divide by the sum of the weights", default)


def _rescale(default: str) -> MethodParameter:
    return MethodParameter(
        "rescale",
        "str",
        "what makes up for dropped elements: 1/chance, the sum of magnitudes, or nothing",
        default,
        choices=("density", "l1", "none") if default == "density" else ("l1", "none"),
    )


class TaskVectors(Method):
    """The common part: ``x = b + λ·Σ wᵢ·kᵢ·δᵢ / D``, with kᵢ what thinning leaves of each element.

    D is 1, or with `normalize` ``Σ wᵢ``. If the vectors elect (Yadav et al., arXiv:2306.01708), the
    sign of ``Σ wᵢkᵢδᵢ`` (zero: positive) wins at each element, only the vectors that agree with it
    are added, and D is the sum of their weights (1 where it is 0).
    """

    needs_base = True
    weighted = True
    elects: ClassVar[bool] = False

    def check(self, settings: Settings) -> None:
        if settings.flag("normalize") and not self.elects:
            require_sum(settings.weights)

    def measure(self, inputs: Inputs) -> list[Kept]:
        return [sparsify.KeptAll() for _ in range(inputs.count)]

    def combine(self, piece: Piece) -> Tensor:
        settings = piece.settings
        factors = [
            left.factor(piece.start, piece.stop, piece.origin).mul_(weight)
            for left, weight in zip(piece.measured, settings.weights, strict=True)
        ]
        if self.elects:
            factors = _elected(piece, factors)
        elif settings.flag("normalize"):
            total = sum(settings.weights)
            factors = [factor.div_(total) for factor in factors]
        scale = settings.number("lambda")
        return elementwise.from_base(
            piece.origin, piece.tensors, [factor.mul_(scale) for factor in factors]
        )


def _elected(piece: Piece, factors: list[Tensor]) -> list[Tensor]:
    """Return the factors of the vectors that agree with the sign of the sum, 0 for the others."""
    parts = [
        (tensor - piece.origin).mul_(factor)
        for tensor, factor in zip(piece.tensors, factors, strict=True)
    ]
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    positive = total >= 0
    agree = [(part > 0).where(positive, part < 0) for part in parts]
    chosen = [factor * vote for factor, vote in zip(factors, agree, strict=True)]
    if not piece.settings.flag("normalize"):
        return chosen
    divisor = total.zero_()
    for vote, weight in zip(agree, piece.settings.weights, strict=True):
        divisor += vote.to(divisor.dtype) * weight
    divisor.masked_fill_(divisor == 0, 1)
    return [factor.div_(divisor) for factor in chosen]


class ThinnedTaskVectors(TaskVectors):
    """Task vectors of which only the share `density` stays, rescaled or not."""

    @abstractmethod
    def thin(self, inputs: Inputs, which: int, density: float) -> Kept:
        """Return what stays of input `which`, without the rescaling by the sum of magnitudes."""

    def thins(self, settings: Settings) -> bool:
        """Return whether anything is dropped at all."""
        return min(settings.each("density")) < 1

    def remarks(self, settings: Settings) -> tuple[str, ...]:
        return () if self.thins(settings) else (f"'{self.name}' with density 1 drops nothing",)

    def scope(self, settings: Settings) -> Scope:
        return Scope.TENSOR if self.thins(settings) else Scope.ELEMENT

    def measure(self, inputs: Inputs) -> list[Kept]:
        kept = super().measure(inputs)
        for which, density in enumerate(inputs.settings.each("density")):
            if density < 1:
                kept[which] = self.thin(inputs, which, density)
                if inputs.settings.text("rescale") == "l1":
                    sparsify.match_l1(kept[which], inputs, which)
        return kept


class TaskArithmetic(TaskVectors, name="task-arithmetic"):
    """The sum of the task vectors: ``x = b + λ·Σ wᵢδᵢ``.

    Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv:2212.04089.
    """

    summary = "the base plus the sum of what each file adds to it"
    citation = "Ilharco et al., Task arithmetic, ICLR 2023, arXiv:2212.04089"
    mergekit = "task_arithmetic"
    parameters = (_LAMBDA, _normalize(False))


class Ties(ThinnedTaskVectors, name="ties"):
    """Trim, elect sign and merge.

    Of each task vector the share `density` of largest magnitude stays; the sign of the larger sum
    wins at each element; the vectors of that sign are averaged: ``x = b + λ·Σ_A wᵢδᵢ / Σ_A wᵢ``.
    Yadav et al., "TIES-merging: resolving interference when merging models", NeurIPS 2023,
    arXiv:2306.01708, Algorithm 1 (the paper trims to a density of 0.2).
    """

    summary = "task vectors trimmed to their largest elements, one sign per element, averaged"
    citation = "Yadav et al., TIES-merging, NeurIPS 2023, arXiv:2306.01708"
    elects = True
    mergekit = "ties"
    parameters = (_DENSITY, _LAMBDA, _normalize(True), _rescale("none"))

    def thin(self, inputs: Inputs, which: int, density: float) -> Kept:
        return sparsify.KeptByTable(sparsify.trimmed(inputs, which, density))


class Dare(ThinnedTaskVectors):
    """Drop and rescale: an element stays with chance `density` and is divided by it.

    Yu et al., "Language models are Super Mario: absorbing abilities from homologous models as a
    free lunch", ICML 2024, arXiv:2311.03099, equations (2) to (4), with ``density = 1 - p``.
    """

    citation = "Yu et al., Language models are Super Mario, ICML 2024, arXiv:2311.03099"
    random = True
    mergekit_defaults = {"rescale": "l1", "normalize": False}  # noqa: RUF012 - a ClassVar above

    def scope(self, settings: Settings) -> Scope:
        rescales_l1 = settings.text("rescale") == "l1"
        return Scope.SUMS if self.thins(settings) and rescales_l1 else Scope.ELEMENT

    def thin(self, inputs: Inputs, which: int, density: float) -> Kept:
        inverse = inputs.settings.text("rescale") == "density" and density > 0
        scale = 1 / density if inverse else 1.0
        return sparsify.KeptByChance(inputs.key, which, density, scale)


class DareLinear(Dare, name="dare-linear"):
    """DARE, then task arithmetic: ``x = b + λ·Σ wᵢ·mᵢδᵢ/density`` with random masks mᵢ.

    Yu et al., ICML 2024, arXiv:2311.03099.
    """

    summary = "task vectors thinned at random and rescaled, added up"
    mergekit = "dare_linear"
    parameters = (_DENSITY, _LAMBDA, _normalize(False), _rescale("density"))


class DareTies(Dare, name="dare-ties"):
    """DARE, then election and averaging as in TIES.

    Yu et al., ICML 2024, arXiv:2311.03099, with Yadav et al., arXiv:2306.01708.
    """

    summary = "task vectors thinned at random and rescaled, one sign per element, averaged"
    elects = True
    mergekit = "dare_ties"
    parameters = (_DENSITY, _LAMBDA, _normalize(True), _rescale("density"))


class DellaBase(ThinnedTaskVectors):
    """MagPrune: the chance to stay grows with the rank of the magnitude in its row.

    Deep, Bhardwaj and Poria, "DELLA-merging: reducing interference in model merging through
    magnitude-based sampling", 2024, arXiv:2406.11617, section 3.1. The chance goes from
    ``density - epsilon`` to ``density + epsilon`` (the paper's ε is twice this one); what stays is
    divided by its own chance.
    """

    citation = "Deep et al., DELLA-merging, 2024, arXiv:2406.11617"
    random = True
    mergekit_defaults = {"rescale": "l1"}  # noqa: RUF012 - a ClassVar above

    def check(self, settings: Settings) -> None:
        super().check(settings)
        for density, epsilon in zip(
            settings.each("density"), settings.each("epsilon"), strict=True
        ):
            if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
                raise UsageError(
                    f"the chances {density:g} ± {epsilon:g} leave the range between 0 and 1",
                    hint="choose a smaller 'epsilon'",
                )

    def working_nbytes(self, shape: tuple[int, ...], inputs: int) -> int:
        """Return a factor for each element of every input, and what ranks the rows of one."""
        numel = prod(shape)
        return 8 * inputs * numel + sparsify.ranking_nbytes(numel, shape)

    def thin(self, inputs: Inputs, which: int, density: float) -> Kept:
        density, epsilon = (
            inputs.settings.each("density")[which],
            inputs.settings.each("epsilon")[which],
        )
        if density == 0:
            return sparsify.KeptByChance(inputs.key, which, 0.0)
        epsilon = inputs.settings.each("epsilon")[which]
        inverse = inputs.settings.text("rescale") == "density"
        table = sparsify.chances_by_rank(inputs, which, density, epsilon, inverse=inverse)
        return sparsify.KeptByTable(table)


_EPSILON = MethodParameter(
    "epsilon", "float", "how far chances lie from the density", 0.15, 0, 1, per_input=True
)


class Della(DellaBase, name="della"):
    """MagPrune, then election and averaging: ``x = b + λ·Σ_A wᵢδ̂ᵢ / Σ_A wᵢ``.

    Deep et al., 2024, arXiv:2406.11617.
    """

    summary = "task vectors thinned by chance and magnitude, one sign per element, averaged"
    elects = True
    mergekit = "della"
    parameters = (_DENSITY, _EPSILON, _LAMBDA, _normalize(True), _rescale("density"))


class DellaLinear(DellaBase, name="della-linear"):
    """MagPrune, then task arithmetic: ``x = b + λ·Σ wᵢδ̂ᵢ``.

    Deep et al., 2024, arXiv:2406.11617, without the election.
    """

    summary = "task vectors thinned by chance and magnitude, added up"
    mergekit = "della_linear"
    parameters = (_DENSITY, _EPSILON, _LAMBDA, _normalize(False), _rescale("density"))


class BreadcrumbsBase(ThinnedTaskVectors):
    """Masks both tails: the share `gamma` of largest magnitudes, and the smallest.

    Davari and Belilovsky, "Model breadcrumbs: scaling multi-task model merging with sparse masks",
    ECCV 2024, arXiv:2312.06795, equation (2), for each tensor; `density` stays.
    """

    citation = "Davari and Belilovsky, Model breadcrumbs, ECCV 2024, arXiv:2312.06795"

    def thin(self, inputs: Inputs, which: int, density: float) -> Kept:
        density, gamma = (
            inputs.settings.each("density")[which],
            inputs.settings.each("gamma")[which],
        )
        return sparsify.KeptByTable(sparsify.between_tails(inputs, which, density, gamma))


_GAMMA = MethodParameter(
    "gamma", "float", "the share of largest elements to drop", 0.01, 0, 1, per_input=True
)


class Breadcrumbs(BreadcrumbsBase, name="breadcrumbs"):
    """Both tails masked, then task arithmetic: ``x = b + λ·Σ wᵢ·mᵢδᵢ``.

    Davari and Belilovsky, ECCV 2024, arXiv:2312.06795.
    """

    summary = "task vectors without their largest and smallest elements, added up"
    mergekit = "breadcrumbs"
    parameters = (_DENSITY, _GAMMA, _LAMBDA, _normalize(False), _rescale("none"))


class BreadcrumbsTies(BreadcrumbsBase, name="breadcrumbs-ties"):
    """Both tails masked, then election as in TIES.

    Davari and Belilovsky, arXiv:2312.06795, with Yadav et al., arXiv:2306.01708.
    """

    summary = "task vectors without their largest and smallest elements, one sign per element"
    elects = True
    mergekit = "breadcrumbs_ties"
    parameters = (_DENSITY, _GAMMA, _LAMBDA, _normalize(True), _rescale("none"))
    mergekit_defaults = {"normalize": False}  # noqa: RUF012 - a ClassVar above
