"""What to do with tensors that cannot simply be merged: the choices, and shapes. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from ckpt_surgery.errors import MismatchError
from ckpt_surgery.startup.lazy_dataclass import dataclass

ShapePolicy = Literal["error", "skip", "base", "overlap"]
SHAPE_POLICIES: Final[tuple[str, ...]] = get_args(ShapePolicy)
IntegerPolicy = Literal["auto", "base", "max", "sum", "mean", "error"]
"""What integers and bools become: see `integers.merge_integers`."""
INTEGER_POLICIES: Final[tuple[str, ...]] = get_args(IntegerPolicy)

KeyPolicy = Literal["strict", "union", "intersection"]
KEY_POLICIES: Final[tuple[str, ...]] = get_args(KeyPolicy)

_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """What to do with one name.

    ``merge``: all of it. ``base``: take the base's tensor as it is. ``skip``: leave the name out of
    the result. ``overlap``: the result has the base's shape and elements, except that its leading
    block of `shape` is merged from the same block of every input.
    """

    action: Literal["merge", "base", "skip", "overlap"]
    shape: _Shape


def agree(
    name: str, shapes: Sequence[_Shape], policy: ShapePolicy = "error", labels: Sequence[str] = ()
) -> Region:
    """Return what to merge of tensors with these shapes, the base's first.

    Tensors of different rank have no overlap; under ``overlap`` they, and blocks without elements,
    come from the base. Raises `MismatchError` if the shapes differ and the policy is ``error``.
    """
    base = shapes[0]
    if all(shape == base for shape in shapes):
        return Region("merge", base)
    if policy == "error":
        which = next(i for i, shape in enumerate(shapes) if shape != base)
        files = f" in '{labels[0]}' and '{labels[which]}'" if labels else ""
        raise MismatchError(
            f"'{name}' has the shapes {base} and {shapes[which]}{files}",
            entry=name,
            hint="say with --on-shape what to do: skip, base or overlap",
        )
    if policy != "overlap":
        return Region(policy, base)
    if any(len(shape) != len(base) for shape in shapes):
        return Region("base", base)
    block = tuple(min(sizes) for sizes in zip(*shapes, strict=True))
    return Region("base", base) if 0 in block else Region("overlap", block)


def leading(shape: _Shape) -> tuple[slice, ...]:
    """Return the index of the leading block of that shape; for a scalar the empty index."""
    return tuple(slice(0, size) for size in shape)
