"""What `inspect` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Entry, Other, StateDict, Tensor, join_path
from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import plain_value, type_name

if TYPE_CHECKING:
    from ckpt_surgery.compute.stats import TensorStats
    from ckpt_surgery.torch_objects.safe_loading import SafeLoading
    from ckpt_surgery.training.documents import AverageFacts, TrainingFacts


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the tensors of the listed state dicts.

    `numel` counts elements; `nbytes` the bytes of every tensor's elements, `storage_nbytes` those
    of the storages that they lie in, each once, `unused_nbytes` the bytes of these that no tensor
    of the file uses.
    """

    tensors: int
    numel: int
    nbytes: int
    storage_nbytes: int
    unused_nbytes: int

    def to_dict(self) -> dict[str, int]:
        return {
            "tensors": self.tensors,
            "numel": self.numel,
            "nbytes": self.nbytes,
            "storage_nbytes": self.storage_nbytes,
            "unused_nbytes": self.unused_nbytes,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands: `index` in its state dict, `parameter` among the parameters.

    `parameter` is None for a buffer. As in ``model.parameters()``, a tied parameter counts where
    it first appears.
    """

    index: int
    parameter: int | None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What is in a file. `state_dicts` hold the entries that were asked for, `totals` sum them."""

    file: str
    format: str
    size: int
    state_dicts: tuple[StateDict, ...]
    others: tuple[Other, ...]
    totals: Totals
    ties: tuple[tuple[str, ...], ...] = ()
    globals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stats: Mapping[str, TensorStats | None] = field(default_factory=dict)
    """By ``path/name``; empty unless they were asked for."""
    details: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Counts by the path of another entry: an optimizer's ``groups`` and ``states``."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """By ``path/name``, in the whole state dict even where only a part of it is listed."""
    training: Mapping[str, TrainingFacts] = field(default_factory=dict)
    """By the path of another entry."""
    averaged: Mapping[str, int] = field(default_factory=dict)
    """By the path of a moving average: how many models it has taken in."""
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By the path of another entry: the plain values in it, by their paths there."""
    weights_only: SafeLoading | None = None
    """Whether ``torch.load(weights_only=True)`` takes the file; None without a pickle, or if it was
    not asked for."""
    averages: tuple[AverageFacts, ...] = ()
    """The moving averages, wherever they lie."""
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What state dicts were recognised as, by their path; its ``summary`` is a sentence."""
    declared: str = ""
    """What a file beside the weights calls the model: ``config.json``."""
    files: tuple[str, ...] = ()
    """The shards, if the checkpoint comes from several files."""
    provenance: tuple[Mapping[str, Any], ...] = ()
    """What the file says was done to make it, in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", once(self.notes))

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope(
                "inspect", exit_code=self.exit_code, inputs=(self.file,), warnings=self.notes
            ),
            "file": self.file,
            "format": self.format,
            "size": self.size,
            "state_dicts": [self._state_dict(state_dict) for state_dict in self.state_dicts],
            "other": [self._other(other) for other in self.others],
            "totals": self.totals.to_dict(),
            "averages": [each.to_dict() for each in self.averages],
            "ties": [list(names) for names in self.ties],
            "globals": list(self.globals),
            "declared_architecture": self.declared or None,
            "shards": list(self.files),
            "provenance": [dict(step) for step in self.provenance],
            "weights_only": None if self.weights_only is None else self.weights_only.to_dict(),
        }

    def _state_dict(self, state_dict: StateDict) -> dict[str, Any]:
        found: dict[str, Any] = {"path": state_dict.path, "kind": state_dict.kind}
        if state_dict.path in self.averaged:
            found["n_averaged"] = self.averaged[state_dict.path]
        if state_dict.path in self.architectures:
            found["architecture"] = dict(self.architectures[state_dict.path])
        inner = [_no_tensor(entry) for entry in state_dict.entries if entry.tensor is None]
        if inner:
            found["other"] = inner
        return found | {
            "tensors": [
                self._tensor(state_dict, entry, entry.tensor)
                for entry in state_dict.entries
                if entry.tensor is not None
            ],
        }

    def _tensor(self, state_dict: StateDict, entry: Entry, tensor: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": entry.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "role": entry.role,
            "numel": tensor.numel,
            "nbytes": tensor.nbytes,
            "device": tensor.device,
            "storage": None if tensor.storage is None else tensor.storage.key,
            "offset": tensor.offset,
            "stride": list(tensor.stride),
        }
        if tensor.layout != "strided":
            found["layout"] = tensor.layout
        if tensor.shard is not None:
            found["shard"] = tensor.shard.to_dict()
        stats = self.stats.get(join_path(state_dict.path, entry.name))
        if stats is not None:
            found["stats"] = stats.to_dict()
        return found

    def _other(self, other: Other) -> dict[str, Any]:
        found: dict[str, Any] = {"path": other.path, "type": other.type}
        if other.value is not None:
            found["value"] = other.value
        if other.tensors:
            found["tensors"] = len(other.tensors)
            found["nbytes"] = sum(tensor.nbytes for tensor in other.tensors)
        found |= self.details.get(other.path, {})
        values = dict(self.values.get(other.path, {}))
        if "" in values:
            found["value"] = values.pop("")
        if values:
            found["values"] = values
        if other.path in self.training:
            found["training"] = self.training[other.path].to_dict()
        return found


def _no_tensor(entry: Entry) -> dict[str, Any]:
    """Return what is said of an entry among the weights that is no tensor."""
    found: dict[str, Any] = {"name": entry.name, "type": type_name(entry.node)}
    value = plain_value(entry.node)
    if value is not None:
        found["value"] = value
    if entry.tensors:
        found["tensors"] = len(entry.tensors)
        found["nbytes"] = sum(tensor.nbytes for tensor in entry.tensors)
    return found
