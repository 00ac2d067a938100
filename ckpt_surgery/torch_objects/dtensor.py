"""What part of a whole tensor one rank's DTensor is (``torch.distributed.tensor``).

A DTensor is written as the tensor of its rank and a spec: a mesh of ranks, this rank's coordinate
on it, and for each dimension of the mesh a placement, which splits an axis of the tensor over that
dimension, repeats it, or leaves it to be summed up. Meshes say their shape in several ways: a
tensor of ranks until torch 2.8, then a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Final, TypeGuard

from ckpt_surgery.checkpoint.description import Placement, PlacementKind, Shard, Tensor
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Dict, Global, List, Node, Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import named_items

CLASSES: Final = frozenset(
    {
        "torch.distributed.tensor.DTensor",
        "torch.distributed.tensor._api.DTensor",
        "torch.distributed._tensor.DTensor",
        "torch.distributed._tensor.api.DTensor",
    }
)
"""The class by the modules that torch kept it in."""

_CHANGEABLE: Final = (List, Dict, Object)

_KINDS: Final[dict[str, PlacementKind]] = {
    "Shard": "shard",
    "_StridedShard": "strided-shard",
    "Replicate": "replicate",
    "Partial": "partial",
    "_Partial": "partial",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A rank's DTensor: its own tensor, and a placement for each dimension of the mesh."""

    local: Tensor
    placements: tuple[Placement, ...]

    @property
    def shard(self) -> Shard:
        """What part of the whole it is. Parts are numbered in the order of the mesh."""
        parted = [p for p in self.placements if p.kind != "replicate"]
        number = 0
        for placement in parted:
            number = number * placement.size + placement.coordinate
        return Shard(
            number + 1,
            prod(placement.size for placement in parted),
            tuple(dict.fromkeys(p.axis for p in parted if p.axis is not None)),
            self.local.shape,
            is_partial=any(p.kind == "partial" and p.size > 1 for p in parted),
            placements=self.placements,
            local=self.local,
        )


def read_spec(state: Node, at: int, describe: Callable[[Node], Tensor | None]) -> Spec | None:
    """Return what the state of a DTensor says that was rebuilt `at` this operation of the pickle.

    None for a form that no known version of torch writes. Raises `DamagedFileError` if something is
    changed after the tensor was made of it.
    """
    attributes = state[1] if isinstance(state, tuple) and len(state) == 2 else state
    outer = _fields(attributes, at)
    local = describe(outer.get("_local_tensor"))
    spec = _fields(outer.get("_spec"), at)
    mesh = _fields(spec.get("mesh"), at)
    shape = _mesh_shape(mesh, at, describe)
    where, placed = mesh.get("_coordinate_on_dim"), spec.get("placements")
    if local is None or shape is None or not _are_counts(where):
        return None
    if not isinstance(placed, tuple) or not len(placed) == len(shape) == len(where):
        return None
    found = [
        _placement(node, size, own, at)
        for node, size, own in zip(placed, shape, where, strict=True)
    ]
    known = tuple(placement for placement in found if placement is not None)
    return Spec(local, known) if len(known) == len(found) else None


def _placement(node: Node, size: int, own: int, at: int) -> Placement | None:
    if not isinstance(node, Object) or not isinstance(node.callee, Global):
        return None
    kind = _KINDS.get(node.callee.name)
    axis = _fields(node, at).get("dim")
    splits = kind in ("shard", "strided-shard")
    if kind is None or own >= size or splits != (type(axis) is int):
        return None
    return Placement(kind, size, own, axis if isinstance(axis, int) else None)


def _mesh_shape(
    mesh: dict[str, Node], at: int, describe: Callable[[Node], Tensor | None]
) -> tuple[int, ...] | None:
    ranks = describe(mesh.get("mesh"))
    if ranks is not None:
        return ranks.shape
    layout = _fields(mesh.get("_layout"), at)
    axes = layout.get("axes", layout.get("shape"))
    if type(axes) is int:
        return (axes,)
    if not isinstance(axes, tuple | list):
        return None
    sizes = [_size(axis, at) for axis in axes]
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def _size(axis: Node, at: int) -> int | None:
    """Return the ranks along a dimension of a mesh: a number, several, or a layout of them."""
    if isinstance(axis, Object):
        axis = _fields(axis, at).get("shape")
    if type(axis) is int:
        return axis
    return prod(axis) if _are_counts(axis) else None


def _are_counts(node: Node) -> TypeGuard[Sequence[int]]:
    return isinstance(node, tuple | list) and all(type(n) is int and n >= 0 for n in node)


def _fields(node: Node, at: int) -> dict[str, Node]:
    """Return the attributes of an object, or the items of a dictionary; none of anything else."""
    state = node.state if isinstance(node, Object) else node
    for each in (node, state):
        if isinstance(each, _CHANGEABLE) and each.changed > at:
            raise DamagedFileError("what a DTensor is made of is changed after it was made")
    return {} if state is NO_STATE else named_items(state) or {}
