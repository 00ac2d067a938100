"""Which products are added to which weights, with what scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Entry, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import RuleCount, select
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.take import Take
from ckpt_surgery.errors import CkptError, PlanError, UsageError
from ckpt_surgery.merge.files import MergeFile
from ckpt_surgery.merge.lora import config
from ckpt_surgery.merge.lora.edit import FoldLora, LoraPart
from ckpt_surgery.merge.lora.parts import PEFT_PREFIX, Module, Parts, parts_of
from ckpt_surgery.merge.lora.targets import Targets, component_of
from ckpt_surgery.names import Selection

_WRAPPERS: Final = (".base_layer.", ".modules_to_save.default.", ".modules_to_save.")


@dataclass(slots=True)
class Folds:
    """What is planned: folds, whole weights that are taken, and what the report says of them."""

    takes: list[Take] = field(default_factory=list)
    folds: list[FoldLora] = field(default_factory=list)
    copied: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    rules: tuple[RuleCount, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits in order: a weight that an adapter has whole may get a product on top."""
        return (*self.takes, *self.folds)


class Adapter:
    """An adapter: its file, its parts, and its scales times `scale`."""

    def __init__(self, file: MergeFile, scale: float) -> None:
        self.file, self.scale = file, scale
        found = file.checkpoint.state_dicts
        if len(found) != 1:
            raise UsageError(f"there are {len(found)} state dicts in it", path=file.label)
        self.state_dict = found[0]
        self.parts: Parts = parts_of(self.state_dict.entries, file.label)
        self.remarks: list[str] = []

    @cached_property
    def _said(self) -> dict[str, Any] | None:
        return config.beside(self.file.original)

    @cached_property
    def _components(self) -> dict[str, Any] | None:
        return config.in_metadata(self.file.original)

    @cached_property
    def own(self) -> config.AdapterConfig | None:
        """What lies beside the file, None without."""
        return None if self._said is None else config.parsed(self._said, self.file.label)

    def settings(self, module: str) -> config.AdapterConfig | None:
        """Return what is said of scales and layouts for a module; None if nothing is."""
        if self.own is not None:
            return self.own
        if self._components is not None:
            said = config.of_component(self._components, component_of(module))
            return config.parsed(said, self.file.label) if said else None
        return None

    def product_scale(self, module: Module, down: Tensor) -> float:
        """Return what the product of a module is multiplied by.

        Raises `PlanError` for another rank than the configuration says, and `UsageError` if the
        scale is nowhere.
        """
        rank = down.shape[0] if down.shape else 0
        if not rank:
            raise PlanError(f"'{module.entries['down'].name}' has no rank", path=self.file.label)
        alpha = module.tensor("alpha")
        if alpha is not None:
            return self.scale * _number(alpha, module.entries["alpha"].name, self.file.label) / rank
        settings = self.settings(module.name)
        if settings is not None:
            plain = module.name.removeprefix(PEFT_PREFIX)
            component = component_of(plain)
            plain = plain.removeprefix(f"{component}.") if self.own is None else plain
            try:
                return self.scale * settings.scale(plain, rank)
            except PlanError as error:
                error.entry = module.entries["down"].name
                error.name_file(self.file.label)
                raise
        if self.parts.is_pefts:
            raise UsageError(
                f"there is no {config.CONFIG_NAME} beside it, which says the scale",
                path=self.file.label,
                hint="name the adapter's directory",
            )
        remark = f"'{self.file.label}' says no alpha: it is taken to be the rank, as diffusers does"
        if remark not in self.remarks:
            self.remarks.append(remark)
        return self.scale

    def source_name(self, entry: Entry) -> str:
        """Return what an entry is called in the file."""
        return self.file.old_name(self.state_dict.path, entry.name)


class LoraPlanner:
    """Plans which weights of the base get what of the adapters.

    With `lenient`, entries that apply to nothing are left out and reported.
    """

    def __init__(
        self, base: MergeFile, adapters: Sequence[Adapter], *, lenient: bool, nonfinite: bool
    ) -> None:
        self._base, self._adapters = base, adapters
        self._lenient, self._nonfinite = lenient, nonfinite
        self.result = Folds()

    def plan(self, state_dicts: Sequence[StateDict], selection: Selection) -> Folds:
        """Return what becomes of `state_dicts`.

        Raises `UsageError` for an adapter's entry that applies to nothing, and if nothing is
        folded; `PlanError` for factors that do not belong together.
        """
        chosen: dict[str, frozenset[str]] | None = None
        if selection.rules:
            found, self.result.rules = select(list(state_dicts), selection)
            chosen = {s.path: each.chosen for s, each in zip(state_dicts, found, strict=True)}
        for state_dict in state_dicts:
            wanted = None if chosen is None else chosen[state_dict.path]
            self._plan_one(state_dict, wanted)
        for adapter in self._adapters:
            self.result.remarks += adapter.remarks
        if not self.result.edits:
            raise UsageError("nothing of the adapters is folded: no weight that they are for")
        return self.result

    def _plan_one(self, state_dict: StateDict, wanted: frozenset[str] | None) -> None:
        targets = Targets(state_dict)
        own = dict(state_dict.tensors)
        parts: dict[str, list[LoraPart]] = {}
        for adapter in self._adapters:
            try:
                for name, part in self._of_adapter(adapter, targets, own, state_dict.path):
                    parts.setdefault(name, []).append(part)
            except CkptError as error:
                if error.file is None:
                    error.name_file(adapter.file.label)
                raise
        for name, found in parts.items():
            if wanted is not None and name not in wanted:
                self.result.copied.append((join_path(state_dict.path, name), "not selected"))
                continue
            self.result.folds.append(
                FoldLora(state_dict.path, name, tuple(found), allow_nonfinite=self._nonfinite)
            )
        if wanted is not None:
            here = [t for t in self.result.takes if t.state_dict == state_dict.path]
            left = [take for take in here if take.name not in wanted]
            self.result.copied += (
                (join_path(take.state_dict, take.name), "not selected") for take in left
            )
            self.result.takes = [take for take in self.result.takes if take not in left]

    def _of_adapter(
        self, adapter: Adapter, targets: Targets, own: dict[str, Tensor], path: str
    ) -> Iterator[tuple[str, LoraPart]]:
        modules = adapter.parts.modules
        resolved, how = targets.resolve(list(modules))
        if how:
            self.result.remarks.append(f"{how} the names of '{adapter.file.label}'")
        for name, module in modules.items():
            if name not in resolved:
                entry = next(iter(module.entries.values()))
                self._unmatched(adapter, entry, targets.hint(name))
                continue
            weight = targets.weight(resolved[name])
            yield from self._of_module(adapter, module, weight, resolved[name], own)
        for entry in adapter.parts.whole:
            self._whole(adapter, entry, own, path, how)

    def _unmatched(self, adapter: Adapter, entry: Entry, hint: str | None) -> None:
        if not self._lenient:
            raise UsageError(
                f"'{entry.name}' applies to nothing in '{self._base.label}'",
                path=adapter.file.label,
                hint=hint or "--keys intersection leaves such entries out",
            )
        self.result.skipped.append((entry.name, f"of {adapter.file.label}, applies to nothing"))

    def _of_module(
        self,
        adapter: Adapter,
        module: Module,
        weight: str,
        target: str,
        own: dict[str, Tensor],
    ) -> Iterator[tuple[str, LoraPart]]:
        label, path = adapter.file.label, adapter.state_dict.path
        names = {part: adapter.source_name(entry) for part, entry in module.entries.items()}
        down, up = module.tensor("down"), module.tensor("up")
        scale = adapter.scale
        if down is not None and up is not None:
            scale = adapter.product_scale(module, down)
            settings = adapter.settings(module.name)
            swapped = settings is not None and settings.fan_in_fan_out
            yield (
                weight,
                LoraPart(
                    label,
                    path,
                    names["up"],
                    names["down"],
                    names.get("mid"),
                    names.get("magnitude"),
                    scale,
                    transposed=_is_transposed(
                        own[weight], up, down, swapped=swapped or module.embedding
                    ),
                ),
            )
        if "difference" in names:
            yield weight, LoraPart(label, path, names["difference"], scale=adapter.scale)
        for part, factor in (("bias", scale), ("bias_difference", adapter.scale)):
            if part in names:
                bias = f"{target}.bias"
                if bias not in own:
                    self._unmatched(adapter, module.entries[part], f"there is no '{bias}'")
                    continue
                yield bias, LoraPart(label, path, names[part], scale=factor)

    def _whole(
        self, adapter: Adapter, entry: Entry, own: dict[str, Tensor], path: str, how: str
    ) -> None:
        """Plan a weight that an adapter has whole: ``modules_to_save``, trained biases."""
        name = entry.name.removeprefix(PEFT_PREFIX)
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, ".")
        first, quote, _ = how.partition("'")
        prefix = how.split("'")[1] if quote else ""
        if first.startswith("put"):
            name = prefix + name
        elif quote:
            name = name.removeprefix(prefix)
        if name not in own or entry.tensor is None:
            self._unmatched(adapter, entry, None)
            return
        if own[name].shape != entry.tensor.shape:
            raise PlanError(
                f"'{entry.name}' of {list(entry.tensor.shape)} does not fit "
                f"'{name}' of {list(own[name].shape)}",
                entry=entry.name,
            )
        source = adapter.state_dict.path
        self.result.takes.append(
            Take(path, name, adapter.file.label, source, adapter.source_name(entry))
        )


def _is_transposed(own: Tensor, up: Tensor, down: Tensor, *, swapped: bool) -> bool:
    """Return whether a weight has inputs first: by its shape, or if that is square as is said."""
    if len(own.shape) != 2 or not up.shape:
        return False
    shape = up.shape[0], down.numel // max(down.shape[0], 1)
    if shape[0] == shape[1]:
        return swapped
    return own.shape == (shape[1], shape[0])


def _number(tensor: Tensor, name: str, label: str) -> float:
    from ckpt_surgery.compute.elements import load_elements

    values = load_elements(tensor) if tensor.numel == 1 else None
    if values is None:
        raise PlanError(f"'{name}' is no number", path=label, entry=name)
    return float(values.float().item() if values.dtype.itemsize < 4 else values.item())
