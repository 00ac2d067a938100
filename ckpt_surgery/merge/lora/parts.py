"""The entries of an adapter by what they are: factors, scales, whole weights. Torch-free.

Namings (all end in one of `_PARTS`; what stands before it is the module):

- PEFT: ``base_model.model.M.lora_A.weight``, ``lora_embedding_A``, ``lora_magnitude_vector``
- kohya's sd-scripts: ``lora_unet_M_WITH_UNDERSCORES.lora_down.weight``, ``.alpha``, ``.dora_scale``
- diffusers: ``unet.M.lora.down.weight``, ``text_encoder.M.lora_linear_layer.down.weight``,
  ``unet.M.processor.to_q_lora.down.weight``, and PEFT's after ``unet.`` and the like
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ckpt_surgery.checkpoint.description import Entry, Tensor
from ckpt_surgery.errors import PlanError, UsageError

PEFT_PREFIX: Final = "base_model.model."

_NAME: Final = r"(?:\.(?P<adapter>[^.]+))?"  # an adapter's own name, in a model's state dict
_PARTS: Final = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("down", rf"(?P<module>.+)\.lora_A{_NAME}\.weight"),
        ("up", rf"(?P<module>.+)\.lora_B{_NAME}\.weight"),
        ("bias", rf"(?P<module>.+)\.lora_B{_NAME}\.bias"),
        ("embedding_down", rf"(?P<module>.+)\.lora_embedding_A{_NAME}"),
        ("embedding_up", rf"(?P<module>.+)\.lora_embedding_B{_NAME}"),
        ("magnitude", r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?"),
        ("magnitude", rf"(?P<module>.+)\.lora_magnitude_vector{_NAME}(?:\.weight)?"),
        ("magnitude", r"(?P<module>.+)\.dora_scale"),
        ("down", r"(?P<module>.+)\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight"),
        ("up", r"(?P<module>.+)\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight"),
        ("mid", r"(?P<module>.+)\.lora_mid\.weight"),
        ("down", r"(?P<module>.+\.processor\.to_[a-z]+_lora)\.down\.weight"),
        ("up", r"(?P<module>.+\.processor\.to_[a-z]+_lora)\.up\.weight"),
        ("alpha", r"(?P<module>.+)\.alpha"),
        ("difference", r"(?P<module>.+)\.diff"),
        ("bias_difference", r"(?P<module>.+)\.diff_b"),
    )
)
_PROCESSOR: Final = re.compile(r"(.+)\.processor\.(to_[a-z]+)_lora")
_OTHER_METHODS: Final = (
    (re.compile(r"\.hada_[wt]\d"), "LoHa"),
    (re.compile(r"\.lokr_[wt]\d"), "LoKr"),
    (re.compile(r"\.oft_|\.boft_"), "OFT"),
    (re.compile(r"\.ia3_|\.on_input$"), "IA3"),
    (re.compile(r"\.vera_lambda|\.vera_[AB]"), "VeRA"),
    (re.compile(r"\.trainable_tokens_"), "trainable tokens"),
    (re.compile(r"\.lora_E\b|\.ranknum"), "AdaLoRA"),
    (re.compile(r"prompt_embeddings|prompt_encoder"), "prompt tuning"),
    (re.compile(r"\.w_norm$|\.b_norm$"), "norms of LyCORIS"),
)


@dataclass(slots=True)
class Module:
    """What an adapter has for one module, called as it calls it.

    `entries` are by their part: ``down``, ``up``, ``mid``, ``magnitude``, ``alpha``, ``bias``,
    ``difference``, ``bias_difference``. Of an embedding the factors act on the transposed weight.
    """

    name: str
    entries: dict[str, Entry] = field(default_factory=dict)
    embedding: bool = False

    def tensor(self, part: str) -> Tensor | None:
        """Return the tensor of a part, None without."""
        entry = self.entries.get(part)
        return None if entry is None else entry.tensor


@dataclass(slots=True)
class Parts:
    """An adapter's entries: `modules` by name, and those that are `whole` weights of the model."""

    modules: dict[str, Module] = field(default_factory=dict)
    whole: list[Entry] = field(default_factory=list)

    @property
    def is_pefts(self) -> bool:
        """Whether names are PEFT's own, whose scales lie in a configuration beside the file."""
        return any(name.startswith(PEFT_PREFIX) for name in self.modules)


def parts_of(entries: Iterable[Entry], label: str) -> Parts:
    """Return the parts of the adapter in the file `label`.

    Raises `UsageError` for another method than LoRA, for several adapters in one file, and if
    nothing is one; `PlanError` for a factor without its other half.
    """
    found = Parts()
    adapters: set[str] = set()
    for entry in entries:
        part, name, adapter = _part(entry.name)
        if adapter:
            adapters.add(adapter)
        if part is None or entry.tensor is None:
            _require_lora(entry.name, label)
            found.whole.append(entry)
            continue
        module = found.modules.setdefault(name, Module(name))
        if part.startswith("embedding_"):
            module.embedding, part = True, part.removeprefix("embedding_")
        module.entries[part] = entry
    if len(adapters) > 1:
        names = ", ".join(f"'{each}'" for each in sorted(adapters))
        raise UsageError(f"it holds several adapters: {names}", path=label)
    if not found.modules:
        raise UsageError(
            "it is no adapter: no entry is a factor of a low-rank product",
            path=label,
            hint="'ckpt inspect --keys' lists its names",
        )
    for problem in _halves(found):
        problem.name_file(label)
        raise problem
    return found


def _part(name: str) -> tuple[str | None, str, str]:
    for part, pattern in _PARTS:
        match = pattern.fullmatch(name)
        if match is not None:
            module = match["module"]
            processor = _PROCESSOR.fullmatch(module)
            if processor is not None:
                end = ".0" if processor[2] == "to_out" else ""
                module = f"{processor[1]}.{processor[2]}{end}"
            return part, module, match.groupdict().get("adapter") or ""
    return None, "", ""


def _require_lora(name: str, label: str) -> None:
    for pattern, method in _OTHER_METHODS:
        if pattern.search(name):
            raise UsageError(
                f"'{name}' belongs to an adapter of another method than LoRA: {method}",
                path=label,
                hint="merge it with the library that trained it",
            )


def _halves(found: Parts) -> Iterator[PlanError]:
    for module in found.modules.values():
        has = module.entries.keys()
        if "alpha" in has and len(has) == 1:
            yield PlanError("it has a scale and nothing to scale", entry=module.name)
        for one, other in (("up", "down"), ("down", "up")):
            if one in has and other not in has:
                name = module.entries[one].name
                yield PlanError(f"'{name}' has no other factor", entry=name)
        if ("magnitude" in has or "mid" in has) and "down" not in has:
            yield PlanError("it has no factors", entry=module.name)
