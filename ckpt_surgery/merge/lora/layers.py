"""Layers of a new adapter, and the adapter that they make. Importable without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Tensor
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.dtypes import DType
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.merge.lora.parts import PEFT_PREFIX
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import torch

_FRAMEWORK: Final = {"format": "pt"}
"""What PEFT's loader wants to read in the metadata of a file."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A module's factors: `up` and `down` as the layer's kind shapes them; their scale is 1.

    `error` is the length of what they leave out through that of what they stand for.
    """

    module: str
    up: torch.Tensor
    down: torch.Tensor
    error: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.down.shape[0])


def peft_entries(layers: Sequence[Layer], dtype: DType) -> list[Entry]:
    """Return the entries of an adapter as PEFT names them."""
    entries = []
    for layer in layers:
        start = f"{PEFT_PREFIX}{layer.module.removeprefix(PEFT_PREFIX)}"
        inner = "lora_embedding_" if layer.embedding else "lora_"
        end = "" if layer.embedding else ".weight"
        for which, values in (("A", layer.down), ("B", layer.up)):
            entries.append(_entry(f"{start}.{inner}{which}{end}", values, dtype))
    return entries


def other_entries(layers: Sequence[Layer], dtype: DType) -> list[Entry]:
    """Return the entries as kohya's scripts name them, or, with dots, diffusers and PEFT."""
    entries = []
    for layer in layers:
        names = ("lora_A", "lora_B") if "." in layer.module else ("lora_down", "lora_up")
        for which, values in zip(names, (layer.down, layer.up), strict=True):
            entries.append(_entry(f"{layer.module}.{which}.weight", values, dtype))
        if "." not in layer.module:
            entries.append(_number(f"{layer.module}.alpha", layer.rank, dtype))
    return entries


def _entry(name: str, values: torch.Tensor, dtype: DType) -> Entry:
    from ckpt_surgery.compute.casting import round_to, torch_dtype

    rounded = round_to(values, torch_dtype(dtype)).contiguous()
    return Entry(name, _held(name, rounded, dtype), "parameter")


def _number(name: str, value: float, dtype: DType) -> Entry:
    import torch

    from ckpt_surgery.compute.casting import torch_dtype

    return Entry(name, _held(name, torch.tensor(value, dtype=torch_dtype(dtype)), dtype), "buffer")


def _held(name: str, values: torch.Tensor, dtype: DType) -> Tensor:
    return computed_tensor(tuple(values.shape), dtype, lambda: values, key=name)


def adapter_checkpoint(entries: Sequence[Entry], sources: Sequence[Source]) -> Checkpoint:
    """Return the adapter as a checkpoint that was made from files."""
    return Checkpoint(
        format="safetensors",
        sources=tuple(sources),
        root=None,
        state_dicts=(StateDict("", "model", tuple(entries)),),
        others=(Other(METADATA, "dict", _FRAMEWORK),),
    )


def peft_config(layers: Sequence[Layer], *, fan_in_fan_out: bool = False) -> dict[str, Any]:
    """Return ``adapter_config.json``: the commonest rank, and the others by module."""
    modules = {layer.module.removeprefix(PEFT_PREFIX): layer.rank for layer in layers}
    common = Counter(modules.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in modules.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": list(modules),
        "rank_pattern": {f"^{_literal(module)}": rank for module, rank in others.items()},
        "alpha_pattern": {f"^{_literal(module)}": rank for module, rank in others.items()},
    }


def _literal(module: str) -> str:
    return module.replace(".", r"\.")
