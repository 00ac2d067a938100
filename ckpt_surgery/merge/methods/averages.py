"""Averages: each element of the result is a mean, of some kind, of the inputs' elements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge import elementwise
from ckpt_surgery.merge.inputs import Piece
from ckpt_surgery.merge.method import Method
from ckpt_surgery.merge.parameters import MethodParameter, Settings

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_SOUPS = "Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482"


class Average(Method, name="average"):
    """The arithmetic mean: ``x = (1/n) Σ xᵢ``, in any order the same bits.

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", ICML 2022, arXiv:2203.05482 (the uniform soup).
    """

    summary = "the mean of all files"
    citation = _MODEL_SOUPS

    def shows_nonfinite(self, settings: Settings) -> bool:  # noqa: ARG002 - with any settings
        return True

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.mean(piece.raw, piece.work)


class Linear(Method, name="linear"):
    """A weighted sum: ``x = Σ wᵢ·xᵢ / Σ wᵢ``, without the division if not `normalize`.

    Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482. A weight of 0 takes its file out of
    the sum; one weight alone gives that file's bits.
    """

    summary = "the mean with a weight for each file"
    citation = _MODEL_SOUPS
    weighted = True
    mergekit = "linear"
    parameters = (MethodParameter("normalize", "bool", "divide by the sum of the weights", True),)

    def check(self, settings: Settings) -> None:
        if settings.flag("normalize"):
            require_sum(settings.weights)

    def shows_nonfinite(self, settings: Settings) -> bool:
        return 0 not in settings.weights

    def combine(self, piece: Piece) -> Tensor:
        weights = piece.settings.weights
        if piece.settings.flag("normalize"):
            weights = elementwise.normalized(weights)
        return elementwise.combination(piece.tensors, weights)


class ExponentialAverage(Method, name="ema"):
    """A moving average over the files in order: ``e₁ = x₁, eₖ = d·eₖ₋₁ + (1 - d)·xₖ``.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
    Optim. 30 (1992), in the exponential form of Tarvainen and Valpola, arXiv:1703.01780.
    """

    summary = "an exponential moving average over the files in their order"
    citation = "Tarvainen and Valpola, Mean teachers, NeurIPS 2017, arXiv:1703.01780"
    parameters = (
        MethodParameter("decay", "float", "how much of the average so far is kept", low=0, high=1),
    )

    def combine(self, piece: Piece) -> Tensor:
        decay = piece.settings.number("decay")
        average = piece.tensors[0].clone()
        for tensor in piece.tensors[1:]:
            average = elementwise.combination((average, tensor), (decay, 1 - decay))
        return average


class Median(Method, name="median"):
    """The middle value of each element; of an even number of files, the mean of the middle two.

    Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates",
    ICML 2018, arXiv:1803.01498 (Definition 1, coordinate-wise median).
    """

    summary = "the middle value of each element"
    citation = "Yin et al., Byzantine-robust distributed learning, ICML 2018, arXiv:1803.01498"

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.median(piece.raw, piece.work)


class Passthrough(Method, name="passthrough"):
    """One file as it is, or scaled: ``x = s·x₁``.

    Goddard et al., "Arcee's MergeKit", EMNLP 2024, arXiv:2403.13257.
    """

    summary = "one file as it is, or times a number"
    citation = "Goddard et al., Arcee's MergeKit, EMNLP 2024, arXiv:2403.13257"
    max_inputs = 1
    mergekit = "passthrough"
    parameters = (
        MethodParameter(
            "scale", "float", "what each element is multiplied by", 1.0, per_input=True
        ),
    )

    def combine(self, piece: Piece) -> Tensor:
        return elementwise.combination(piece.tensors, piece.settings.each("scale"))


def require_sum(weights: tuple[float, ...]) -> None:
    """Raise `UsageError` if the weights cannot be normalised: their sum is 0."""
    if abs(math.fsum(weights)) <= 1e-8 * math.fsum(map(abs, weights)):
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise UsageError(
            f"the weights {given} sum to 0 and cannot be normalised",
            hint="change a weight, or pass --no-normalize",
        )
