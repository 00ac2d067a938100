"""What edits of a tensor's elements have in common: the shape beforehand, the elements later."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self, TypeAlias

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.compute.casts import CastCount, CastTally
from ckpt_surgery.compute.element_job import ElementJob
from ckpt_surgery.compute.elements import can_load, load_elements
from ckpt_surgery.compute.jobs import JobBytes
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.dtypes import DType
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_there
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass

Elements: TypeAlias = Any
"""``torch.Tensor``, which is not imported here."""


@dataclass(frozen=True, slots=True)
class ValueEdit(BatchEdit):
    """An edit of the elements of one tensor; names that are tied to it and edited alike stay tied.

    `moments` says what becomes of those that an optimizer has of the parameter: where numbers only
    get another place they ``move``, where numbers change they begin ``anew``, and where only the
    element type does they ``stay``, since an optimizer casts them when it loads them. `counts` says
    that numbers are computed, which the element type may not hold: `counted` tells which.
    """

    moments: ClassVar[Literal["move", "anew", "stay"]] = "move"
    counts: ClassVar[bool] = False
    state_dict: str
    name: str

    @abstractmethod
    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return what becomes of a shape. Raises `PlanError` if it does not fit."""

    @abstractmethod
    def compute(self, values: Elements) -> Elements:
        """Return what becomes of the elements; the result may be a view."""

    def counted(self, values: Elements, count: Callable[[CastCount], None]) -> Elements:  # noqa: ARG002 - nothing is lost
        """Return what `compute` does, and tell `count` what the element type did to numbers."""
        return self.compute(values)

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return the changed tensor, whose elements are computed when they are written.

        Raises `PlanError` if it does not fit, or if its elements cannot be changed one by one.
        """
        require_plain(self.state_dict, self.name, tensor)
        try:
            shape = self.shape(tensor.shape)
        except PlanError as error:
            error.entry = error.entry or join_path(self.state_dict, self.name)
            raise
        if not self.counts:
            return lazily(tensor, shape, tensor.dtype, self.compute, self.name)
        tally = tally_of(self.state_dict, self.name, tensor)
        compute = partial(self.counted, count=tally.add)
        return lazily(tensor, shape, tensor.dtype, compute, self.name, tally)

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Self],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these tensors changed."""
        made: dict[object, Tensor] = {}

        def change(state_dict: StateDict, edits: Sequence[ValueEdit]) -> StateDict:
            entries = {entry.name: entry for entry in state_dict.entries}
            for edit in edits:
                require_there(state_dict.path, [edit.name], entries)
                entry = entries[edit.name]
                key = (identity_of(entry.tensor), replace(edit, state_dict="", name=""))
                if key not in made:
                    made[key] = edit.tensor(tensor_of(state_dict.path, entry))
                entries[edit.name] = replace(entry, tensor=made[key], node=None)
            return replace(state_dict, entries=tuple(entries.values()))

        return edit_state_dicts(run, checkpoint, change)


def identity_of(tensor: Tensor | None) -> object:
    """Return what is equal for tensors that are the same elements of one storage."""
    if tensor is None or tensor.storage is None:
        return id(tensor)
    return id(tensor.storage), tensor.offset, tensor.shape, tensor.stride


def tensor_of(path: str, entry: Entry) -> Tensor:
    """Return the tensor of an entry. Raises `PlanError` if it is none."""
    if entry.tensor is None:
        raise PlanError("it is no tensor", entry=join_path(path, entry.name))
    return entry.tensor


def require_plain(path: str, name: str, tensor: Tensor) -> None:
    """Raise `PlanError` for a tensor whose elements cannot be read one by one, or are not all that
    it is: the numbers of a quantized one mean nothing without its scale, those of a shard no whole.
    """
    require_strided(path, name, tensor)
    if not can_load(tensor):
        what = tensor.layout if tensor.storage is None else tensor.dtype.name
        raise PlanError(
            f"a tensor of '{what}' cannot be changed by its elements", entry=join_path(path, name)
        )


def require_strided(path: str, name: str, tensor: Tensor) -> None:
    """Raise `PlanError` for a tensor that has more to it than its elements."""
    if tensor.storage is not None and tensor.layout != "strided":
        raise PlanError(
            f"a tensor of layout '{tensor.described_layout}' has more to it than its elements",
            entry=join_path(path, name),
            hint="leave it out of what is edited",
        )


def tally_of(path: str, name: str, tensor: Tensor) -> CastTally:
    """Return what counts the numbers that the element type of a tensor does not hold."""
    return CastTally(join_path(path, name), tensor.dtype.name, tensor.dtype.name, tensor.numel)


def lazily(
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: DType,
    compute: Callable[[Elements], Elements],
    name: str,
    tally: CastTally | None = None,
) -> Tensor:
    """Return a tensor of `shape` that `compute` makes of the elements of `tensor` when written.

    `compute` tells the `tally`, if there is one, what its numbers lose.
    """
    big_endian = tensor.storage is not None and tensor.storage.big_endian
    made = computed_tensor(
        shape,
        dtype,
        lambda: compute(elements_of(tensor)),
        key=name,
        device=tensor.device,
        big_endian=big_endian,
        tally=tally,
        workspace=tensor.nbytes,
        made_of=(tensor,),
    )
    return replace(made, requires_grad=tensor.requires_grad, is_parameter=tensor.is_parameter)


def elements_of(tensor: Tensor) -> Elements:
    """Return the elements of a plain tensor in memory, in its shape."""
    data = None if tensor.storage is None else tensor.storage.data
    job = data.job if isinstance(data, JobBytes) else None
    if isinstance(job, ElementJob) and tensor.is_contiguous and tensor.nbytes == job.nbytes:
        return job.begin().reshape(tensor.shape)  # no need to lay out what is laid out again
    elements = load_elements(tensor)
    if elements is None:
        raise PlanError(f"a tensor of '{tensor.dtype.name}' cannot be read by its elements")
    return elements.reshape(tensor.shape)


def dimension(dim: int, shape: Sequence[int]) -> int:
    """Return `dim` counted from the front. Raises `PlanError` if there is none."""
    if not -len(shape) <= dim < len(shape):
        raise PlanError(f"there is no dimension {dim} in {list(shape)}")
    return dim % len(shape)
