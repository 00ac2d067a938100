"""What a merge method is, and the catalogue of all of them. Importing this does not import torch.

A method sees the tensors of one name twice at most: `measure` may read all of them to find sums,
masks or coefficients; `combine` then makes each element of the result from the same element of the
inputs and from what was measured. So every method works in pieces, and a method that measures
nothing needs one pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.parameters import (
    MethodParameter,
    Settings,
    check_values,
    check_weights,
)
from ckpt_surgery.names.suggest import near_hint

if TYPE_CHECKING:
    from torch import Tensor

    from ckpt_surgery.merge.inputs import Inputs, Piece


class Scope(Enum):
    """How much of a tensor a method must have seen before it can make the first element."""

    ELEMENT = "element"
    """Nothing more: one pass."""
    SUMS = "sums"
    """A few sums over it: two passes, memory for a piece."""
    TENSOR = "tensor"
    """An order of all its elements: `Method.working_nbytes` in memory."""


_REGISTRY: dict[str, Method] = {}


class Method(ABC):
    """A way to merge. Subclassing with ``name=`` puts one instance into the catalogue.

    `summary` is a line for a list of methods, `citation` where the definition stands, `mergekit`
    the name that mergekit has for it and `mergekit_defaults` the defaults in which it differs.
    `min_inputs` and `max_inputs` count files beside the base. `needs` is the scope,
    unless `scope` makes it depend on the settings.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str]
    citation: ClassVar[str]
    parameters: ClassVar[tuple[MethodParameter, ...]] = ()
    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    random: ClassVar[bool] = False
    needs: ClassVar[Scope] = Scope.ELEMENT
    min_inputs: ClassVar[int] = 1
    max_inputs: ClassVar[int | None] = None
    mergekit: ClassVar[str | None] = None
    mergekit_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            _REGISTRY[name] = cls()

    def bind(
        self,
        inputs: int,
        *,
        has_base: bool,
        weights: Sequence[object] | None = None,
        values: Mapping[str, object] | None = None,
    ) -> Settings:
        """Check the choices against this method and `inputs` files beside the base.

        Raises `UsageError` for a missing or superfluous base, too few or too many files, weights
        that do not fit, and parameters that are unknown, missing or out of range.
        """
        self.check_files(inputs, has_base=has_base)
        if weights is not None and not self.weighted:
            raise UsageError(
                f"method '{self.name}' takes no weights",
                hint="'linear' is the average with weights" if self.name == "average" else None,
            )
        settings = Settings(
            check_weights(weights, inputs),
            check_values(self.parameters, values or {}, inputs, self.name),
        )
        self.check(settings)
        return settings

    def check_files(self, inputs: int, *, has_base: bool) -> None:
        """Raise `UsageError` for a missing or superfluous base, or too few or too many files."""
        if self.needs_base and not has_base:
            raise UsageError(
                f"method '{self.name}' needs a base: the model that the others were trained from"
            )
        if has_base and not self.needs_base:
            raise UsageError(f"method '{self.name}' has no base: all its inputs are alike")
        if inputs < self.min_inputs or (self.max_inputs is not None and inputs > self.max_inputs):
            exact = self.min_inputs == self.max_inputs
            bound = self.min_inputs if inputs < self.min_inputs else self.max_inputs
            how = "exactly" if exact else "at least" if inputs < self.min_inputs else "at most"
            beside = " beside the base" if self.needs_base else ""
            noun = "input" if bound == 1 else "inputs"
            raise UsageError(f"method '{self.name}' takes {how} {bound} {noun}{beside}: {inputs}")

    def check(self, settings: Settings) -> None:  # noqa: B027 - most have nothing to check
        """Raise `UsageError` if choices that are right one by one contradict each other."""

    def remarks(self, settings: Settings) -> tuple[str, ...]:  # noqa: ARG002 - overridden
        """Return what the report should say about these choices."""
        return ()

    def scope(self, settings: Settings) -> Scope:  # noqa: ARG002 - overridden
        """Return how much of a tensor must have been seen before its first element can be made."""
        return self.needs

    def shows_nonfinite(self, settings: Settings) -> bool:  # noqa: ARG002 - overridden
        """Return whether NaN or infinity in an input makes the same
        element of the result one of them.

        The inputs need not be searched then unless the result has one.
        """
        return False

    def working_nbytes(self, shape: tuple[int, ...], inputs: int) -> int:
        """Return bytes that ``Scope.TENSOR`` needs at a time for `inputs` tensors of that shape.

        In float64, they are the magnitudes of one, and twice as much for torch to find the limit
        among them; of every input a mask stays.
        """
        return (3 * 8 + inputs) * prod(shape)

    def measure(self, inputs: Inputs) -> Any:  # noqa: ARG002 - overridden
        """Return what `combine` must know about the whole tensors: nothing, unless overridden."""
        return None

    @abstractmethod
    def combine(self, piece: Piece) -> Tensor:
        """Return the elements of the result for a piece of the inputs, in the working element type.

        Each element depends on its own position only, and is the same however the tensor is cut:
        no fused multiply-add (``alpha=``, ``addcmul``, ``lerp``), which torch rounds differently
        in the vectorised part and in the rest of a run. The piece's tensors are not changed.
        """


def catalogue() -> dict[str, Method]:
    """Return every method by name, in the order of their modules."""
    from ckpt_surgery.merge import methods

    methods.load()
    return dict(_REGISTRY)


def find(name: str) -> Method:
    """Return the method of that name, written with hyphens or underscores.

    Raises `UsageError` with near names.
    """
    known = catalogue()
    method = known.get(name.replace("_", "-"))
    if method is None:
        raise UsageError(
            f"unknown method '{name}'",
            hint=near_hint(name, known) or "the methods are " + ", ".join(known),
        )
    return method
