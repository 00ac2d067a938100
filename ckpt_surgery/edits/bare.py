"""Tensors and nothing else: a state dict without whatever else its writer put into it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.compact import compact
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage, Tensor
from ckpt_surgery.checkpoint.select import alone
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import state_dict_at
from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.row_major import row_major


@dataclass(frozen=True, slots=True)
class OnlyTensors(Edit):
    """Make the tensors of the state dict at `path` the whole file, each rebuilt on the CPU.

    Nothing of the old graph and archive is left: no metadata, attribute, hook or class, no entry
    that is no tensor, no record, no byte of a storage that no tensor uses.
    """

    kind: ClassVar[str] = "only-tensors"
    path: str

    def path_after(self, path: str) -> str | None:
        """Return the top level for that state dict, and None for all else."""
        return "" if path == self.path else None

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return a checkpoint of the tensors. Raises `LossyEditError` for one in several parts."""
        checkpoint = compact(alone(checkpoint, state_dict_at(checkpoint, self.path)))
        (state_dict,) = checkpoint.state_dicts
        moved: dict[Hashable, Storage] = {}
        entries = tuple(
            Entry(entry.name, _bare(entry.name, entry.tensor, moved), entry.role)
            for entry in state_dict.entries
            if entry.tensor is not None
        )
        return replace(
            checkpoint,
            root=None,
            container=None,
            state_dicts=(StateDict("", state_dict.kind, entries, missing=state_dict.missing),),
            globals=(),
            moved={},
            replaced={},
        )


def _bare(name: str, tensor: Tensor, moved: dict[Hashable, Storage]) -> Tensor:
    """Return a tensor without its node: what is written for it is made anew."""
    if tensor.storage is None or tensor.layout != "strided":
        raise LossyEditError(
            f"a tensor of layout '{tensor.layout}' has more to it than numbers",
            entry=name,
            hint=f"take it out first: ckpt strip --name '{name}'",
        )
    bare = replace(
        tensor, device="cpu", requires_grad=False, is_parameter=False, node=None, parts=()
    )
    if tensor.storage.big_endian or any(math_bits(tensor)):
        return _as_shown(tensor, bare, moved)
    storage = moved.get(tensor.storage)
    if storage is None:
        storage = moved[tensor.storage] = replace(tensor.storage, device="cpu")
    return replace(bare, storage=storage)


def _as_shown(tensor: Tensor, bare: Tensor, moved: dict[Hashable, Storage]) -> Tensor:
    """Return the tensor in a storage of the numbers that torch shows, which tensors tied to it
    share.
    """
    stride: list[int] = []
    step = 1
    for n in reversed(tensor.shape):
        stride.append(step)
        step *= max(n, 1)
    old = tensor.storage
    assert old is not None  # noqa: S101  # what strided means
    place = (old, tensor.offset, tensor.shape, tensor.stride, math_bits(tensor))
    if place not in moved:
        data = row_major(tensor)
        moved[place] = replace(old, data=data, device="cpu", big_endian=False)
    return replace(bare, storage=moved[place], offset=0, stride=tuple(reversed(stride)))
