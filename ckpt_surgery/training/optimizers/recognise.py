"""Read optimizer state dicts: groups, and the state of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Final, Protocol, TypeAlias

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.pickles import Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import mapping_length, mapping_pairs
from ckpt_surgery.torch_objects.places import holds_more
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.training.optimizers.items import Items

Key: TypeAlias = int | str
"""What stands for a parameter: its index, or its name in a distributed checkpoint's flat form."""

# Tensors of one element beside the moments, in every optimizer of torch (2.4 to 2.13).
_SCALARS: Final = frozenset({"step", "eta", "mu", "mu_product"})
# Names of state, and the optimizers of torch that keep exactly these (after their first step).
_LAYOUTS: Final[dict[frozenset[str], str]] = {
    frozenset({"momentum_buffer"}): "SGD",
    frozenset({"step", "exp_avg", "exp_avg_sq"}): "Adam",
    frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}): "Adam (amsgrad)",
    frozenset({"step", "square_avg"}): "RMSprop",
    frozenset({"step", "square_avg", "momentum_buffer"}): "RMSprop",
    frozenset({"step", "square_avg", "grad_avg"}): "RMSprop",
    frozenset({"step", "square_avg", "grad_avg", "momentum_buffer"}): "RMSprop",
    frozenset({"step", "sum"}): "Adagrad",
    frozenset({"step", "square_avg", "acc_delta"}): "Adadelta",
    frozenset({"step", "exp_avg", "exp_inf"}): "Adamax",
    frozenset({"step", "mu_product", "exp_avg", "exp_avg_sq"}): "NAdam",
    frozenset({"step", "eta", "mu", "ax"}): "ASGD",
    frozenset({"step", "prev", "step_size"}): "Rprop",
}
# Moments that begin with zeros; others begin with a rate, or a copy of the weights.
_FROM_ZERO: Final = frozenset(
    {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg"}
    | {"grad_avg", "acc_delta", "prev", "ax"}
)
# Options that tell optimizers apart whose states are the same.
_TELLING: Final = {"ns_steps": "Muon", "history_size": "LBFGS", "beta2_decay": "Adafactor"}
# What only one optimizer of torch has among its group's options, for those without state yet.
_OPTIONS: Final = {"dampening": "SGD", "betas": "Adam", "alpha": "RMSprop", "rho": "Adadelta"}
_LONGEST_NUMBER: Final = 18  # digits; no optimizer has as many parameters


class _TensorLike(Protocol):
    """What is asked of a tensor (`ckpt_surgery.checkpoint.description.Tensor` has it)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        ...


_Describe: TypeAlias = Callable[[Node], _TensorLike | None]
"""What tensor a node rebuilds, None if none: `TensorReader().describe`."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A tensor of a parameter's state that has the parameter's shape."""

    name: str
    node: Node = field(repr=False)
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class ParameterState:
    """The state of one parameter. `understood`: all its tensors are moments or known scalars.

    `step` is the count of steps, or the node of the one-element tensor that holds it, or None.
    """

    key: Key
    node: Node = field(repr=False)
    moments: tuple[Moment, ...]
    names: frozenset[str]
    step: Node
    nbytes: int
    understood: bool

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The parameter's shape, None if the state does not show it."""
        return self.moments[0].shape if self.understood and self.moments else None


@dataclass(frozen=True)
class ParameterGroup:
    """A group: its parameters in order, and their names where stored.

    `options` are those that are scalars, `fields` the nodes of all.
    """

    keys: tuple[Key, ...]
    names: tuple[str, ...] | None
    options: Mapping[str, str | int | float | bool | None]
    fields: Mapping[str, Node] = field(repr=False)
    node: Node = field(repr=False)


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state dict. `groups` in order; `states` by key, in the order of the file."""

    node: Node = field(repr=False)
    groups: tuple[ParameterGroup, ...]
    states: Mapping[Key, ParameterState]

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Every parameter, group after group, each once."""
        return tuple(dict.fromkeys(key for group in self.groups for key in group.keys))

    @property
    def understood(self) -> bool:
        """Whether every state is one of moments that have their parameter's shape.

        So it is for every optimizer of torch but Adafactor and LBFGS, and for most others.
        """
        return all(state.understood for state in self.states.values())

    @property
    def shared(self) -> bool:
        """Whether a state is one of all parameters together, laid end to end, as LBFGS keeps it."""
        return any({"func_evals", "n_iter"} <= state.names for state in self.states.values())

    def beginning(self, key: Key, moment: str) -> float | None:
        """Return what the elements of a new moment are before the first
        step; None if it is not known.
        """
        if moment in _FROM_ZERO:
            return 0.0
        options = next(group.options for group in self.groups if key in group.keys)
        option = {"step_size": "lr", "sum": "initial_accumulator_value"}.get(moment)
        value = None if option is None else options.get(option)
        return float(value) if isinstance(value, int | float) else None

    @property
    def layout(self) -> str:
        """The optimizer of torch that leaves such a state, ``unknown`` if none does.

        AdamW's state is Adam's; kernels (foreach, fused) leave no trace in it.
        """
        told = {_TELLING[o] for group in self.groups for o in group.fields if o in _TELLING}
        if len(told) == 1:
            return told.pop()
        found = {state.names for state in self.states.values() if state.names}
        if found:
            names = {_LAYOUTS.get(each) for each in found}
            return names.pop() or "unknown" if len(names) == 1 else "unknown"
        options = {name for group in self.groups for name in group.fields}
        return next((name for option, name in _OPTIONS.items() if option in options), "unknown")

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(state.nbytes for state in self.states.values())

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """``lr`` of each group that has one as a number."""
        rates = (group.options.get("lr") for group in self.groups)
        return tuple(float(rate) for rate in rates if isinstance(rate, (int, float)))


def read_optimizer(
    node: Node, describe: _Describe, items: Items | None = None
) -> OptimizerState | None:
    """Return the optimizer that a node is the state dict of; None if it has not that form.

    None also for forms that cannot be edited: a parameter in two groups, groups without a list
    of indices or names, states that are no mappings. Raises LimitExceededError if the same parts
    occur too often in what `items` has given.
    """
    items = items or Items()
    fields = items.named(node) if mapping_length(node) else {}
    groups = fields.get("param_groups")
    if not isinstance(groups, list) or mapping_length(fields.get("state")) is None:
        return None
    read = [_group(group, items) for group in items.listed(groups)]
    if any(group is None for group in read):
        return None
    states = items.pairs(fields["state"]) or []
    parts = tuple(group for group in read if group is not None)
    keys = [key for group in parts for key in group.keys]
    if len(set(keys)) != len(keys) or len({type(key) for key in keys}) > 1:
        return None
    known = set(keys)
    found: dict[Key, ParameterState] = {}
    numbered = bool(keys) and isinstance(keys[0], int)
    for key_node, value in states:
        key = state_key(key_node, numbered=numbered)
        if key is None or key not in known:
            continue  # torch keeps state that belongs to no parameter; so do we
        if mapping_length(value) is None or key in found:
            return None
        found[key] = _state(key, value, describe, items)
    return OptimizerState(node, parts, found)


def find_optimizers(
    root: Node, describe: _Describe, items: Items | None = None, seen: set[int] | None = None
) -> Iterator[tuple[str, OptimizerState]]:
    """Yield every optimizer at or below a node, with its path (keys and positions joined by ``/``).

    Nothing below a node in `seen` is looked at; `seen` grows by what was.
    """
    items = items or Items()
    waiting: list[tuple[str, Node]] = [("", root)]
    seen = set() if seen is None else seen
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        optimizer = read_optimizer(node, describe, items)
        if optimizer is not None:
            yield path, optimizer
            continue
        waiting.extend(reversed([(join_path(path, key), child) for key, child in _children(node)]))


def _group(node: Node, items: Items) -> ParameterGroup | None:
    fields = items.named(node)
    params = fields.get("params")
    if not isinstance(params, list):
        return None
    keys = [_parse_key(item) for item in items.listed(params)]
    names = fields.get("param_names")
    stored = [text(name) for name in items.listed(names)] if isinstance(names, list) else None
    if None in keys or (stored is not None and (None in stored or len(stored) != len(keys))):
        return None
    return ParameterGroup(
        tuple(key for key in keys if key is not None),
        None if stored is None else tuple(name for name in stored if name is not None),
        {name: _plain(value) for name, value in fields.items() if _is_plain(value)},
        {name: value for name, value in fields.items() if name not in {"params", "param_names"}},
        node,
    )


def _state(key: Key, node: Node, describe: _Describe, items: Items) -> ParameterState:
    moments: list[Moment] = []
    nbytes = 0
    understood = True
    fields = items.named(node)
    for name, value in fields.items():
        tensor = describe(value)
        if tensor is None:
            understood = understood and _is_plain(value)
            continue
        nbytes += tensor.nbytes
        if name not in _SCALARS:
            moments.append(Moment(name, value, tensor.shape, tensor.nbytes))
        elif tensor.shape not in {(), (1,)}:
            understood = False
    understood = understood and len({moment.shape for moment in moments}) <= 1
    filled = frozenset(name for name, value in fields.items() if value is not None)
    return ParameterState(key, node, tuple(moments), filled, fields.get("step"), nbytes, understood)


def _parse_key(node: Node) -> Key | None:
    """Return the parameter that a key of ``state`` or an item of
    ``params`` stands for; None if none.
    """
    if isinstance(node, int) and not isinstance(node, bool):
        return node
    return text(node)


def state_key(node: Node, *, numbered: bool) -> Key | None:
    """Return the parameter that a key of ``state`` stands for; None if it stands for none.

    torch's ``dcp_to_torch_save`` makes texts of the numbers: where the groups list parameters by
    number, ``'0'`` is the number 0.
    """
    key = _parse_key(node)
    plain = numbered and isinstance(key, str) and key.isascii() and key.isdecimal()
    if not plain or len(str(key)) > _LONGEST_NUMBER or str(int(key or 0)) != key:
        return key
    return int(key)


def _is_plain(node: Node) -> bool:
    return node is None or isinstance(node, (bool, int, float)) or text(node) is not None


def _plain(node: Node) -> str | int | float | bool | None:
    return node if isinstance(node, (bool, int, float)) else text(node)


def _children(node: Node) -> list[tuple[str, Node]]:
    """Return the containers in a container; scalars lead nowhere, and there may be millions."""
    if isinstance(node, (list, tuple)):
        return [(str(i), child) for i, child in enumerate(node) if holds_more(child)]
    return [
        (name, value)
        for key, value in mapping_pairs(node) or ()
        if holds_more(value) and (name := text(key)) is not None
    ]
