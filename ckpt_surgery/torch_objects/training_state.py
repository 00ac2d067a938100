"""Recognise training state: optimizers, schedulers, scalers and what else only resuming needs.

There is one recogniser. What it calls training state is no model to `find`, is described by
`inspect` and goes with `strip --training-state`; its forms are those that `training.optimizers`
reads. An entry is known by its form; a name counts only where the form does not speak against
it: ``data_scaler`` may scale the data, and ``opt`` may hold the options of a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Final, Literal

from ckpt_surgery.pickles import Dict, Node, Object
from ckpt_surgery.torch_objects.mappings import mapping_length, mapping_pairs
from ckpt_surgery.torch_objects.storages import text

_TrainingKind = Literal[
    "optimizer", "optimizers", "scheduler", "schedulers", "scaler", "callbacks", "loops", "rng",
    "log",
]  # fmt: skip
"""``optimizers`` and ``schedulers`` are lists (Lightning's ``optimizer_states``,
``lr_schedulers``), ``callbacks`` and ``loops`` mappings of Lightning, ``rng`` states of random
number generators, ``log`` what mmengine collects for its reports."""

# An optimizer, a scheduler or the like has a few entries; of what has more, which a file may refer
# to any number of times, the form is not looked at.
_MOST_SETTINGS: Final = 200
_MOST_LISTED: Final = 64  # optimizers or schedulers in a list
_MOST_LOOKED_AT: Final = 8  # items that tell the form of a mapping with any number of them
_LONGEST_NAME: Final = 200

_STATE: Final = frozenset(
    {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta", "exp_inf"}
    | {"prev", "step_size", "ax", "max_exp_avg_sq", "grad_avg", "sqr_avg", "step"}
)
_LOOPS: Final = frozenset({"fit_loop", "validate_loop", "test_loop", "predict_loop"})
_CALLBACKS: Final = (
    "ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "StochasticWeightAveraging",
    "WeightAveraging", "EMAWeightAveraging", "Timer", "BatchSizeFinder", "BaseFinetuning",
    "BackboneFinetuning", "LambdaCallback",
)  # fmt: skip
OPTIMIZER_PARTS: Final = frozenset({"state", "param_groups", "hypers"})
"""Keys of an optimizer's state dict, in torch's form and in fastai's."""
# Names that a form has, all of them; the first that is there decides.
_FORMS: Final[tuple[tuple[_TrainingKind, frozenset[str]], ...]] = (
    ("optimizer", frozenset({"state", "param_groups"})),
    ("optimizer", frozenset({"state", "hypers"})),  # fastai
    ("scaler", frozenset({"scale", "growth_factor"})),
    ("scheduler", frozenset({"_schedulers", "_last_lr"})),  # ChainedScheduler, SequentialLR
    ("scheduler", frozenset({"_schedulers", "last_epoch"})),  # as torch kept them before 1.11
    ("scheduler", frozenset({"last_epoch", "_step_count"})),
    ("scheduler", frozenset({"last_epoch", "base_lrs"})),
    ("scheduler", frozenset({"last_epoch", "_last_lr"})),
    ("scheduler", frozenset({"last_epoch", "num_bad_epochs"})),  # ReduceLROnPlateau
    ("scheduler", frozenset({"base_values", "param_group_field"})),  # timm
    ("scheduler", frozenset({"base_values", "last_step", "_global_step"})),  # mmengine
    ("log", frozenset({"log_scalars", "runtime_info", "resumed_keys"})),  # mmengine
    ("rng", frozenset({"python", "numpy", "cpu"})),  # transformers' Trainer
    ("rng", frozenset({"random_state", "numpy_random_seed", "torch_manual_seed"})),  # accelerate
)


class TrainingStates:
    """Recognises training state in one graph; the form of each node is looked at once."""

    def __init__(self) -> None:
        self._forms: dict[int, _TrainingKind | None] = {}
        self._holders: dict[int, bool] = {}

    def kind(self, path: str, node: Node) -> _TrainingKind | None:
        """Return the kind of training state that an entry is, by its form, else by its name."""
        form = self.form(node)
        if form is not None:
            return form
        name = last_part(path)
        for kind, pattern, is_possible in _NAMES:
            if re.search(pattern, name) and is_possible(self, node):
                return kind
        return None

    def form(self, node: Node) -> _TrainingKind | None:
        """Return the kind of training state that `node` is by its form alone.

        A list is one if all that it holds is. None also if it has more entries than any has.
        """
        if not isinstance(node, (list, Dict, Object)):
            return None
        if id(node) not in self._forms:
            self._forms[id(node)] = None  # a list may hold itself
            form = self._list_form(node) if isinstance(node, list) else _form(node)
            self._forms[id(node)] = form
        return self._forms[id(node)]

    def _list_form(self, node: list[Node]) -> _TrainingKind | None:
        if not 0 < len(node) <= _MOST_LISTED:
            return None
        kinds = {None if isinstance(item, list) else self.form(item) for item in node}
        if kinds == {"optimizer"}:
            return "optimizers"
        return "schedulers" if kinds == {"scheduler"} else None

    def holds_optimizers(self, node: Node) -> bool:
        """Return whether `node` is an optimizer by its form, or a small mapping that holds one."""
        if self.form(node) in {"optimizer", "optimizers"}:
            return True
        if id(node) not in self._holders:
            small = 0 < (mapping_length(node) or 0) <= _MOST_SETTINGS
            pairs = mapping_pairs(node) if small else None
            held = (self.form(value) for _, value in pairs or ())
            self._holders[id(node)] = any(form in {"optimizer", "optimizers"} for form in held)
        return self._holders[id(node)]


def _is_training_state(path: str, node: Node) -> bool:
    """Return whether an entry is needed to resume the training, and for nothing else."""
    return TrainingStates().kind(path, node) is not None


def holds_optimizer(node: Node) -> bool:
    """Return whether `node` is an optimizer's state dict, or a list
    of them as Lightning keeps it.
    """
    return TrainingStates().form(node) in {"optimizer", "optimizers"}


def is_optimizer_state(node: Node) -> bool:
    """Return whether `node` is the ``state`` of an optimizer alone:
    the moments of each parameter.
    """
    first = _first_pairs(node)
    return bool(first) and all(_is_number(key) and _is_state(value) for key, value in first)


def is_flattened_optimizer(node: Node) -> bool:
    """Return whether `node` is an optimizer in one level, as torch's
    ``flatten_optimizer_state_dict`` makes it: ``state.NAME.exp_avg``, ``param_groups.NAME.lr``.
    """
    first = _first_pairs(node)
    return bool(first) and all(_is_flat_name(text(key) or "") for key, _ in first)


def training_names(node: Node) -> frozenset[str]:
    """Return the keys that a mapping has; empty for what is none, or has more than any setting."""
    if not 0 < (mapping_length(node) or 0) <= _MOST_SETTINGS:
        return frozenset()
    names = (text(key) for key, _ in mapping_pairs(node) or ())
    return frozenset(name for name in names if name is not None)


def last_part(path: str) -> str:
    """Return the last part of a path in lower case; ``""`` if that
    is longer than any usual name.
    """
    name = path[-_LONGEST_NAME:].rpartition("/")[2].lower()
    return "" if len(name) == _LONGEST_NAME else name


def _form(node: Node) -> _TrainingKind | None:
    if not isinstance(node, (Dict, Object)):
        return None
    names = training_names(node)
    for kind, wanted in _FORMS:
        if wanted <= names:
            return kind
    if any(name.startswith(_CALLBACKS) for name in names):
        return "callbacks"
    if names & _LOOPS:
        return "loops"
    if is_optimizer_state(node) or is_flattened_optimizer(node):
        return "optimizer"
    return None


def _first_pairs(node: Node) -> list[tuple[Node, Node]]:
    """Return the first items of a mapping, of which there may be
    millions; empty for what is none.
    """
    if isinstance(node, Dict) or (isinstance(node, Object) and node.items is not None):
        return list(islice(node.pairs(), _MOST_LOOKED_AT))
    return (mapping_pairs(node) or [])[:_MOST_LOOKED_AT]


def _is_flat_name(name: str) -> bool:
    part, _, rest = name.partition(".")
    return part == "param_groups" or (part == "state" and rest.rpartition(".")[2] in _STATE)


def _is_number(key: Node) -> bool:
    if isinstance(key, int):
        return not isinstance(key, bool)
    name = text(key)
    return name is not None and name.isdecimal()


def _is_state(node: Node) -> bool:
    """Return whether `node` is the state of one parameter; an empty one may be."""
    return mapping_length(node) == 0 or bool(training_names(node) & _STATE)


def _is_setting(node: Node) -> bool:
    """Return whether `node` is a plain value, which tells of the training but is no state of it."""
    return isinstance(node, (bool, int, float)) or text(node) is not None


def _anything(_: TrainingStates, node: Node) -> bool:
    return not _is_setting(node)


def _is_scaler(_: TrainingStates, node: Node) -> bool:
    """Return whether `node` may be a gradient scaler: a disabled one,
    apex's, or one with other names.
    """
    if not mapping_length(node):
        return node is None or mapping_length(node) == 0
    return any("scale" in name or name.startswith("growth") for name in training_names(node))


def _holds_optimizers(states: TrainingStates, node: Node) -> bool:
    return node is None or mapping_length(node) == 0 or states.holds_optimizers(node)


# Names of training state, and what must be true of an entry that is called so.
_NAMES: Final[tuple[tuple[_TrainingKind, str, Callable[[TrainingStates, Node], bool]], ...]] = (
    ("optimizer", r"(^|_)optim(izer)?(s|_|$)", _anything),
    ("optimizer", r"(^|_)opts?(_state(_dict)?)?$", _holds_optimizers),
    ("scheduler", r"(^|_)(lr_?)?sched(uler)?(s|_|$)", _anything),
    ("scaler", r"^((grad|amp|loss|native)_)?scalers?(_state(_dict)?)?$|^amp(_|$)", _is_scaler),
    ("callbacks", r"(^|_)callback(s|_|$)", _anything),
    ("loops", r"(^|_)loop(s|_|$)|^train_iterator$", _anything),
    ("rng", r"(^|_)rng(s|_|$)|^random_states?$", lambda *_: True),
    ("log", r"^message_hub$", _anything),
)
