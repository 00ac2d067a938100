"""What a merge computes for one name, as jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final

import torch
from torch import Tensor as Elements

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute import casting, elements
from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.jobs import Job
from ckpt_surgery.compute.spans import PIECE, RUN
from ckpt_surgery.dtypes import DType
from ckpt_surgery.merge.inputs import Inputs
from ckpt_surgery.merge.integers import merge_integers
from ckpt_surgery.merge.method import Method, Scope
from ckpt_surgery.merge.parameters import Settings
from ckpt_surgery.merge.pieces import merge_run, merge_tensor
from ckpt_surgery.merge.policies import IntegerPolicy, leading
from ckpt_surgery.startup.lazy_dataclass import dataclass

_OUTSIDE: Final = -1  # where no run of a result begins
_WORKING: Final = 8  # bytes of a number in the widest working type


@dataclass(frozen=True, slots=True)
class Task:
    """The tensors of one name and what to make of them. `base` is the method's, if it has one.

    `labels` name the files, the base last; `dtype` is the result's; `tally` counts what rounding to
    it does.
    """

    name: str
    tensors: tuple[Tensor, ...]
    base: Tensor | None
    labels: tuple[str, ...]
    dtype: DType
    method: Method
    settings: Settings
    seed: int
    allow_nonfinite: bool
    tally: CastTally

    @property
    def everything(self) -> tuple[Tensor, ...]:
        """All inputs, the base last."""
        return self.tensors if self.base is None else (*self.tensors, self.base)


class MergeJob(Job):
    """What a merge computes for one name."""


class MethodJob(MergeJob):
    """A whole tensor merged by a method, run by run."""

    def __init__(self, task: Task, shape: tuple[int, ...], *, big_endian: bool = False) -> None:
        self._task = task
        self.tally, self.made_of = task.tally, task.everything
        self._dtype = casting.real_dtype(casting.torch_dtype(task.dtype))
        self._shape = (*shape, 2) if task.dtype.kind == "complex" else shape
        self.numel = prod(self._shape)
        self.itemsize = self._dtype.itemsize
        self.big_endian = big_endian
        if task.method.scope(task.settings) is Scope.TENSOR:
            self.workspace = task.method.working_nbytes(self._shape, len(task.tensors))
        self.workspace += sum(t.nbytes for t in task.everything if not t.is_contiguous)

    def begin(self) -> tuple[Inputs, Any]:
        task = self._task
        readers = [elements.run_reader(tensor) for tensor in task.everything]
        dtypes = [casting.real_dtype(casting.torch_dtype(t.dtype)) for t in task.everything]
        inputs = Inputs(
            name=task.name,
            shape=self._shape,
            labels=task.labels,
            read=lambda which, start, stop: readers[which](start, stop),
            work=casting.work_dtype(dtypes),
            settings=task.settings,
            has_base=task.base is not None,
            seed=task.seed,
            allow_nonfinite=task.allow_nonfinite,
        )
        return inputs, task.method.measure(inputs)

    def run(self, begun: tuple[Inputs, Any], start: int, stop: int) -> Elements:
        inputs, measured = begun
        task = self._task
        return merge_run(task.method, inputs, (start, stop), self._dtype, measured, task.tally)


class _WholeJob(MergeJob):
    """A tensor computed at once."""

    def __init__(
        self, tensor: Tensor, dtype: DType, inputs: Sequence[Tensor], *, big_endian: bool
    ) -> None:
        parts = 2 if dtype.kind == "complex" else 1
        self.numel = tensor.numel * parts
        self.itemsize = dtype.itemsize // parts
        self.run_size = max(self.numel, 1)
        self.workspace = 2 * sum(each.nbytes for each in inputs) + 2 * _WORKING * self.numel
        self.big_endian = big_endian
        self.made_of = inputs

    def begin(self) -> None:
        return None


class OverlapJob(_WholeJob):
    """`onto`, whose leading block of `shape` is merged from the same block of every input."""

    def __init__(
        self, task: Task, onto: Tensor, shape: tuple[int, ...], *, big_endian: bool
    ) -> None:
        super().__init__(onto, task.dtype, task.everything, big_endian=big_endian)
        self.tally = task.tally
        self._task = task
        self._onto = onto
        self._block = leading(shape)

    def run(self, begun: None, start: int, stop: int) -> Elements:  # noqa: ARG002 - all at once
        task = self._task
        tensors = [_load(tensor)[self._block] for tensor in task.tensors]
        merged = merge_tensor(
            task.method,
            task.settings,
            task.name,
            tensors,
            None if task.base is None else _load(task.base)[self._block],
            dtype=casting.torch_dtype(task.dtype),
            labels=task.labels,
            seed=task.seed,
            allow_nonfinite=task.allow_nonfinite,
            tally=task.tally,
        )
        outside = _load(self._onto)
        outside[self._block] = 0  # what is merged has been counted
        result, count = casting.cast(outside, merged.dtype)
        task.tally.add(count, part=_OUTSIDE)
        result[self._block] = merged
        return casting.real_view(result).reshape(-1)


class IntegerJob(_WholeJob):
    """Integers or bools merged by a policy; the first tensor is the base's."""

    def __init__(
        self,
        name: str,
        tensors: tuple[Tensor, ...],
        policy: IntegerPolicy,
        labels: tuple[str, ...],
        *,
        big_endian: bool,
    ) -> None:
        super().__init__(tensors[0], tensors[0].dtype, tensors, big_endian=big_endian)
        self._merge: Callable[[], Elements] = lambda: merge_integers(
            name, [_load(tensor) for tensor in tensors], policy, labels=labels
        )

    def run(self, begun: None, start: int, stop: int) -> Elements:  # noqa: ARG002 - all at once
        return self._merge().reshape(-1)


def _load(tensor: Tensor) -> Elements:
    """Return a strided tensor of a type that is not packed, in memory, in its own shape."""
    loaded = elements.load_elements(tensor)
    if loaded is None:
        raise TypeError(tensor.dtype)
    return loaded.reshape(tensor.shape)


def require_equal_integers(name: str, tensors: Sequence[Tensor], labels: Sequence[str]) -> None:
    """Raise `MismatchError` unless all integers or bools are equal, reading them in pairs."""
    first = _load(tensors[0])
    for label, tensor in zip(labels[1:], tensors[1:], strict=True):
        merge_integers(name, [first, _load(tensor)], "error", labels=[labels[0], label])


def are_equal(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors that have no arithmetic hold the same stored elements."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    if left.storage is None or right.storage is None:
        return False
    loaded = [elements.load_elements(tensor) for tensor in (left, right)]
    if loaded[0] is not None and loaded[1] is not None:
        return torch.equal(loaded[0].view(torch.uint8), loaded[1].view(torch.uint8))
    if (left.stride, left.offset) != (right.stride, right.offset):
        return False
    pairs = zip(left.storage.data.chunks(), right.storage.data.chunks(), strict=False)
    return left.storage.nbytes == right.storage.nbytes and all(a == b for a, b in pairs)


def running_nbytes(inputs: int, threads: int) -> int:
    """Return bytes that the threads take beside results that wait:
    pieces of inputs, runs of results.
    """
    return threads * (RUN * 4 + PIECE * _WORKING * (2 * inputs + 6))
