"""What a model wants to be given: the names, shapes and types of its state dict, without values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, replace
from math import prod

from ckpt_surgery.checkpoint.description import Role
from ckpt_surgery.startup.lazy_dataclass import dataclass

Shape = tuple[int, ...]
Metadata = Mapping[str, Mapping[str, object]]
"""A state dict's ``_metadata``: module path to what is stored for it, ``{"version": 2}``."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a state dict: `dtype` is torch's name of it (``"float32"``).

    `layout` is how its elements are kept: ``strided``, ``sparse_coo``, ``quantized``, ``dtensor``,
    ``subclass``, …
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    role: Role = "unknown"
    layout: str = "strided"

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module of a model. `kind` is its class, qualified; `parameters` and `buffers` are its own.

    `tracks_statistics` says that it updates running statistics when it trains (a batch norm).
    """

    name: str
    kind: str
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    tracks_statistics: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A state dict to match or to fill, in its order.

    `ties` are groups of names for one tensor, the first being its first name in the state dict.
    `parameters` are in the order of ``named_parameters()``, `modules` in that of
    ``named_modules()`` with the model itself (``""``) first; both are empty for a target that is
    only a file. `metadata` is None if the target has no ``_metadata``.
    """

    title: str
    tensors: tuple[TensorSpec, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    metadata: Metadata | None = None
    extra_state: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    modules: tuple[ModuleSpec, ...] = ()
    by_name: Mapping[str, TensorSpec] = field(init=False, compare=False, repr=False)
    leader_of: Mapping[str, str] = field(init=False, compare=False, repr=False)
    """For every name in `ties` the first name of its group."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {spec.name: spec for spec in self.tensors})
        leaders = {name: group[0] for group in self.ties for name in group}
        object.__setattr__(self, "leader_of", leaders)

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.tensors]

    def without(self, names: Collection[str]) -> Target:
        """Return the tensors of the target but those called `names`, and nothing beside them."""
        tensors = tuple(spec for spec in self.tensors if spec.name not in names)
        groups = (tuple(name for name in group if name not in names) for group in self.ties)
        ties = tuple(group for group in groups if len(group) > 1)
        return replace(self, tensors=tensors, ties=ties, extra_state=())

    @property
    def children(self) -> Iterator[ModuleSpec]:
        """The direct children, as ``children()`` counts them: also those without parameters."""
        return (m for m in self.modules if m.name and "." not in m.name)

    @property
    def class_name(self) -> str:
        """The model's own class, unqualified, as torch's messages name it."""
        return self.modules[0].kind.rpartition(".")[2] if self.modules else self.title
