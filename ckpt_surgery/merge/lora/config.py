"""What ``adapter_config.json`` says of an adapter: ranks, scales, and what cannot be folded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.startup.lazy_dataclass import dataclass

CONFIG_NAME: Final = "adapter_config.json"
_METADATA_KEY: Final = "lora_adapter_metadata"
"""Where diffusers keeps the configurations of a file, each key after its component's name."""

_MAX_BYTES: Final = 1 << 22
_DEFAULT_ALPHA: Final = 8
"""PEFT's, where a configuration says none."""

# The base that such an adapter was trained on is not the base that the user has.
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOT_FOLDED: Final = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "an activated LoRA",
    "use_bdlora": "a block-diagonal LoRA",
    "arrow_config": "a router of adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layers that are there several times",
    "target_parameters": "parameters that are no module's weight",
    "trainable_token_indices": "rows of embeddings that were trained",
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Ranks and scales: `rank` and `alpha` for modules that no pattern names (None: not said)."""

    rank: int | None = None
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    fan_in_fan_out: bool = False

    def scale(self, module: str, rank: int) -> float:
        """Return what the product of a module's factors is multiplied by.

        Raises `PlanError` if they have another rank than the configuration says.
        """
        said = self.ranks.get(_pattern(self.ranks, module) or "", self.rank)
        if said is not None and said != rank:
            raise PlanError(f"its factors have rank {rank}, and {CONFIG_NAME} says {said}")
        alpha = self.alphas.get(_pattern(self.alphas, module) or "", self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _pattern(patterns: Mapping[str, object], module: str) -> str | None:
    """Return the pattern that a module matches: as PEFT does, at its end or after a dot."""
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise PlanError(f"{CONFIG_NAME} has no pattern in '{pattern}': {error}") from error
    return None


def beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the configuration that lies beside a file called ``adapter_model.*``; None without.

    Raises `ReadError` if it cannot be read.
    """
    path = checkpoint.file.path
    if path is None:
        return None
    place = Path(path)
    config = (place if place.is_dir() else place.parent) / CONFIG_NAME
    if not (place.is_dir() or place.stem == "adapter_model") or not config.is_file():
        return None
    file = FileSource.open(config)
    try:
        if file.size > _MAX_BYTES:
            raise UsageError(f"it has {file.size:,} bytes", path=config)
        return load_object(file.read_at(0, file.size), path=str(config), what=CONFIG_NAME)
    finally:
        file.close()


def in_metadata(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the configurations that a safetensors file of diffusers has in its metadata."""
    texts = next((o.value for o in checkpoint.others if o.path == METADATA), None)
    text = texts.get(_METADATA_KEY) if isinstance(texts, Mapping) else None
    if not isinstance(text, str):
        return None
    return load_object(text.encode(), path=checkpoint.file.name, what=_METADATA_KEY)


def of_component(found: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Return the configuration of a component (``unet``) out of those of a file."""
    start = f"{component}."
    return {key[len(start) :]: value for key, value in found.items() if key.startswith(start)}


def parsed(config: Mapping[str, Any], label: str) -> AdapterConfig:
    """Return what a configuration says. Raises `UsageError` for what cannot be folded."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"it is an adapter of the method '{kind}', and no LoRA", path=label)
    for key, what in _NOT_FOLDED.items():
        if config.get(key):
            raise UsageError(f"'{key}': {what} cannot be folded into weights", path=label)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UsageError(
            f"it began as '{start}', which changes the base, too",
            path=label,
            hint="save it as a plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", _DEFAULT_ALPHA)
    return AdapterConfig(
        rank=_number(rank, "r", label, int) if rank is not None else None,
        alpha=_number(alpha, "lora_alpha", label, float) if alpha is not None else None,
        ranks=_numbers(config.get("rank_pattern"), "rank_pattern", label, int),
        alphas=_numbers(config.get("alpha_pattern"), "alpha_pattern", label, float),
        rslora=config.get("use_rslora") is True,
        fan_in_fan_out=config.get("fan_in_fan_out") is True,
    )


def _numbers(found: object, key: str, label: str, kind: type[Any]) -> dict[str, Any]:
    if not found:
        return {}
    if not isinstance(found, Mapping):
        raise UsageError(f"'{key}' is no table of patterns", path=label)
    return {name: _number(value, key, label, kind) for name, value in found.items()}


def _number(value: object, key: str, label: str, kind: type[Any]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or kind(value) != value or (kind is int and value < 1):  # type: ignore[operator]
        raise UsageError(f"'{key}' is {value!r}, which is no number for it", path=label)
    return kind(value)
