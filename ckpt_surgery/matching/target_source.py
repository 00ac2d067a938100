"""What a checkpoint is matched against or fitted to: a model, or another checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, find_ties
from ckpt_surgery.checkpoint.select import require_whole
from ckpt_surgery.errors import LossyEditError, PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.formats import read
from ckpt_surgery.matching.comparison import Comparison, compare
from ckpt_surgery.models.specs import Build, ModelSpec, Value, parse_settings
from ckpt_surgery.models.target import Metadata, Target, TensorSpec
from ckpt_surgery.pickles import Dict, Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.averages import usual_models
from ckpt_surgery.torch_objects.mappings import named_items

_Module = Any
"""``torch.nn.Module``, which is not imported here."""

_MOST_NESTED: Final = 16


@dataclass(frozen=True, slots=True)
class Described:
    """A state dict as `models` knows one: `metadata` holds what is plain in ``_metadata``."""

    specs: tuple[TensorSpec, ...]
    metadata: Metadata | None
    extra_state: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]


def describe(state_dict: StateDict) -> Described:
    """Return names, shapes and types of a state dict, and which of its names are one tensor."""
    return Described(
        specs=tuple(
            TensorSpec(
                entry.name,
                entry.tensor.shape,
                entry.tensor.dtype.name,
                entry.role,
                _layout(entry.tensor),
            )
            for entry in state_dict.entries
            if entry.tensor is not None
        ),
        metadata=None
        if state_dict.metadata is None
        else {module: _plain(node) for module, node in state_dict.metadata.items()},
        extra_state=tuple(entry.name for entry in state_dict.entries if entry.tensor is None),
        ties=find_ties(state_dict.tensors),
    )


def _layout(tensor: Tensor) -> str:
    """Return how its elements are kept; on the meta device there are none to copy."""
    return "meta" if tensor.device == "meta" else tensor.layout


def _plain(node: Node) -> dict[str, object]:
    """Return the entries of a module's record that are plain values: its ``version``."""
    items = named_items(node) or {}
    return {k: v for k, v in items.items() if v is None or isinstance(v, bool | int | float | str)}


@dataclass(frozen=True, slots=True)
class Aim:
    """The target, and what it was described from: a `module` on the meta device or a `file`.

    `state_dict` and `checkpoint` belong to the file; `spec` says how to build the module.
    """

    target: Target
    module: _Module | None = None
    spec: ModelSpec | None = None
    state_dict: StateDict | None = None
    checkpoint: Checkpoint | None = None
    _entries: Mapping[str, Entry] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        entries = () if self.state_dict is None else self.state_dict.entries
        object.__setattr__(self, "_entries", {entry.name: entry for entry in entries})

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the target was read from; empty for a model."""
        return () if self.checkpoint is None else self.checkpoint.sources

    @property
    def code(self) -> tuple[Role, ...]:
        """The files that say what a model is; empty for a file."""
        if self.spec is None:
            return ()
        from ckpt_surgery.models.code import code_of

        return code_of(self.spec, self.module)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its files for a report, as the user gave them."""
        return () if self.checkpoint is None else (self.checkpoint.file.name,)

    def entry(self, name: str) -> Entry | None:
        """Return the entry of the file called `name`; None for a model."""
        return self._entries.get(name)

    def compare(self, source: Described) -> Comparison:
        """Return what ``load_state_dict`` would say; with a model, torch itself says it."""
        if self.module is None:
            return compare(
                source.specs,
                self.target,
                source_metadata=source.metadata,
                source_extra_state=source.extra_state,
            )
        from ckpt_surgery.matching.verdict import judge

        return judge(
            self.module,
            self.target,
            source.specs,
            metadata=source.metadata,
            extra_state=source.extra_state,
        )

    def upgraded(self, source: Described) -> dict[str, str]:
        """Old names that the model's own loading code renames."""
        if self.module is None:
            return {}
        from ckpt_surgery.matching.verdict import upgraded_names

        return upgraded_names(self.module, source.specs, source.metadata)

    @property
    def metadata(self) -> dict[str, Node] | None:
        """``_metadata`` of the target as nodes of a pickle."""
        if self.state_dict is not None:
            found = self.state_dict.metadata
            return None if found is None else dict(found)
        stored = self.target.metadata
        return None if stored is None else {name: _node(each) for name, each in stored.items()}


def _node(value: object, depth: int = 0) -> Node:
    """Return a plain value as a node. Raises `LossyEditError` for anything else."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if depth < _MOST_NESTED and isinstance(value, list | tuple):
        nodes = [_node(each, depth + 1) for each in value]
        return nodes if isinstance(value, list) else tuple(nodes)
    if depth < _MOST_NESTED and isinstance(value, Mapping):
        items: list[Node] = []
        for key, each in value.items():
            items += (_node(key, depth + 1), _node(each, depth + 1))
        return Dict(items)
    raise LossyEditError(
        f"the model keeps a '{type(value).__name__}' in its state dict's _metadata",
        hint="save its state dict and use --like",
    )


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """What to load into: a model or a file, exactly one of them.

    `model` is ``torchvision:NAME`` or ``package.module:callable``, called with `model_args`, its
    layers changed by `settings` such as ``"fc.out_features=5"``; the callable is the user's own
    code, and runs; `build` says whether that may make its weights. `like` is a file with one model.

    Raises `UsageError` for none or both.
    """

    model: str | None = None
    model_args: Mapping[str, Value] | None = None
    settings: Sequence[str] = ()
    like: PathLike | Source | None = None
    build: Build = "meta"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.like is None):
            raise UsageError(
                "'model' and 'like' contradict each other" if self.model else "there is no target",
                hint="say what to load into: --model torchvision:NAME, "
                "--model package.module:callable or --like FILE",
                fields=("model", "like"),
            )
        if self.like is not None and (self.model_args or self.settings or self.build != "meta"):
            raise UsageError(
                "'model_args', 'settings' and 'build' are about a model, and 'like' names a file",
                hint="use them with 'model'",
                fields=("model_args", "settings", "build", "like", "model"),
            )


@contextmanager
def opened(request: TargetRequest) -> Iterator[Aim]:
    """Describe the target that was asked for; a file stays open inside the ``with`` statement.

    Raises what building a model or reading a file raises.
    """
    if request.like is None:
        yield find_target(request, read)
        return
    with read(request.like) as checkpoint:
        yield aim_at_file(checkpoint)


def find_target(request: TargetRequest, find: Callable[[str], Checkpoint]) -> Aim:
    """Describe the target that was asked for; a file's checkpoint is found by its name.

    Raises what building a model or finding a checkpoint raises.
    """
    if request.model is None:
        return aim_at_file(find(str(request.like)))
    settings = parse_settings(request.settings)
    arguments = dict(request.model_args or {})
    return aim_at_model(ModelSpec(request.model, arguments, settings, request.build))


def aim_at_model(spec: ModelSpec) -> Aim:
    """Return a model as a target, built on the meta device. Raises what building it raises."""
    from ckpt_surgery.compute.elements import require_torch

    require_torch()
    from ckpt_surgery.models import building

    module = building.build_module(spec)
    return Aim(building.describe(module, spec.text), module, spec)


def aim_at_file(checkpoint: Checkpoint) -> Aim:
    """Return the one state dict of a file as a target. Raises `UsageError` for none or several."""
    models = usual_models(checkpoint.state_dicts)
    if len(models) != 1:
        paths = ", ".join(f"'{state_dict.path}'" for state_dict in models)
        raise UsageError(
            f"it has {len(models)} state dicts: {paths}" if models else "no state dict in it",
            path=checkpoint.file.name,
            hint="write one alone: ckpt convert --state-dict-only --at PATH" if models else None,
        )
    (state_dict,) = models
    require_whole(checkpoint, models, "would be no part of the target")
    found = describe(state_dict)
    return Aim(
        Target(
            title=checkpoint.file.name,
            tensors=found.specs,
            ties=found.ties,
            metadata=found.metadata,
            extra_state=found.extra_state,
        ),
        state_dict=state_dict,
        checkpoint=checkpoint,
    )
