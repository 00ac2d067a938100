"""Edits that split one tensor into several, and join several to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_distinct, require_there
from ckpt_surgery.edits.values import (
    Elements,
    dimension,
    elements_of,
    lazily,
    require_plain,
    tensor_of,
)
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Split(BatchEdit):
    """Split a tensor along an axis into the entries `names`, which take its place.

    `sizes` are those of the parts; none given: equal ones. With `heads` the axis is that many
    blocks, each of which has all the parts (GPT-NeoX, Megatron): part by part they are collected.
    """

    kind: ClassVar[str] = "split"
    state_dict: str
    name: str
    names: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] = ()
    heads: int | None = None

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Split],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with the parts in the places of what was split.

        Raises `PlanError` for sizes that do not fit, `NameCollisionError` for a name twice.
        """
        return edit_state_dicts(run, checkpoint, _split)

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """Return the parts, which are computed when they are written."""
        where = join_path(self.state_dict, self.name)
        require_plain(self.state_dict, self.name, tensor)
        dim, sizes = _split_sizes(tensor.shape, self, where)
        found = []
        for number, size in enumerate(sizes):
            shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
            compute = partial(_part, dim=dim, sizes=sizes, number=number, heads=self.heads)
            found.append(lazily(tensor, shape, tensor.dtype, compute, self.names[number]))
        return found


def _split_sizes(shape: tuple[int, ...], split: Split, where: str) -> tuple[int, tuple[int, ...]]:
    """Return the axis, and the sizes of the parts. Raises `PlanError` if they do not fit."""
    try:
        dim = dimension(split.dim, shape)
    except PlanError as error:
        error.entry = where
        raise
    count, size = len(split.names), shape[dim]
    sizes = split.sizes or (size // count,) * count
    if len(sizes) != count:
        raise PlanError(f"{len(sizes)} sizes for {count} parts", entry=where)
    if sum(sizes) != size or min(sizes) < 1:
        raise PlanError(f"{size} rows do not split into {list(sizes)}", entry=where)
    if split.heads is not None and any(n % split.heads for n in sizes):
        raise PlanError(f"{list(sizes)} are no multiples of {split.heads} heads", entry=where)
    return dim, sizes


def _part(
    values: Elements, *, dim: int, sizes: tuple[int, ...], number: int, heads: int | None
) -> Elements:
    from ckpt_surgery.compute.rearrange import part_of

    return part_of(values, dim, sizes, number, heads)


def _split(state_dict: StateDict, edits: Sequence[Split]) -> StateDict:
    by_name = {edit.name: edit for edit in edits}
    require_there(state_dict.path, by_name, state_dict.names)
    entries: list[Entry] = []
    for entry in state_dict.entries:
        edit = by_name.get(entry.name)
        if edit is None:
            entries.append(entry)
            continue
        parts = edit.parts(tensor_of(state_dict.path, entry))
        entries += (
            Entry(name, part, entry.role) for name, part in zip(edit.names, parts, strict=True)
        )
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries))


@dataclass(frozen=True, slots=True)
class Concat(BatchEdit):
    """Join the entries `names` along an axis to the entry `name`, at the place of the first.

    `heads` is as for `Split`.
    """

    kind: ClassVar[str] = "concat"
    state_dict: str
    names: tuple[str, ...]
    name: str
    dim: int = 0
    heads: int | None = None

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Concat],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with the joined entries.

        Raises `PlanError` for shapes or types that differ, `NameCollisionError` for a name twice.
        """
        return edit_state_dicts(run, checkpoint, _concat)

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the joined tensor, which is computed when it is written."""
        where = join_path(self.state_dict, self.name)
        for name, tensor in zip(self.names, tensors, strict=True):
            require_plain(self.state_dict, name, tensor)
        first = tensors[0]
        try:
            dim = dimension(self.dim, first.shape)
        except PlanError as error:
            error.entry = where
            raise
        rests = {(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors if len(t.shape) > dim}
        if len({len(t.shape) for t in tensors}) > 1 or len(rests) > 1:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise PlanError(f"{shapes} cannot be joined in dimension {self.dim}", entry=where)
        kinds = {(t.dtype, t.storage is not None and t.storage.big_endian) for t in tensors}
        if len(kinds) > 1:
            types = ", ".join(tensor.dtype.name for tensor in tensors)
            raise PlanError(f"tensors of {types} cannot be joined", entry=where)
        if self.heads is not None and any(t.shape[dim] % self.heads for t in tensors):
            raise PlanError(f"the parts are no multiples of {self.heads} heads", entry=where)
        size = sum(tensor.shape[dim] for tensor in tensors)
        shape = (*first.shape[:dim], size, *first.shape[dim + 1 :])
        compute = partial(_joined, tuple(tensors), dim, self.heads)
        big_endian = first.storage is not None and first.storage.big_endian
        made = computed_tensor(
            shape,
            first.dtype,
            compute,
            key=self.name,
            device=first.device,
            big_endian=big_endian,
            workspace=2 * sum(tensor.nbytes for tensor in tensors),
            made_of=tensors,
        )
        return replace(made, requires_grad=first.requires_grad, is_parameter=first.is_parameter)


def _joined(tensors: tuple[Tensor, ...], dim: int, heads: int | None) -> Elements:
    from ckpt_surgery.compute.rearrange import joined

    return joined([elements_of(tensor) for tensor in tensors], dim, heads)


def _concat(state_dict: StateDict, edits: Sequence[Concat]) -> StateDict:
    known = {entry.name: entry for entry in state_dict.entries}
    at_first: dict[str, Entry] = {}
    gone: set[str] = set()
    for edit in edits:
        require_there(state_dict.path, edit.names, known)
        parts = [tensor_of(state_dict.path, known[name]) for name in edit.names]
        if not parts:
            raise PlanError("nothing is joined", entry=join_path(state_dict.path, edit.name))
        at_first[edit.names[0]] = Entry(edit.name, edit.joined(parts), known[edit.names[0]].role)
        gone.update(edit.names)
    entries = [
        at_first.get(entry.name, entry)
        for entry in state_dict.entries
        if entry.name in at_first or entry.name not in gone
    ]
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries))
