"""What a merge is asked to be, checked as far as it can be without its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.merge.files import Sources, label_of
from ckpt_surgery.merge.policies import IntegerPolicy, KeyPolicy, ShapePolicy
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.method import Method
    from ckpt_surgery.merge.recipe import MergeRecipe, Override

STRUCTURAL: Final = ("overlay", "fill")
"""Methods that compute nothing: later files win, and earlier files win."""

FOLDS: Final = ("lora",)
"""Methods that add adapters to the base, and compute only what these change."""

# What only one kind of method uses; the other refuses it instead of ignoring it.
_OF_COPIES: Final = ("only_existing", "same_shape")
_OF_NUMBERS: Final = (
    "weights", "overrides", "parameters", "seed", "dtype", "integers", "keys", "on_shape",
    "allow_nonfinite", "threads", "memory",
)  # fmt: skip
_OF_FOLDS: Final = ("scales", "check_rounding")
_NOT_OF_FOLDS: Final = (
    "weights", "overrides", "parameters", "seed", "dtype", "integers", "on_shape",
)  # fmt: skip
_DEFAULTS: Final[Mapping[str, Any]] = {"integers": "auto", "keys": "strict", "on_shape": "error"}


def methods() -> tuple[str, ...]:
    """Return the names of all methods."""
    from ckpt_surgery.merge.method import catalogue

    return (*STRUCTURAL, *FOLDS, *catalogue())


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """How files are merged.

    Everything that is not merged comes from the base: the file `base`, by default the first.
    ``overlay`` puts the entries of later files over it, ``fill`` adds those that are missing; both
    copy bytes and import no torch. `only_existing` and `same_shape` narrow what they take to names
    that the base has, and tensors of its shape. Every other method computes each tensor from the
    tensors of its name: with `weights` and `parameters` for all of them, `overrides` for some,
    `dtype` for the result, `integers`, `keys` and `on_shape` where files differ. With a method that
    needs a base, the base is not among the files that are merged into it. ``lora`` adds adapters to
    the weights of the base, each times one of `scales` (one for all, or one each) beside its own
    scale; `check_rounding` counts how much of them is left in the weights' type. With `keys`
    ``intersection`` entries of adapters that apply to nothing are left out.

    Numbers are computed while they are written, in `threads` (default: one a processor, at most 8),
    with at most `memory` bytes of results waiting.

    Raises `UsageError` for an unknown method and for choices that it does not have.
    """

    method: str = "overlay"
    base: PathLike | Source | None = None
    scope: MergeScope = field(default_factory=MergeScope)
    only_existing: bool = False
    same_shape: bool = False
    weights: Sequence[float] | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    seed: int = 0
    dtype: str | None = None
    integers: IntegerPolicy = "auto"
    keys: KeyPolicy = "strict"
    on_shape: ShapePolicy = "error"
    allow_nonfinite: bool = False
    threads: int | None = None
    memory: int | None = None
    scales: Sequence[float] | None = None
    check_rounding: bool = False

    def __post_init__(self) -> None:
        for name in self._unused:
            value = getattr(self, name)
            if value and value != _DEFAULTS.get(name):
                raise self._meaningless(name)
        if self.is_fold and self.keys == "union":
            raise self._meaningless("keys")
        if not self.is_structural and self.scope.compact:
            raise self._meaningless("compact")
        if not self.is_structural and not self.is_fold:
            self.find_method()
        _ = self.computing

    @property
    def _unused(self) -> tuple[str, ...]:
        """The fields that the method has no use for."""
        if self.is_structural:
            return (*_OF_NUMBERS, *_OF_FOLDS)
        return (*_OF_COPIES, *(_NOT_OF_FOLDS if self.is_fold else _OF_FOLDS))

    def _meaningless(self, name: str) -> UsageError:
        message = f"'{name}' has no meaning with method '{self.method}'"
        return UsageError(message, fields=(name,))

    @property
    def is_structural(self) -> bool:
        """Whether bytes are copied and nothing is computed."""
        return self.method in STRUCTURAL

    @property
    def is_fold(self) -> bool:
        """Whether the files beside the base are adapters of it."""
        return self.method in FOLDS

    @property
    def computing(self) -> Computing:
        """What computing may use."""
        return Computing(self.threads, self.memory)

    def find_method(self) -> Method:
        """Return the method that computes. Raises `UsageError`, with near names, for none."""
        from ckpt_surgery.merge.method import catalogue, find
        from ckpt_surgery.names.suggest import near_hint

        if self.method.replace("_", "-") not in catalogue():
            hint = near_hint(self.method, methods()) or "the methods are " + ", ".join(methods())
            raise UsageError(f"unknown method '{self.method}'", hint=hint)
        return find(self.method)

    def sources(self, files: Sequence[PathLike | Source]) -> Sources:
        """Return which file is what. Raises `UsageError` if they are too few to merge."""
        count = len(files) + (self.base is not None and self.base not in files)
        if self.is_structural:
            require_several(count, least=2)
            return Sources(files, self.base)
        if self.is_fold:
            require_several(count, least=2)
            return Sources(files, self.base, base_apart=True)
        method = self.find_method()
        require_several(count, least=1 if method.max_inputs == 1 else 2)
        return Sources(files, self.base, base_apart=method.needs_base)

    def recipe(self, sources: Sources) -> MergeRecipe:
        """Return the numbers of a merge that computes, for these files. Raises `UsageError`."""
        from ckpt_surgery.merge.recipe import WEIGHT, MergeInput, MergeRecipe

        method = self.find_method()
        labels = [label_of(source) for source in sources.inputs]
        own: Sequence[Mapping[str, object]] = [{}] * len(labels)
        if self.weights is not None:
            method.bind(
                len(labels),
                has_base=method.needs_base,
                weights=self.weights,
                values=self.parameters,
            )
            own = [{WEIGHT: weight} for weight in self.weights]
        return MergeRecipe(
            method=method,
            inputs=tuple(MergeInput(f, v) for f, v in zip(labels, own, strict=True)),
            base=label_of(sources.base),
            values=self.parameters,
            overrides=tuple(self.overrides),
            dtype=self.dtype,
            seed=self.seed,
            integers=self.integers,
        )


def require_several(count: int, *, least: int) -> None:
    """Refuse what is no merge; a few methods are about one file."""
    if count < least:
        what = "one file" if count else "no file"
        raise UsageError(
            f"{what} is nothing to merge", hint="name at least two checkpoints, the base first"
        )
