"""Which weight of the base an adapter's module is, in each of the namings. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.lora.diffusion_names import original_name
from ckpt_surgery.merge.lora.parts import PEFT_PREFIX
from ckpt_surgery.names.suggest import near_hint

_COMPONENTS: Final = (
    *("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "prior"),
    *("diffusion_model", "base_model", "model"),
)
"""What a file of a pipeline's adapters puts before the names in a component of it."""

# In kohya's files every dot is an underscore; the beginning says which model of a pipeline it is,
# and the tuples where single-file checkpoints have that.
_KOHYA: Final[dict[str, tuple[str, ...]]] = {
    "lora_unet_": ("", "model.diffusion_model.", "unet.", "transformer."),
    "lora_transformer_": ("", "transformer.", "model.diffusion_model."),
    "lora_te_": ("", "cond_stage_model.transformer.", "text_encoder."),
    "lora_te1_": ("", "conditioner.embedders.0.transformer.", "text_encoder."),
    "lora_te2_": ("", "text_encoder_2."),
    "lora_te3_": ("", "text_encoder_3."),
    "lycoris_": ("",),
}
_WEIGHT: Final = ".weight"
_IN_PROJECTION: Final = ".in_proj_weight"
_MOST_CUT: Final = 3


class Targets:
    """The modules of a state dict that have a weight, by all the names that adapters use."""

    def __init__(self, state_dict: StateDict) -> None:
        self._weights: dict[str, str] = {}
        for name, _ in state_dict.tensors:
            for end in (_IN_PROJECTION, _WEIGHT):
                if name.endswith(end):
                    self._weights.setdefault(name.removesuffix(end), name)
        self._flat: dict[str, dict[str, list[str]]] = {}

    def weight(self, module: str) -> str:
        """Return the name of a module's weight."""
        return self._weights[module]

    def resolve(self, modules: Sequence[str]) -> tuple[dict[str, str], str]:
        """Return the module of the base for each of an adapter, and what to say about how.

        What is not found is not in the result.
        """
        direct = {name: found for name in modules for found in [self._one(name)] if found}
        if direct or not modules:
            return direct, ""
        return self._shifted([name.removeprefix(PEFT_PREFIX) for name in modules], modules)

    def hint(self, module: str) -> str | None:
        """Return near names for a module that is not there."""
        plain = module.removeprefix(PEFT_PREFIX)
        return near_hint(plain, self._weights)

    def _one(self, name: str) -> str | None:
        plain = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
        for candidate in (name, plain, *_without_component(plain)):
            if candidate in self._weights:
                return candidate
        for start, roots in _KOHYA.items():
            if plain.startswith(start):
                return self._underscored(plain.removeprefix(start), roots)
        return None

    def _underscored(self, flat: str, roots: Iterable[str]) -> str | None:
        """Return the module whose name is `flat` when its dots are underscores.

        Raises `UsageError` if there are several.
        """
        for root in roots:
            table = self._table(root)
            for each in (flat, original_name(flat)):
                found = table.get(each, []) if each else []
                if len(found) > 1:
                    names = " and ".join(f"'{name}'" for name in found)
                    raise UsageError(f"'{flat}' may be {names}")
                if found:
                    return found[0]
        return None

    def _table(self, root: str) -> Mapping[str, Sequence[str]]:
        if root not in self._flat:
            table: dict[str, list[str]] = {}
            for module in self._weights:
                if module.startswith(root):
                    table.setdefault(module[len(root) :].replace(".", "_"), []).append(module)
            self._flat[root] = table
        return self._flat[root]

    def _shifted(self, names: Sequence[str], modules: Sequence[str]) -> tuple[dict[str, str], str]:
        """Return what fits if one prefix is put before all names, or their beginning cut off."""
        first = f".{names[0]}"
        for found in self._weights:
            if found.endswith(first):
                prefix = found[: -len(first) + 1]
                if all(prefix + name in self._weights for name in names):
                    pairs = zip(modules, names, strict=True)
                    return {each: prefix + name for each, name in pairs}, f"put '{prefix}' before"
        cut = names
        for _ in range(_MOST_CUT):
            if not all("." in name for name in cut):
                break
            gone = {name.partition(".")[0] for name in cut}
            cut = [name.partition(".")[2] for name in cut]
            if len(gone) == 1 and all(name in self._weights for name in cut):
                return dict(zip(modules, cut, strict=True)), f"took '{gone.pop()}.' off"
        return {}, ""


def component_of(module: str) -> str:
    """Return the component that a name begins with (``unet``); nothing without one."""
    first, dot, _ = module.partition(".")
    return first if dot and first in _COMPONENTS else ""


def _without_component(name: str) -> list[str]:
    component = component_of(name)
    return [name.removeprefix(f"{component}.")] if component else []
