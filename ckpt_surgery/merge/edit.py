"""Putting numbers that are computed from several files in the place of a tensor's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar, cast

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    StateDict,
    Storage,
    Tensor,
    contiguous_strides,
    join_path,
)
from ckpt_surgery.dtypes import BY_NAME, UNTYPED, DType
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import require_there, state_dict_at, with_state_dicts
from ckpt_surgery.edits.take import source_state_dict
from ckpt_surgery.errors import PlanError
from ckpt_surgery.merge.method import Method, find
from ckpt_surgery.merge.parameters import Settings, Value
from ckpt_surgery.merge.policies import IntegerPolicy
from ckpt_surgery.merge.rows import Rows, gathered
from ckpt_surgery.pickles import Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.math_bits import math_bits

if TYPE_CHECKING:
    from ckpt_surgery.compute.jobs import Job


@dataclass(frozen=True, slots=True)
class MergeSource:
    """Where an input of a merge is: the entry `entry` of the state dict at `state_dict` in `file`.

    `file` None is the entry that the merge is put in the place of. The other two are those of the
    merge itself if None. With `rows` the input is made of rows of all inputs, in that order.
    """

    file: str | None = None
    state_dict: str | None = None
    entry: str | None = None
    rows: tuple[Rows, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge(BatchEdit):
    """Put numbers that are computed from all `inputs` in the place of a tensor's.

    `method` computes them with `weights` and `values` (a value for each input, or one for all);
    what it measures differences from is the entry itself, if it needs such a base. Integers
    are merged by the policy `integers` instead. `dtype` is the result's type if it is another than
    the entry's, `overlap` the shape of the leading block that is merged, the entry keeping the
    rest. `seed` and the entry's path decide random numbers. With `rows` the entry, too, is made of
    rows of the inputs before the merge.
    """

    kind: ClassVar[str] = "merge"
    state_dict: str
    name: str
    method: str
    inputs: tuple[MergeSource, ...]
    weights: tuple[float, ...] = ()
    values: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    integers: IntegerPolicy | None = None
    dtype: str | None = None
    overlap: tuple[int, ...] | None = None
    seed: int = 0
    allow_nonfinite: bool = False
    rows: tuple[Rows, ...] = ()

    @property
    def path(self) -> str:
        """The entry's state dict and name, by which messages call it."""
        return join_path(self.state_dict, self.name)

    @classmethod
    def apply_all(cls, run: Sequence[Merge], checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint with the results, which are computed when they are written.

        What all inputs tie is computed once and stays tied. Needs torch.
        """
        from ckpt_surgery.compute.elements import require_torch

        require_torch()
        return _Merging(checkpoint, inputs).carry_out(run)


@dataclass(frozen=True, slots=True)
class _Merged:
    """The new entry for one that was `own`; `same_type` unless its element type changed."""

    own: Entry
    entry: Entry
    same_type: bool


class _Merging:
    """A run of merges being put into a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, inputs: Inputs) -> None:
        self._checkpoint = checkpoint
        self._inputs = inputs
        self._tables: dict[tuple[str | None, str], Mapping[str, Entry]] = {}
        self._ties: dict[object, Tensor] = {}
        self._bind = cache(_bind)
        self._done: dict[tuple[str, str], _Merged] = {}

    def carry_out(self, run: Sequence[Merge]) -> Checkpoint:
        for edit in run:
            self._done[edit.state_dict, edit.name] = self._merged(edit)
        moved = self._keep_nodes()
        changed: dict[str, StateDict | None] = {}
        for path in {path for path, _ in self._done}:
            state_dict = state_dict_at(self._checkpoint, path)
            entries = (
                self._done[path, entry.name].entry if (path, entry.name) in self._done else entry
                for entry in state_dict.entries
            )
            changed[path] = replace(state_dict, entries=tuple(entries))
        result = with_state_dicts(self._checkpoint, changed)
        return replace(result, moved={**result.moved, **moved})

    def _entry(self, file: str | None, path: str, name: str) -> Entry:
        table = self._tables.get((file, path))
        if table is None:
            found = (
                state_dict_at(self._checkpoint, path)
                if file is None
                else source_state_dict(self._inputs, file, path)
            )
            table = self._tables[file, path] = {entry.name: entry for entry in found.entries}
        if name not in table:
            require_there(path, [name], table)
        return table[name]

    def _sources(self, edit: Merge) -> list[tuple[str, Tensor]]:
        """Return the label and the tensor of each input."""
        found: list[tuple[str, Tensor]] = []
        for source in edit.inputs:
            path = edit.state_dict if source.state_dict is None else source.state_dict
            entry = self._entry(source.file, path, source.entry or edit.name)
            if entry.tensor is None or entry.tensor.storage is None:
                raise PlanError(f"'{entry.name}' is no strided tensor", path=source.file)
            found.append((source.file or self._checkpoint.file.name, entry.tensor))
        return found

    def _in_rows(
        self, edit: Merge, own: Tensor, sources: list[tuple[str, Tensor]]
    ) -> tuple[Tensor, list[tuple[str, Tensor]]]:
        """Return the entry and the inputs, their rows in the order that the edit says."""
        if not edit.rows and not any(source.rows for source in edit.inputs):
            return own, sources
        tensors = [tensor for _, tensor in sources]

        def put(tensor: Tensor, rows: tuple[Rows, ...]) -> Tensor:
            return gathered(own, tensors, tensor, rows) if rows else tensor

        moved = [
            (label, put(tensor, source.rows))
            for source, (label, tensor) in zip(edit.inputs, sources, strict=True)
        ]
        return put(own, edit.rows), moved

    def _merged(self, edit: Merge) -> _Merged:
        if (edit.state_dict, edit.name) in self._done:  # of what the first one made
            raise PlanError(f"the plan merges '{edit.path}' twice without anything between")
        own = self._entry(None, edit.state_dict, edit.name)
        sources = self._sources(edit)
        if own.tensor is None or own.tensor.storage is None:
            raise PlanError(f"'{edit.path}' is no strided tensor")
        dtype = own.tensor.dtype if edit.dtype is None else _dtype(edit)
        place = (
            (edit.method, edit.weights, tuple(edit.values.items()), edit.integers, edit.seed),
            (edit.overlap, edit.allow_nonfinite, dtype.name),
            tuple(tensor.identity for tensor in (own.tensor, *(t for _, t in sources))),
            (edit.rows, *(source.rows for source in edit.inputs)),
        )
        tensor = self._ties.get(place)
        if tensor is None:
            before, sources = self._in_rows(edit, own.tensor, sources)
            job = self._job(edit, before, sources, dtype)
            tensor = self._ties[place] = computed_in_place(before, dtype, job)
        tensor = replace(
            tensor,
            node=own.tensor.node,
            requires_grad=own.tensor.requires_grad,
            is_parameter=own.tensor.is_parameter,
        )
        stays = dtype == own.tensor.dtype and not edit.rows  # a node knows its shape
        return _Merged(own, replace(own, tensor=tensor), stays)

    def _job(
        self, edit: Merge, own: Tensor, sources: Sequence[tuple[str, Tensor]], dtype: DType
    ) -> Job:
        from ckpt_surgery.compute.casts import CastTally
        from ckpt_surgery.merge.jobs import IntegerJob, MethodJob, OverlapJob, Task

        labels = tuple(label for label, _ in sources)
        tensors = tuple(tensor for _, tensor in sources)
        big_endian = own.storage is not None and own.storage.big_endian
        here = self._checkpoint.file.name
        if edit.integers is not None:
            others = [n for n, source in enumerate(edit.inputs) if source != MergeSource()]
            return IntegerJob(
                edit.path,
                (own, *(tensors[n] for n in others)),
                edit.integers,
                (here, *(labels[n] for n in others)),
                big_endian=big_endian,
            )
        method, settings = self._bind(
            edit.method, len(tensors), edit.weights, tuple(edit.values.items())
        )
        task = Task(
            name=edit.path,
            tensors=tensors,
            base=own if method.needs_base else None,
            labels=(*labels, here) if method.needs_base else labels,
            dtype=dtype,
            method=method,
            settings=settings,
            seed=edit.seed,
            allow_nonfinite=edit.allow_nonfinite,
            tally=CastTally(edit.path, own.dtype.name, dtype.name, own.numel),
        )
        if edit.overlap is not None:
            return OverlapJob(task, own, edit.overlap, big_endian=big_endian)
        return MethodJob(task, own.shape, big_endian=big_endian)

    def _keep_nodes(self) -> dict[int, Tensor]:
        """Let entries keep the node they were read with, and with it what torch never sees.

        A node can be moved to another place if it stays one tensor of one type. The result has the
        tensors of those that move.
        """
        by_node: dict[int, set[int]] = {}
        for merged in self._done.values():
            tensor = cast("Tensor", merged.entry.tensor)
            by_node.setdefault(id(tensor.node), set()).add(id(tensor.storage))
        for state_dict in self._checkpoint.state_dicts:
            for name, tensor in state_dict.tensors:
                if (state_dict.path, name) not in self._done and id(tensor.node) in by_node:
                    by_node[id(tensor.node)].add(0)  # it stays what it is there
        moved: dict[int, Tensor] = {}
        for key, merged in self._done.items():
            tensor = cast("Tensor", merged.entry.tensor)
            movable = merged.same_type and isinstance(tensor.node, Object)
            if movable and not any(math_bits(tensor)) and len(by_node[id(tensor.node)]) == 1:
                moved[id(tensor.node)] = tensor
            else:
                bare = replace(tensor, node=None)
                self._done[key] = replace(
                    merged, entry=replace(merged.entry, node=None, tensor=bare)
                )
        return moved


def _bind(
    name: str,
    count: int,
    weights: tuple[float, ...],
    values: tuple[tuple[str, Value | tuple[Value, ...]], ...],
) -> tuple[Method, Settings]:
    method = find(name)
    settings = method.bind(
        count, has_base=method.needs_base, weights=weights or None, values=dict(values)
    )
    return method, settings


def _dtype(edit: Merge) -> DType:
    found = BY_NAME.get(edit.dtype or "")
    if found is None:
        raise PlanError(f"there is no element type '{edit.dtype}'", entry=edit.path)
    return found


def computed_in_place(own: Tensor, dtype: DType, job: Job) -> Tensor:
    """Return the description of what a job makes, to stand in the place of `own`."""
    from ckpt_surgery.compute.jobs import JobBytes

    untyped = dtype.storage_class is None
    if own.storage is not None and own.dtype == dtype:
        untyped = own.storage.untyped
    storage = Storage(
        "merged",
        UNTYPED if untyped else dtype,
        own.storage.device if own.storage is not None else own.device,
        JobBytes(job),
        untyped=untyped,
        big_endian=job.big_endian,
    )
    return replace(
        own, dtype=dtype, stride=contiguous_strides(own.shape), offset=0, storage=storage
    )
