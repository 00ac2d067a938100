"""The moving averages of a checkpoint, each with its model and what else belongs to it.

Where and how averages are written is the table of `torch_objects.averages`; here they are found
and paired with the weights that they average. Every command asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Final, Literal

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, join_path
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.pickles import Dict, Node, Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.averages import (
    AverageLayout,
    counter_of,
    dotless_average,
    layout_of,
    swapped_pairs,
)
from ckpt_surgery.torch_objects.kinds import kind_of
from ckpt_surgery.torch_objects.mappings import mapping_length, mapping_pairs, named_items
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.optimizers.correspond import StateOwners, bare_name, correspond
from ckpt_surgery.training.optimizers.recognise import (
    Key,
    Moment,
    OptimizerState,
    ParameterGroup,
    ParameterState,
)
from ckpt_surgery.training.parameters import Inventory

_MOST_PAIRS: Final = 4096
_SHADOWS: Final = "shadow_params"
"""What torch_ema and diffusers call their list of averaged parameters."""
_NO_MODEL: Final = "no model in the file has its names and shapes"
_MOST_LISTS: Final = 64  # averages beside the state dicts, in one file

_Place = Literal["state dict", "inside", "list", "entry"]
"""Where an average lies: a state dict of its own, in that of its model, as a list of tensors or as
a mapping below another entry."""


@dataclass(frozen=True)
class Average:
    """A moving average of a model's weights.

    `path` is its place: of a state dict, of an entry, or of the state dict that it lies in.
    `model` is the path of the state dict that it averages, or that the trained weights are in.
    `names` maps the model's entries to the average's (to positions, of a list); where it cannot
    be told which is which, `names` is empty and `reason` says why. `counters` are the average's
    own entries where it lies, `beside` the paths of entries that belong to it elsewhere. Of a
    `swapped` one the model's usual place holds the average. `copy_of` is the path of the average
    of which this is but a copy in another type.
    """

    title: str
    place: _Place
    path: str
    model: str | None
    names: Mapping[str, str] = field(repr=False)
    wrapper: str = ""
    counters: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    swapped: bool = False
    copy_of: str = ""
    reason: str = ""
    node: object = field(default=None, compare=False, repr=False)


def find_averages(checkpoint: Checkpoint) -> list[Average]:
    """Return every moving average that the file holds, in the order of the file.

    Raises `LimitExceededError` if there are thousands to compare.
    """
    found = [*_swapped(checkpoint)]
    taken = {path for average in found for path in (average.path, average.model)}
    found += _separate(checkpoint, [s for s in checkpoint.state_dicts if s.path not in taken])
    for state_dict in checkpoint.state_dicts:
        found += averages_inside(state_dict)
    return [*found, *_beside(checkpoint)]


def _inner_names(state_dict: StateDict) -> dict[str, str] | None:
    """Return the model's names for the entries of an average, without its counters.

    None for what has no layout of its own: its names are the model's.
    """
    layout = layout_of(state_dict.names)
    if layout is None:
        return None
    inner = ((name, layout.inner_name(name)) for name in state_dict.names)
    return {name: model for name, model in inner if model is not None}


def _swapped(checkpoint: Checkpoint) -> Iterator[Average]:
    known = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    others = {other.path for other in checkpoint.others}
    for pair in swapped_pairs(checkpoint.state_dicts):
        average, trained = known[pair.average], known[pair.trained]
        inner = _inner_names(trained) or {name: name for name in trained.names}
        held = set(average.names)
        counter = counter_of(pair)
        yield Average(
            pair.title,
            "state dict",
            pair.average,
            pair.trained,
            {name: model for name, model in inner.items() if model in held},
            counters=tuple(name for name in trained.names if name not in inner),
            beside=(counter,) if counter in others else (),
            swapped=True,
        )


def _separate(checkpoint: Checkpoint, state_dicts: Sequence[StateDict]) -> Iterator[Average]:
    """Yield the averages that are state dicts of their own, each with every model that it fits."""
    averages = [s for s in state_dicts if s.kind == "ema"]
    models = [s for s in state_dicts if s.kind == "model"]
    if len(averages) * len(models) > _MOST_PAIRS:
        raise LimitExceededError(
            f"there are {len(averages)} moving averages for {len(models)} models"
        )
    bare = {model.path: _by_bare_name(model, None) for model in models}
    paths = {average.path for average in averages}
    for average in averages:
        layout = layout_of(average.names)
        averaged = _by_bare_name(average, layout)
        alone = Average(
            layout.title if layout else "",
            "state dict",
            average.path,
            None,
            {},
            wrapper=layout.wrapper if layout else "",
            counters=_own(average, layout),
            beside=_companions(checkpoint, average.path),
            copy_of=_original(average.path, paths),
            reason=_NO_MODEL,
        )
        found = [(m, names) for m in models if (names := _pairs(averaged, bare[m.path]))]
        for model, names in found:
            yield replace(alone, model=model.path, names=names, reason="")
        if not found:
            yield alone


def _own(average: StateDict, layout: AverageLayout | None) -> tuple[str, ...]:
    if layout is None:
        return ()
    return tuple(name for name in average.names if name in layout.counters)


def _companions(checkpoint: Checkpoint, path: str) -> tuple[str, ...]:
    """Return entries beside an average that belong to it: ultralytics' ``updates``.

    In a dictionary that is an average's by its name these are all numbers (a decay).
    """
    holder = path.rpartition("/")[0]
    is_its_own = bool(holder) and kind_of(holder.rpartition("/")[2]) == "ema"
    return tuple(
        other.path
        for other in checkpoint.others
        if other.path.rpartition("/")[0] == holder
        and (
            isinstance(other.value, (int, float))
            if is_its_own
            else other.path == join_path(holder, "updates") and isinstance(other.value, int)
        )
    )


def _original(path: str, averages: Collection[str]) -> str:
    """Return the path of the average that one at `path` is a copy of; "" if it is none.

    fairseq keeps ``ema_fp32_params`` beside ``ema``, which is what it publishes.
    """
    above, _, last = path.rpartition("/")
    original = join_path(above, "ema")
    return original if last == "ema_fp32_params" and original in averages else ""


def _by_bare_name(state_dict: StateDict, layout: AverageLayout | None) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for entry in state_dict.entries:
        name = entry.name if layout is None else layout.inner_name(entry.name)
        if name is not None:
            entries[bare_name(name)] = entry
    return entries


def _pairs(averaged: Mapping[str, Entry], own: Mapping[str, Entry]) -> dict[str, str] | None:
    """Return the model's names to the average's; None if it is no average of it.

    Names and shapes must agree, wrappers aside. An average may lack buffers.
    """
    if not averaged or not averaged.keys() <= own.keys():
        return None
    if any(_shape(entry) != _shape(own[name]) for name, entry in averaged.items()):
        return None
    for name, entry in own.items():
        if name not in averaged and entry.role != "buffer" and entry.tensor is not None:
            return None
    return {entry.name: averaged[name].name for name, entry in own.items() if name in averaged}


def _shape(entry: Entry) -> tuple[int, ...] | None:
    return None if entry.tensor is None else entry.tensor.shape


def averages_inside(state_dict: StateDict) -> Iterator[Average]:
    """Yield an average among the weights of its model: ema_pytorch's, or latent diffusion's."""
    layout = layout_of(state_dict.names)
    if layout is not None and layout.beside:
        held = set(state_dict.names)
        names = {
            name: inner
            for name in state_dict.names
            if name.startswith(layout.beside)
            and (inner := layout.wrapper + name.removeprefix(layout.beside)) in held
        }
        if names and state_dict.kind == "model":
            path = state_dict.path
            own = tuple(name for name in state_dict.names if name in layout.counters)
            yield Average(layout.title, "inside", path, path, names, layout.wrapper, own)
    dotless = dotless_average(state_dict.names)
    if dotless is not None:
        title, path = "latent diffusion", state_dict.path
        yield Average(title, "inside", path, path, dotless.names, dotless.prefix, dotless.counters)


def _beside(checkpoint: Checkpoint) -> Iterator[Average]:
    """Averages below other entries: lists in the order of the parameters, Lightning's SWA."""
    reader = TensorReader()
    left = _MOST_LISTS
    for other in checkpoint.others:
        for path, node, kind in _held(other):
            left -= 1
            if left < 0:
                raise LimitExceededError("there are too many moving averages")
            yield from (
                _listed(checkpoint, other.path, node, reader)
                if kind == "list"
                else _nested(checkpoint, path, node, reader)
            )


def _held(other: Other) -> Iterator[tuple[str, Node, Literal["list", "entry"]]]:
    """Yield the averages that an entry holds, at itself or one level below."""
    fields = _fields(other.node)
    is_bare = isinstance(other.node, list) and kind_of(other.path) == "ema"
    if is_bare or isinstance(fields.get(_SHADOWS), list):
        yield other.path, other.node, "list"
    for name, value in fields.items():
        average = _fields(value).get("average_model_state")
        if mapping_length(average):
            yield f"{other.path}/{name}/average_model_state", average, "entry"


def shadow_list(node: object) -> list[Node]:
    """Return the averaged parameters that an average without names holds, or is a list of."""
    if isinstance(node, list):
        return node
    shadows = _fields(node).get(_SHADOWS) if isinstance(node, (Dict, Object)) else None
    return shadows if isinstance(shadows, list) else []


_MOST_FIELDS: Final = 200


def _fields(node: Node) -> dict[str, Node]:
    """Return the items of a small mapping that have a text for a key; empty for anything else."""
    if not isinstance(node, (Dict, Object)) or (mapping_length(node) or 0) > _MOST_FIELDS:
        return {}
    return {name: v for key, v in mapping_pairs(node) or () if (name := text(key)) is not None}


def _listed(
    checkpoint: Checkpoint, path: str, node: Node, reader: TensorReader
) -> Iterator[Average]:
    """Yield a list of tensors, one for each parameter in their order (torch_ema, diffusers).

    A list by itself is one only if it is certain of which parameters.
    """
    tensors = [reader.describe(item) for item in shadow_list(node)]
    shapes = [tensor.shape for tensor in tensors if tensor is not None]
    if not tensors or len(shapes) < len(tensors):
        return
    counters = tuple(name for name in _fields(node) if name != _SHADOWS)
    best: tuple[StateDict, StateOwners] | None = None
    for model in [s for s in checkpoint.state_dicts if s.kind == "model"][:_MOST_LISTS]:
        owners = _owners(shapes, model)
        if owners.certain:
            best = model, owners
            break
        if best is None:
            best = model, owners
    names = {} if best is None else {name: str(key) for key, name in best[1].names.items()}
    certain = best is not None and best[1].certain
    if isinstance(node, list) and not (certain and best and _is_of_all(shapes, best[0])):
        return
    yield Average(
        "a list in the order of the parameters",
        "list",
        path,
        None if best is None else best[0].path,
        names if certain else {},
        counters=counters,
        reason="" if best is None or certain else best[1].reason,
        node=node,
    )


def _is_of_all(shapes: Sequence[tuple[int, ...]], model: StateDict) -> bool:
    return len(shapes) == len(Inventory.of_state_dict(model).parameters)


def _owners(shapes: Sequence[tuple[int, ...]], model: StateDict) -> StateOwners:
    """Return which parameter of a model each tensor of a list is, as for an optimizer's states."""
    states: dict[Key, ParameterState] = {
        key: ParameterState(key, None, (Moment("", None, shape, 0),), frozenset(), None, 0, True)
        for key, shape in enumerate(shapes)
    }
    group = ParameterGroup(tuple(states), None, {}, {}, None)
    parameters = [(p.name, p.shape) for p in Inventory.of_state_dict(model).parameters]
    return correspond(OptimizerState(None, (group,), states), parameters)


def _nested(
    checkpoint: Checkpoint, path: str, node: Node, reader: TensorReader
) -> Iterator[Average]:
    """Yield the average in the state of Lightning's StochasticWeightAveraging."""
    items = named_items(node) or {}
    entries = {
        name: Entry(name, reader.describe(value), "unknown", value) for name, value in items.items()
    }
    model = next(
        (
            (state_dict, names)
            for state_dict in checkpoint.state_dicts
            if state_dict.kind == "model"
            and (names := _pairs(entries, {e.name: e for e in state_dict.entries})) is not None
        ),
        None,
    )
    yield Average(
        "Lightning's StochasticWeightAveraging",
        "entry",
        path,
        None if model is None else model[0].path,
        {} if model is None else model[1],
        reason="" if model is not None else _NO_MODEL,
        node=node,
    )
