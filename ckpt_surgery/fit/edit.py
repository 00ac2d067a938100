"""Giving a state dict the tensors of a target, from as much of its own as fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt_surgery.checkpoint.compact import in_own_storage
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.elements import can_load, require_torch
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_there
from ckpt_surgery.edits.views import view_of
from ckpt_surgery.errors import PlanError
from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.fit.moments import elements_of
from ckpt_surgery.matching.target_source import Aim, aim_at_file, aim_at_model
from ckpt_surgery.models.specs import Build, ModelSpec, Value, parse_arguments, parse_settings
from ckpt_surgery.models.target import Target
from ckpt_surgery.pickles import Object, PersistentId
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.tensor_calls import relocated

if TYPE_CHECKING:
    from ckpt_surgery.fit.initial import InitialValues

_Elements = Any
"""``torch.Tensor``, which is not imported here."""


@dataclass(frozen=True, slots=True)
class FitTarget:
    """What is fitted to: the state dict in the file `like`, or that of a model.

    `arguments` and `settings` are of the model, as ``--model-arg`` and ``--set`` write them, and
    `build` says whether it may be built with its weights.
    """

    model: str | None = None
    arguments: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    like: str | None = None
    build: Build = "meta"

    @classmethod
    def of(
        cls,
        model: str | None,
        arguments: Mapping[str, Value] | None,
        settings: Sequence[str],
        like: str | None,
        build: Build = "meta",
    ) -> FitTarget:
        """Return the target of these choices, of which `like` is the name of the file."""
        texts = tuple(f"{name}={value!r}" for name, value in (arguments or {}).items())
        return cls(model, texts, tuple(settings), like, build)


def keep_aim(inputs: Inputs, target: FitTarget, aim: Aim) -> None:
    """Let a `Fit` find the target that its caller has already built or read."""
    inputs.keep(target, aim)


def _aim(inputs: Inputs, target: FitTarget) -> Aim:
    def make() -> Aim:
        if target.like is not None:
            return aim_at_file(inputs[target.like])
        if target.model is None:
            raise PlanError("the plan fits to no target")
        settings = parse_settings(target.settings)
        arguments = parse_arguments(target.arguments)
        return aim_at_model(ModelSpec(target.model, arguments, settings, target.build))

    return inputs.recall(target, make)


@dataclass(frozen=True, slots=True)
class Fit(BatchEdit):
    """Give a state dict the tensors of `items`, in this order, and no other.

    Each is an entry of its own, one adapted from it, or an initial value: the target's own (drawn
    from `seed` for a model) or what its fill says. `extra_state` are names of what the target
    keeps beside tensors, taken from the state dict or else from the target's file.

    The state dict may be an average whose names have a `prefix`: `items` are then about those
    that have it, without it, and the others stay.
    """

    kind: ClassVar[str] = "fit"
    state_dict: str
    target: FitTarget
    items: tuple[FitItem, ...]
    extra_state: tuple[str, ...] = ()
    seed: int = 0
    prefix: str = ""

    @classmethod
    def of(
        cls,
        state_dict: str,
        items: Sequence[FitItem],
        target: Target,
        goal: FitTarget,
        seed: int,
        prefix: str = "",
    ) -> Fit:
        """Return the edit that carries out planned items, without what only a report says."""
        bare = (replace(i, reason=None, would_adapt=(), is_suspect=False) for i in items)
        return cls(state_dict, goal, tuple(bare), target.extra_state, seed, prefix)

    @classmethod
    def apply_all(cls, run: Sequence[Fit], checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:
        """Return the checkpoint with fitted state dicts; values are computed when written."""
        if any(not item.is_verbatim for edit in run for item in edit.items):
            require_torch()
        big_endian = any(_is_big_endian(tensor) for _, tensor in checkpoint.tensors)

        def fitted(state_dict: StateDict, edits: Sequence[Fit]) -> StateDict:
            for edit in edits:
                view = view_of(state_dict, state_dict.path, edit.prefix)
                values = _Values(edit, _aim(inputs, edit.target), view.state_dict, big_endian)
                state_dict = view.put_back(state_dict, values.state_dict())
            return state_dict

        return edit_state_dicts(run, checkpoint, fitted)


class _Values:
    """Entries of the result: bytes of the files where they stay, computed tensors elsewhere."""

    def __init__(self, edit: Fit, aim: Aim, state_dict: StateDict, big_endian: bool) -> None:
        self._edit = edit
        self._aim = aim
        self._state_dict = state_dict
        self._big_endian = big_endian
        self._sources = {entry.name: entry for entry in state_dict.entries}
        self._drawn: InitialValues | None = None
        self._device = next((tensor.device for _, tensor in state_dict.tensors), "cpu")

    def state_dict(self) -> StateDict:
        made: dict[str, Entry] = {}
        for item in self._edit.items:
            if item.tie_of is None:
                made[item.name] = self._entry(item)
                continue
            if item.tie_of not in made:
                require_there(self._state_dict.path, [item.tie_of], made)
            made[item.name] = replace(made[item.tie_of], name=item.name, key_node=None)
        for name in self._edit.extra_state:
            made[name] = self._extra_state(name)
        entries = tuple(made.values())
        return replace(self._state_dict, entries=entries, metadata=self._aim.metadata)

    def _extra_state(self, name: str) -> Entry:
        entry = self._sources.get(name) or self._aim.entry(name)
        if entry is None:
            raise PlanError(
                f"'{name}' is no tensor but a state that the model keeps, and the checkpoint "
                "does not have it",
                hint="save the model's own state dict and use --like",
            )
        return replace(entry, key_node=None)

    def _source(self, name: str) -> Entry:
        if name not in self._sources:
            require_there(self._state_dict.path, [name], self._sources)
        return self._sources[name]

    def _entry(self, item: FitItem) -> Entry:
        spec = self._aim.target.by_name.get(item.name)
        if spec is None:
            raise PlanError(f"the target of the plan has no '{item.name}'")
        source = None if item.source is None else self._source(item.source)
        entry = source if item.is_verbatim else None
        if entry is None and _keeps_own_value(item):
            entry = self._aim.entry(item.name)
        kept = None if entry is None or entry.tensor is None else self._kept(item, entry.tensor)
        if entry is not None and kept is not None:
            node = entry.node if kept is entry.tensor else kept.node
            return Entry(item.name, kept, spec.role, node=node)

        tally = self._tally(item)

        def compute() -> _Elements:
            from ckpt_surgery.fit.values import fitted as value

            return value(item, lambda name: _load(self._source(name)), self._initial(), tally.add)

        tensor = computed_tensor(
            item.shape,
            BY_NAME[item.dtype],
            compute,
            key=item.name,
            device=self._device,
            big_endian=self._big_endian,
            tally=tally,
            made_of=() if source is None or source.tensor is None else (source.tensor,),
        )
        if source is not None and source.tensor is not None:
            own = source.tensor
            tensor = replace(tensor, requires_grad=own.requires_grad, is_parameter=own.is_parameter)
        return Entry(item.name, tensor, spec.role)

    def _tally(self, item: FitItem) -> CastTally:
        """Return what counts the conversion of stored values; drawn ones are only rounded."""
        stored = self._aim.entry(item.name) if _keeps_own_value(item) else None
        source = item.dtype if item.status == "initial" else item.source_dtype or item.dtype
        if stored is not None and stored.tensor is not None:
            source = stored.tensor.dtype.name
        path = join_path(self._state_dict.path, item.name)
        return CastTally(path, source, item.dtype, item.numel)

    def _kept(self, item: FitItem, tensor: Tensor) -> Tensor | None:
        """`tensor` if its bytes can stay as they are; None if they have to be computed."""
        if tensor.dtype.name != item.dtype or _is_big_endian(tensor) != self._big_endian:
            return None if can_load(tensor) else tensor
        if tensor.shape != item.shape:  # one element, which torch 0.3 wrote with an axis
            tensor = replace(tensor, shape=item.shape, stride=(), node=None)
        return tensor if item.untied_from is None or tensor.storage is None else _alone(tensor)

    def _initial(self) -> Callable[[FitItem], _Elements]:
        from ckpt_surgery.fit.values import initial_value

        return lambda item: initial_value(item, self._edit.seed, self._own)

    def _own(self, name: str) -> _Elements:
        """Return the target's own value: of its file, or drawn as its constructor does."""
        entry = self._aim.entry(name)
        if entry is not None:
            return _load(entry)
        if self._aim.spec is None:
            raise PlanError(f"the target has no value for '{name}'")
        if self._drawn is None:
            from ckpt_surgery.fit.initial import InitialValues

            names = [i.name for i in self._edit.items if i.needs_initial and _takes_own_value(i)]
            self._drawn = InitialValues(self._aim.spec, names, self._edit.seed)
        return self._drawn.tensor(name)


def _alone(tensor: Tensor) -> Tensor:
    """`tensor` with bytes that no other tensor shares."""
    moved = in_own_storage(tensor)
    if not isinstance(tensor.node, Object) or moved.storage is None:
        return replace(moved, node=None)
    return replace(moved, node=relocated(tensor.node, PersistentId(None, moved.storage), moved))


def _takes_own_value(item: FitItem) -> bool:
    return item.fill is None or item.fill.kind == "init"


def _keeps_own_value(item: FitItem) -> bool:
    """Return whether the target's own value is all of it."""
    return item.status == "initial" and _takes_own_value(item)


def _is_big_endian(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.storage.big_endian


def _load(entry: Entry) -> _Elements:
    return elements_of(entry.tensor, entry.name)
